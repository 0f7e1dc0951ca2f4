"""The tables of the paper's numbers have the cells that the paper prints."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.checkout import ROOT, kit, needs_latex

FOLDER = ROOT / "paper" / "published"
TITLES = {
    "gpt-neox-20b": "GPT-NeoX-20B",
    "llama2-7b": "Llama2-7B",
    "gpt-neoxt-chat-20b": "GPT-NeoXT-chat-20B",
    "llama2-chat-7b": "Llama2-chat-7B",
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published")
    done = kit("tables", "published", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def markdown(path: Path) -> dict[str, dict[str, str]]:
    """Return a table's cells by row and heading."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in [rows[0], *rows[2:]]}


def latex(path: Path) -> dict[str, list[str]]:
    """Return a table's cells by row, joined from all panels."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").replace(r"\penalty500 ", "").splitlines():
        if re.fullmatch(r"[\w-]+( & [^&]+)+ \\\\\*?", line):
            name, *cells = line.removesuffix("*").removesuffix(r" \\").split(" & ")
            found.setdefault(name, []).extend(cells)
    return found


def rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((FOLDER / name).open(encoding="utf-8")))


def plain(text: str) -> str:
    """Return a number without thousands separators and trailing zeros."""
    text = text.replace(",", "")
    return text.rstrip("0").removesuffix(".") if "." in text else text


def bits(optimizer: str) -> str:
    return optimizer.removeprefix("adamw-").replace("bit", "-bit")


def printed_cells() -> list[tuple[str, str, str, str]]:
    """Return table, row, heading and value of each cell that the paper prints."""
    found = []
    for number in ("01", "02"):
        for row in rows(f"table-{number}.csv"):
            heading = f"{TITLES[row['model']]}, {bits(row['optimizer'])}"
            found.append((number, row["run"], heading, row["perplexity"]))
    for row in rows("table-03.csv"):
        heading = f"{bits(row['optimizer'])} (% of GPU)"
        found.append(("03", TITLES[row["model"]], heading, row["gpu_memory_percent"]))
    for number in ("08", "09"):
        for row in rows(f"table-{number}.csv"):
            for place in (1, 2):
                value = row[f"instruction_{place}"]
                shown = value if len(value) == 1 else f"({value})"
                found.append((number, row["run"], f"{bits(row['optimizer'])}, Instruction {place}", shown))
    for number in ("10", "11"):
        for row in rows(f"table-{number}.csv"):
            for what in ("train", "test"):
                heading = f"{bits(row['optimizer'])}, {TITLES[row['model']]}, {what} (s)"
                found.append((number, row["run"], heading, row[f"{what}_seconds"]))
    for row in rows("base-perplexity.csv"):
        title = TITLES[row["model"]]
        for heading, column in (("mean", "mean"), ("SD", "sd"), ("tests", "tests")):
            found.append(("S0", title, f"before fine-tuning, perplexity, {heading}", row[column]))
        number = "02" if "chat" in row["model"] else "01"
        found += [(number, "base", f"{title}, {optimizer}", row["mean"]) for optimizer in ("8-bit", "32-bit")]
    return found


def test_every_cell_matches_the_paper(rendered: Path) -> None:
    cells = printed_cells()
    assert len(cells) == 56 + 8 + 56 + 112 + 12 + 8
    tables = {number: markdown(rendered / f"table-{number}.md") for number in {cell[0] for cell in cells}}
    set_in_latex = {number: latex(rendered / f"table-{number}.tex") for number in tables}
    for number, row, heading, value in cells:
        assert plain(tables[number][row][heading]) == plain(value), (number, row, heading)
        place = list(tables[number][row]).index(heading)
        assert plain(set_in_latex[number][row][place]) == plain(value), (number, row, heading)


def test_notes_state_only_what_the_paper_states(rendered: Path) -> None:
    text = (rendered / "tables.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\*\*Table .*DOI 10\.1109/ACCESS\.2024\.3470850\.$", text, re.MULTILINE)) == 16
    text = text.partition("**Table S4.**")[0]  # Table S4 explains our rules
    for ours in (
        "measured in the same way",
        "Software",
        "Finished",
        "No value",
        "Peak",
        "first words",
        "temperature",
    ):
        assert ours not in text
    assert "one value for each model and optimizer" in text
    assert sorted(path.stem for path in rendered.glob("table-*.md")) == [
        f"table-{number}"
        for number in (*(f"{place:02}" for place in range(1, 12)), "S0", "S1", "S1b", "S4", "S4b")
    ]


@needs_latex
def test_latex_compiles(rendered: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            "pdflatex",
            "-interaction=nonstopmode",
            "-halt-on-error",
            f"-output-directory={tmp_path}",
            "all.tex",
        ],
        cwd=rendered,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("command", ["show", "status", "collect", "fetch", "run"])
def test_other_commands_name_those_that_accept_published(command: str) -> None:
    done = kit(command, "published")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: published: ")
    assert "which only `tables` and `paper` accept" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_study_file_cannot_be_named_published(tmp_path: Path) -> None:
    path = tmp_path / "published.toml"
    shutil.copy(ROOT / "studies" / "pocket.toml", path)
    path.write_text(path.read_text(encoding="utf-8").replace('"pocket"', '"published"'), encoding="utf-8")
    for command in ("show", "tables"):
        done = kit(command, path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"Error: {path}: ")


def test_published_cannot_be_combined_with_results(tmp_path: Path) -> None:
    done = kit("tables", "published", "--results", tmp_path / "results.jsonl")
    assert done.returncode == 2
    assert "leave out --results" in done.stderr
