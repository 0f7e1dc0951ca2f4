"""`import qlora_repeat`: its names, the modules that it loads, and its types."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT

import qlora_repeat as qr

HEAVY = {"torch", "transformers", "pydantic", "pandas", "scipy", "numpy", "matplotlib", "click", "rich"}


def modules_after(script: str, folder: Path) -> set[str]:
    """Return the top-level modules that a script has loaded."""
    script += "\nimport sys; print('loaded:', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.partition("loaded:")[2].split())


def test_the_import_loads_no_large_library(tmp_path: Path) -> None:
    assert not modules_after("import qlora_repeat; dir(qlora_repeat)", tmp_path) & HEAVY


def test_the_papers_numbers_are_shown_in_any_folder_without_torch(tmp_path: Path) -> None:
    script = (
        "import qlora_repeat as qr\n"
        "paper = qr.paper_results()\n"
        "paper.to_pandas(); paper._repr_html_(); qr.claims(paper)._repr_html_()\n"
        "qr.tables(paper, compare='published')._repr_html_(); qr.report(paper)._repr_html_()\n"
        "qr.write_all(paper, 'out')"
    )
    assert "torch" not in modules_after(script, tmp_path)
    assert {"report.html", "tables.md", "table-01.tex"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


@pytest.mark.parametrize("command", ["tables", "report"])
def test_commands_that_show_results_load_no_torch(command: str, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.argv = ['qlora-repeat', {command!r}, 'published', '--out', 'out']\n"
        "from qlora_repeat.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0"
    )
    assert not modules_after(script, tmp_path) & {"torch", "transformers", "peft", "bitsandbytes"}


def test_every_name_exists_and_is_documented() -> None:
    assert {*qr.__all__} <= {*dir(qr)}
    for name in qr.__all__:
        assert getattr(qr, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'load_studdy'"):
        qr.load_studdy  # type: ignore[attr-defined]  # noqa: B018


def test_no_name_hides_a_package() -> None:
    packages = {path.parent.name for path in (ROOT / "src/qlora_repeat").glob("*/__init__.py")}
    assert not packages & {*qr.__all__}
    assert importlib.import_module("qlora_repeat.results").__name__ == "qlora_repeat.results"


SNIPPET = """
import qlora_repeat as qr

study: qr.Workspace = qr.load_study("pocket@bitwise", runs="runs")
trial: qr.Trial = study.trial("smollm2-135m/adamw-8bit/1")
results: qr.Results = qr.run(study, jobs=2)
losses: list[float | None] = [row.final_loss for row in results]
verdict: str = qr.verify(trial, steps=3).verdict
qr.tables(results, compare="published").write("out")
reveal_type(qr.paper_results()[0].perplexity)
qr.run(study, job=2)
"""


def test_type_checkers_know_the_names(tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "snippet.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
    assert 'Revealed type is "float | None"' in found[0].replace("builtins.", "")
    assert 'Unexpected keyword argument "job" for "run"' in found[1], found
    assert found[-1].startswith("Found 1 error in 1 file"), found
