"""Tables and figures are compiled into one PDF."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.checkout import kit, needs_latex
from support.made_results import render_tables

from qlora_repeat.errors import MissingError, StageError
from qlora_repeat.render import pdf
from qlora_repeat.render.figures.write import render_figures
from qlora_repeat.render.pdf import compile_paper
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.trial_result import TrialResult

RESULTS = [
    TrialResult(
        "po$c_ket", "text-generation", "neox", "NeoX", "adamw-8bit", run, "done", perplexity=3.5,
        loss_curve=[[1.0, 2.0], [2.0, 1.5]],
    )
    for run in (1, 2)
]  # fmt: skip


def rendered(folder: Path) -> Path:
    render_tables(group_arms(RESULTS), folder)
    return folder


def document(folder: Path, body: str, kind: str = "article") -> Path:
    (folder / "all.tex").write_text(
        f"\\documentclass{{{kind}}}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    return folder


def test_without_latex_one_line_names_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = kit("paper", "--out", document(tmp_path, "text"))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("Error: pdflatex: not installed; install the Debian packages ")
    assert {"texlive-publishers", "lmodern"} <= set(done.stderr.split())
    assert len(done.stderr.splitlines()) == 1


@needs_latex
@pytest.mark.parametrize("path", ["/etc/passwd", "../secret", ".secret"])
def test_latex_reads_no_file_outside_the_folder(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for secret in (tmp_path / "secret.tex", tmp_path / "folder" / ".secret.tex"):
        secret.write_text("secret")
    with pytest.raises(StageError):
        compile_paper(document(tmp_path / "folder", rf"\input{{{path}}}"))


def test_latex_is_told_to_read_no_file_outside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without LaTeX, see what the command gets."""
    tool = tmp_path / "pdflatex"
    tool.write_text('#!/bin/sh\necho "$openin_any $openout_any" > "${5#*=}/all.pdf"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("openin_any", "a")
    (tmp_path / "folder").mkdir()
    assert compile_paper(document(tmp_path / "folder", "text")).read_text() == "p p\n"


def test_latex_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "pdflatex"
    tool.write_text("#!/bin/sh\nexec sleep 1000\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(pdf, "_MOST_SECONDS", 0.1)
    with pytest.raises(StageError, match=r"all\.tex: LaTeX did not end in 0\.1 seconds"):
        compile_paper(document(tmp_path, "text"))


@needs_latex
def test_the_pdf_has_the_same_bytes_in_any_folder(tmp_path: Path) -> None:
    made = []
    for name in ("one", "another/folder"):
        folder = rendered(tmp_path / name)
        render_figures(group_arms(RESULTS), folder)
        before = {path.name for path in folder.iterdir()}
        made.append(compile_paper(folder).read_bytes())
        assert {path.name for path in folder.iterdir()} - before == {"all.pdf"}
    assert made[0] == made[1]
    if shutil.which("pdftotext"):
        subprocess.run(["pdftotext", "-layout", folder / "all.pdf"], check=True)
        text = (folder / "all.txt").read_text(encoding="utf-8")
        assert "Tables and Figures of Study po$c_ket" in text
        assert re.search(r"TABLE 1\.\s+Perplexity", text)
        assert re.search(r"Fig\. 4\.\s+Loss", text)
        assert "8-bit: final loss by run" in text


@needs_latex
def test_without_a_figure_the_tables_are_compiled(tmp_path: Path) -> None:
    path = compile_paper(rendered(tmp_path))
    bare = path.stat().st_size
    render_figures(group_arms(RESULTS), tmp_path)
    assert compile_paper(tmp_path).stat().st_size > bare + 5000


@needs_latex
def test_a_missing_latex_file_is_named_with_the_packages(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"LaTeX lacks nonesuch\.cls; install the Debian packages texlive"):
        compile_paper(document(tmp_path, "text", kind="nonesuch"))


@needs_latex
def test_a_missing_table_is_no_missing_latex_file(tmp_path: Path) -> None:
    (rendered(tmp_path) / "table-01.tex").unlink()
    with pytest.raises(StageError, match=r"LaTeX fails: .*File `\./table-01\.tex' not found"):
        compile_paper(tmp_path)


@needs_latex
def test_an_error_gives_one_line_and_keeps_the_log_until_a_success(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        compile_paper(document(tmp_path, "\\nonesuch"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/all.tex: LaTeX fails: ./all.tex:3: Undefined control sequence.")
    assert message.endswith(f"see {tmp_path}/all.log")
    assert len(message.splitlines()) == 1
    assert (tmp_path / "all.log").is_file()
    assert not (tmp_path / "all.pdf").exists()
    compile_paper(document(tmp_path, "corrected"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.pdf", "all.tex"]


@needs_latex
def test_latex_runs_until_references_are_settled(tmp_path: Path) -> None:
    pages = "\\pageref{here}\\newpage\\label{here}"
    settled = compile_paper(document(tmp_path, pages)).read_bytes
    expected = compile_paper(document(tmp_path, "2\\newpage")).read_bytes
    assert len(settled()) == pytest.approx(len(expected()), rel=0.2)
