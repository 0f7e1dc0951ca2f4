"""The code blocks of docs/api.md run in order as one script without a `__main__` guard."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support.checkout import ROOT
from support.tiny import write_study

TEXT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_block_runs(cache: Path, tmp_path: Path) -> None:
    write_study(
        tmp_path,
        ('profile = "as-published"', 'profile = "bitwise"'),
        ('title = "Tiny NeoX"', 'title = "Tiny NeoX"\ncounterpart = "gpt-neox-20b"'),
    )
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    script = "\n".join(blocks).replace("pocket@bitwise", "tiny").replace("smollm2-135m", "tiny-neox")
    (tmp_path / "script.py").write_text(script)
    places = {"QLORA_REPEAT_CACHE": str(cache), "QLORA_REPEAT_RUNS": "runs"}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | places,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count(" at a time") == 2, "the script ran only once, not in each trial's process"
    assert "study tiny: 2 jobs (1 trial, 1 test of a base), " in done.stderr
    assert "study tiny: 8 jobs (7 trials, 1 test of a base), " in done.stderr, "the rest"
    for words in ("supported", "alike", "bitwise", "out/report.html", "has the optimizers"):
        assert words in done.stdout, words
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"table-01.tex", "figure-04.pdf", "report.html"} <= written


def test_the_document_and_its_lines_are_short() -> None:
    assert len(TEXT.split()) <= 700
    assert max(map(len, TEXT.splitlines())) <= 100
