"""`qlora-repeat selftest` as its user sees it."""

import json
from pathlib import Path

from support.checkout import kit


def test_this_machine_passes_and_the_results_are_kept(tmp_path: Path) -> None:
    done = kit("selftest", "--runs", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    *lines, last = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["passed"] * 10
    assert "two processes, deterministic kernels: the same bits: 4 of 4 trials" in done.stdout
    (path,) = tmp_path.iterdir()
    assert last.startswith("self-test of 20")
    assert last.endswith(str(path))
    found = json.loads(path.read_text())
    assert [check["outcome"] for check in found["checks"]] == ["passed"] * 10
    assert found["fingerprint"]["packages"]["torch"]
