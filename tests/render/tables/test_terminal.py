"""Tables in a terminal, and the formats of tables."""

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from support.checkout import kit
from support.made_results import ANY_TEXT, HOSTILE, ORDINARY, study, trial
from support.terminal import in_terminal, kit_command, lines

from qlora_repeat.render.escape import terminal
from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.render.tables.terminal import terminal_table
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.trial_result import write_results

WIDTHS = (50, 60, 80, 100, 200)
PUBLISHED = ["tables", "published", "--format", "terminal"]


@given(ANY_TEXT)
def test_a_terminal_gets_no_control_characters(text: str) -> None:
    shown = terminal(text)
    assert {unicodedata.category(letter) for letter in shown}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert all(cell_len(letter) > 0 for letter in shown)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("texts", [ORDINARY, HOSTILE], ids=["ordinary", "hostile"])
def test_lines_fit_the_terminal_and_grids_are_straight(texts: tuple[str, ...], width: int) -> None:
    for table in make_tables(group_arms(study(texts))):
        drawn = terminal_table(table, width)
        assert max(map(cell_len, drawn.split("\n"))) <= width
        for grid in re.findall(r"^╭.*?^╰[^\n]+", drawn, re.MULTILINE | re.DOTALL):
            rows = grid.split("\n")
            assert len({cell_len(row) for row in rows}) == 1
            assert {row.count("│") + len(re.findall("[╭├╰┬┼┴┤╮╯]", row)) for row in rows} == {
                rows[0].count("┬") + 2
            }


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.integers(20, 200))
def test_any_response_stays_in_its_cell(texts: list[str], width: int) -> None:
    for table in make_tables(group_arms(study(tuple(texts), trials=2))):
        if table.prose:
            drawn = terminal_table(table, width)
            for grid in re.findall(r"^╭.*?^╰[^\n]+", drawn, re.MULTILINE | re.DOTALL):
                assert len({cell_len(row) for row in grid.split("\n")}) == 1


def test_all_numbers_are_shown_and_the_summary_is_separate() -> None:
    perplexity = make_tables(group_arms(study()))[0]
    for width in WIDTHS:
        drawn = terminal_table(perplexity, width)
        words = drawn.split()
        for row in perplexity.rows + perplexity.summary:
            assert set(row) <= set(words)
        assert all(note.split()[0] in words for note in perplexity.notes)
        assert re.search(r"│ 7 .*\n├.*\n│ mean ", drawn)


def test_columns_under_one_heading_stay_together_if_they_fit() -> None:
    perplexity = make_tables(group_arms(study()))[0]
    narrow = terminal_table(perplexity, 60)
    assert re.findall(r"^(\S+)\n╭", narrow, re.MULTILINE) == ["GPT-NeoX-20B", "Llama2-7B"]
    assert narrow.count("│ Run ") == 2
    wide = terminal_table(perplexity, 100)
    assert wide.count("│ Run ") == 1
    assert re.search(r"│ +GPT-NeoX-20B │ +GPT-NeoX-20B │ .*\n│ Run +│ +8-bit │ +32-bit │", wide)


def test_only_long_responses_have_lines_between_them() -> None:
    responses, answers = (
        next(
            terminal_table(table, 80) for table in make_tables(group_arms(study())) if table.number == number
        )
        for number in ("4", "8")
    )
    assert responses.count("├") == 7
    assert answers.count("├") == answers.count("╭")


def test_the_papers_tables_in_a_terminal(tmp_path: Path) -> None:
    shown = in_terminal([kit_command(), *PUBLISHED, "--table", "s1b", "--table", "1", "--out", tmp_path], 60)
    drawn = lines(shown)
    assert max(map(cell_len, drawn)) <= 60
    assert [line.split()[:2] for line in drawn if line.startswith("Table ")] == [
        ["Table", "1."],
        ["Table", "S1b."],
    ]
    assert "21024" in shown
    assert list(tmp_path.iterdir()) == [], "no file is written"


def test_formats_choose_the_files(tmp_path: Path) -> None:
    source, out = tmp_path / "results.jsonl", tmp_path / "out"
    write_results(study(trials=2), source)
    given = ["tables", "pocket", "--results", source, "--out", out]
    output = kit(*given, "--format", "latex").stdout
    assert output == f"{out}: {len(list(out.iterdir()))} files\n"
    assert {path.suffix for path in out.iterdir()} == {".tex"}
    assert "tables.md has all tables to read" in kit(*given, "--format", "markdown").stdout
    both = {path.name: path.read_bytes() for path in out.iterdir()}
    assert kit(*given).returncode == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == both, "as without --format"
    write_results([trial()], source)
    both_ways = kit(*given, "--format", "markdown", "--format", "terminal", "--table", "3")
    assert "│ GPT-NeoX-20B │" in both_ways.stdout
    assert not (out / "table-02.md").exists()
    assert (out / "table-02.tex").read_bytes() == both["table-02.tex"], "LaTeX was not requested"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--table", "1"], "--table chooses what --format terminal prints"),
        (
            ["--format", "terminal", "--table", "12"],
            "there is no table 12; there are 1, 2, 3, 4,",
        ),
        (["--format", "html"], "'html' is not one of 'latex', 'markdown', 'terminal'"),
    ],
    ids=str,
)
def test_impossible_options_give_one_line(more: list[str], words: str, tmp_path: Path) -> None:
    done = kit("tables", "published", *more, "--out", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
