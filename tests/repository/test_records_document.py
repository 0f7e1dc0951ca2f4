"""The document of records has each column of results and each key of a trace."""

import dataclasses
import re

from support.checkout import ROOT

from qlora_repeat.records.trace import Step
from qlora_repeat.results.trial_result import TrialResult

TEXT = (ROOT / "docs/reference/records.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(table: str) -> list[str]:
    """Return the code in the first cell of each row."""
    rows = (line for line in table.splitlines() if line.startswith("|"))
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_each_column_of_results_is_documented_once() -> None:
    columns = [field.name for field in dataclasses.fields(TrialResult)]
    assert sorted(first_cells(section("The columns of results.jsonl"))) == sorted(columns)


def test_each_key_of_a_trace_is_documented_once() -> None:
    keys = [field.name for field in dataclasses.fields(Step)]
    assert sorted(first_cells(section("The trace"))) == sorted(keys)


def test_the_example_of_a_hexadecimal_loss_is_right() -> None:
    (digits, value), *more = re.findall(r'`float\.fromhex\("(\S+)"\)` is (\d+\.\d+)', section("The trace"))
    assert float.fromhex(digits) == float(value)
    assert not more
