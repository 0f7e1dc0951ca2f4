"""Compile a study's tables and figures to one PDF with pdflatex."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from qlora_repeat.errors import MissingError, StageError
from qlora_repeat.system.files import remove, temporary_folder, write_bytes, write_text

INSTALL_LATEX = (
    "install the Debian packages texlive-latex-base texlive-latex-recommended texlive-latex-extra "
    "texlive-fonts-recommended texlive-publishers lmodern"
)
_MOST_PASSES = 6
_MOST_SECONDS = 300
"""A document of the kit takes seconds; one that was edited may never end."""


def compile_paper(folder: Path, tables: str = "qlora-repeat tables") -> Path:
    """Compile a folder's ``all.tex`` to ``all.pdf``, in the passes that LaTeX asks for; return its path.

    Errors name the command `tables`, which writes the folder.

    Raises:
        MissingError: ``all.tex``, pdflatex, or a class, package or font that it needs is missing.
        StageError: LaTeX fails or does not end; the message has its error.
    """
    if not (folder / "all.tex").is_file():
        raise MissingError(f"{folder / 'all.tex'}: no tables to compile; run `{tables}` first")
    if shutil.which("pdflatex") is None:
        raise MissingError(f"pdflatex: not installed; {INSTALL_LATEX}")
    with temporary_folder() as work:
        for _ in range(_MOST_PASSES):
            log = _run_latex(folder, work)
            if not re.search(r"Rerun (LaTeX|to get)", log):
                break
        write_bytes(folder / "all.pdf", (work / "all.pdf").read_bytes())
    remove(folder / "all.log")  # of an earlier failure
    return folder / "all.pdf"


def _run_latex(folder: Path, work: Path) -> str:
    """Run one pass and return its log."""
    command = ["pdflatex", "-interaction=batchmode", "-halt-on-error", "-file-line-error", "-no-shell-escape"]
    try:
        done = subprocess.run(
            [*command, f"-output-directory={work}", "all.tex"],
            cwd=folder,
            # Read and write no file but those of this folder and of LaTeX; do not break lines of the log.
            env=os.environ | {"openin_any": "p", "openout_any": "p", "max_print_line": "10000"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise StageError(f"{folder / 'all.tex'}: LaTeX did not end in {_MOST_SECONDS} seconds") from None
    path = work / "all.log"
    log = path.read_text(encoding="latin-1") if path.is_file() else done.stdout.decode("latin-1")
    if done.returncode == 0:
        return log
    if missing := re.search(r"File [`'](.+?\.(?:cls|sty|def|fd))' not found|(Font \S+) .*not loadable", log):
        raise MissingError(f"LaTeX lacks {missing[1] or missing[2]}; {INSTALL_LATEX}")
    write_text(folder / "all.log", log)
    found = re.search(r"^(?:!|\S+:\d+:) .*", log, re.MULTILINE)
    what = found[0].removeprefix("! ") if found else f"exit code {done.returncode}"
    raise StageError(f"{folder / 'all.tex'}: LaTeX fails: {what}; see {folder / 'all.log'}")
