// All libraries that a report uses.
import DataTable from "datatables.net";
import embed from "vega-embed";
import { expressionInterpreter } from "vega-interpreter";

Object.assign(window, { DataTable, embed, expressionInterpreter });
