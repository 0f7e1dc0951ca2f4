"""Templates that name any column of the rows, and what is wrong with one."""

from pathlib import Path

import pytest
from support.own_rows import own_tokenizer, write_own_study

from qlora_repeat.assets.datasets import encode, part_rows, study_prompts
from qlora_repeat.errors import UsageError

ROWS = [
    {"instruction": f"Is {number} odd?", "input": f"It is {number}.", "answer": "no"} for number in range(10)
]
UNLISTED = ('input = "input", ', "")
TEMPLATE = "{{answer}} {instruction} ({input})\\n{answer}!"


def test_a_template_names_any_column_and_escapes_braces(tmp_path: Path) -> None:
    """The columns that it names are read without being listed."""
    workspace = write_own_study(tmp_path, ROWS, UNLISTED, template=TEMPLATE)
    model, rows = workspace.study.models["own"], part_rows(workspace, "rows", "test", 42)
    tokenizer, row = own_tokenizer(), rows[0]
    (example,) = encode(tokenizer, model, rows[:1])
    before = f"{{answer}} {row['instruction']} ({row['input']})\n"
    assert tokenizer.decode(example.ids) == f"{before}no!"
    assert tokenizer.decode(example.ids[example.answer_start :]) == "no!"
    assert study_prompts(workspace, "own", 42)[0].fed == before


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{instruction} {answer} {answer}", "expected exactly {instruction}, then {answer}"),
        ("{answer} {instruction}", "expected exactly {instruction}, then {answer}"),
        ("{instruction} {answer.__class__}", "expected a column's name in braces"),
        ("{instruction} {answer!r}", "expected a column's name in braces"),
        ("{instruction} {answer:>9}", "expected a column's name in braces"),
        ("{instruction} {answer} {0}", "expected a column's name in braces"),
        ("{instruction} {answer", "write {{ or }} for a brace"),
        ("{instruction} {inptu} {answer}", "no column 'inptu'; it has instruction, input, answer"),
    ],
)
def test_a_wrong_template_is_refused_in_one_line(template: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        write_own_study(tmp_path, ROWS, UNLISTED, template=template)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
