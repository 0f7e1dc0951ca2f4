"""A process that runs a trial imports only what the stages use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import at
from support.tiny import write_study

NOT_USED = ["datasets", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn"]
"""Packages of other parts of the kit, or that libraries import if they are installed."""

SCRIPT = """
import json, sys
from pathlib import Path
from qlora_repeat.execution.run_trial import run_base_test, run_trial
from qlora_repeat.study.loading import open_workspace

study, cache, number, stages = sys.argv[1:]
workspace = open_workspace(study, runs=Path(study).with_name("runs"), cache=Path(cache))
trial = workspace.trial(f"tiny-neox/adamw-8bit/{number}")
if "evaluate" in stages:  # as `qlora-repeat trial` does
    run_base_test(workspace.base_tests(trial.model_name)[0], lambda *report: None)
run_trial(trial, stages.split(","), lambda *report: None)
imported = sorted({name.partition(".")[0] for name in sys.modules})
import datasets, scipy.special
rows = datasets.Dataset.from_list([{"quote": "can be imported later"}])
print(json.dumps([imported, len(rows)]))
"""


def imported(study: Path, cache: Path, stages: str, number: int = 1) -> set[str]:
    """Return the packages that a new process has imported after these stages of a trial."""
    command = [sys.executable, "-c", SCRIPT, study, cache, number, stages]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    names, rows = json.loads(done.stdout.splitlines()[-1])
    assert rows == 1
    return set(names)


def test_a_process_that_trains_and_tests_imports_no_library_of_tables_or_figures(
    cache: Path, tmp_path: Path
) -> None:
    names = imported(write_study(tmp_path), cache, "finetune,merge,evaluate,time")
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= names
    assert names.isdisjoint(NOT_USED)


def test_what_is_imported_does_not_change_the_bits(cache: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path, ('profile = "as-published"', 'profile = "bitwise"'))
    imported(study, cache, "finetune")
    before = "import datasets, pandas, scipy.optimize, transformers\n"
    command = [sys.executable, "-c", before + SCRIPT, study, cache, 2, "finetune"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    workspace = at(study, tmp_path / "runs", cache)
    one, two = (workspace.trial(f"tiny-neox/adamw-8bit/{number}") for number in (1, 2))
    assert one.trace.read_bytes() == two.trace.read_bytes()


AS_IF = """
import ctypes
found = ctypes.CDLL.__getattr__
ctypes.CDLL.__getattr__ = lambda self, name: (lambda: True) if "has_avx512bf16" in name else found(self, name)
"""
"""Make bitsandbytes believe that the processor has AVX512-BF16."""


@pytest.mark.parametrize("stages", ["finetune,merge", "merge"])
def test_bitsandbytes_gets_no_kernels_from_a_hub(stages: str, cache: Path, tmp_path: Path) -> None:
    """It imports a package for that where it is installed; here this ends the process."""
    study, package = write_study(tmp_path), tmp_path / "packages" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('kernels was imported')\n")
    if stages == "merge":
        imported(study, cache, "finetune")

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = map(str, [sys.executable, "-c", AS_IF + script, *arguments])
        path = os.pathsep.join([str(package.parent), *sys.path])
        return subprocess.run(
            [*command], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
        )

    done = run(SCRIPT, study, cache, 1, stages)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "kernels was imported" in run("import bitsandbytes").stderr
