"""The JSON schema of study files, ``studies/study.schema.json``, which editors use to complete and check.

``python -m qlora_repeat.study.json_schema``, run in the checkout, writes it. It is made from the types, plus
what a file may leave out, abbreviate or spell in the older way.
"""

import ast
import functools
import inspect
import textwrap
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qlora_repeat.study import cluster, data_sources, randomness, scores, study
from qlora_repeat.study.study import Study
from qlora_repeat.system.files import json_text, write_text
from qlora_repeat.system.printable import say

SCHEMA = Path("studies/study.schema.json")
_WHOLE = ("Hub", "Folder", "PackageFile", "PerTrial", "Sampling")
"""Tables with required keys. What others lack has a default, or may come from another study."""
_ABBREVIATED = {"Base": ["hub", "folder", "gguf", "tokenizer"], "Data": ["hub", "file", "test_file"]}
"""Tables in whose place a file can have a text."""


@functools.cache
def study_schema() -> dict[str, Any]:
    """Return the JSON schema of study files."""
    schema: dict[str, Any] = TypeAdapter(Study).json_schema()
    tables = schema["$defs"]
    tables["Study"] = {key: schema.pop(key) for key in ("properties", "additionalProperties")}
    for module in (data_sources, randomness, scores, study, cluster):
        for name, table in tables.items():
            if "properties" in table and (kind := getattr(module, name, None)) is not None:
                _describe(table, kind)
    for name, each in tables.items():
        if name not in _WHOLE:
            each.pop("required", None)
    for name, keys in _ABBREVIATED.items():
        for key in keys:
            tables[name]["properties"][key].setdefault("anyOf", []).append({"type": "string", "minLength": 1})
    own = tables["Study"]["properties"]
    del own["variant"]
    own["extends"] = {"type": "string", "minLength": 1, "description": "Another study, by name or path."}
    own["training"] = {"$ref": "#/$defs/Training", "description": "Settings that models share."}
    table = {
        "type": "object",
        "properties": {"optimizer": {"type": "string"}, "state_map": {"type": "string"}},
        "required": ["optimizer", "state_map"],
        "additionalProperties": False,
    }
    own["optimizers"]["items"] = {"anyOf": [own["optimizers"]["items"], table]}
    for key in ("bases", "data", "models"):
        _or_false(own[key])
    own["quantisation"] = {"$ref": "#/$defs/Quantization", "description": "The older spelling."}
    own["weights"]["enum"] = [*own["weights"]["enum"], "materialised"]
    _without_nothing(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A study of qlora-repeat",
        "type": "object",
        "$defs": {name: each for name, each in sorted(tables.items()) if name != "Study"},
        **tables["Study"],
    }


def _or_false(table: dict[str, Any]) -> None:
    """Allow false in place of each table in a table, which removes a table of the other study."""
    table.pop("minProperties", None)
    inner = table.get("patternProperties") or {"": table.get("additionalProperties")}
    (pattern, kind), *_ = inner.items()
    either = {"anyOf": [kind, {"const": False}]}
    if pattern:
        table["patternProperties"] = {pattern: either}
        table["additionalProperties"] = False
    else:
        table["additionalProperties"] = either


def _without_nothing(node: Any) -> None:
    """Remove the alternative null, which TOML does not have, and titles, which repeat the key."""
    if isinstance(node, list):
        for each in node:
            _without_nothing(each)
    if not isinstance(node, dict):
        return
    if "anyOf" in node:
        node["anyOf"] = [each for each in node["anyOf"] if each != {"type": "null"}]
        if len(node["anyOf"]) == 1:
            node |= node.pop("anyOf")[0]
    if node.get("default", 0) is None:
        del node["default"]
    if isinstance(node.get("title"), str):
        del node["title"]
    for each in node.values():
        _without_nothing(each)


def _describe(table: dict[str, Any], kind: type) -> None:
    """Add the docstring of each attribute of a class to a table, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    for attribute, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(attribute, ast.AnnAssign) and isinstance(text, ast.Expr):
            name, value = ast.unparse(attribute.target), ast.literal_eval(text.value)
            if name in table["properties"]:
                table["properties"][name]["description"] = " ".join(str(value).split())


if __name__ == "__main__":
    write_text(SCHEMA, json_text(study_schema()))
    say(SCHEMA)
