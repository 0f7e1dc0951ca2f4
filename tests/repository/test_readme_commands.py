"""Run every command of the README: here on a study of seconds, or in the test that is named."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.tiny import write_study

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRIAL, TINY = "smollm2-135m/adamw-8bit", "tiny-neox/adamw-8bit"

HERE = [
    "make all TRIALS=1",
    "make all",
    "make run TRIAL=smollm2-135m/adamw-8bit/1 RANDOMNESS=bitwise",
    "make verify TRIAL=smollm2-135m/adamw-8bit/1 RANDOMNESS=bitwise",
    "qlora-repeat pack pocket",
    "qlora-repeat check pocket.zip",
    "qlora-repeat unpack pocket.zip",
    "qlora-repeat verify pocket/runs/pocket/smollm2-135m/adamw-8bit/trial-3",
    "make all RANDOMNESS=bitwise",
    "make tables STUDY=published",
    "make plan STUDY=paper GPU=a100-80gb",
]
"""Commands to run in this order; each uses the results of those before it."""
ELSEWHERE = {
    "make test": "repository/test_readme_commands.py",  # this test is part of it
    "make attribute": "analysis/attribution/test_experiment.py",
    "qlora-repeat init": "planning/test_new_study.py",
    "make bench": "repository/test_speed.py",  # only the plain script, on a tiny model
    "make paper": "render/test_pdf.py",
    "make rehearsal": "assets/test_rehearsal.py",
    "qlora-repeat run collapse": "stages/test_legacy_qmap.py",
    "make image docker-all STUDY=paper": "repository/test_image.py",
    "make sif apptainer-all STUDY=paper": "repository/test_image.py",  # Apptainer is tested by hand
    "qlora-repeat submit paper --partition gpu --gpus a100:1 --image qlora-repeat.sif": (
        "slurm/test_submit.py"
    ),
}


def shown() -> list[str]:
    """Return the commands in the README's code blocks and inline code."""
    blocks = re.findall(r"^ {4}(?:\.venv/bin/)?((?:make|qlora-repeat) .+?)(?:  +#.*)?$", README, re.MULTILINE)
    spoken = re.findall(r"`((?:make|qlora-repeat) [^`]+)`", README.replace("\n", " "))
    return list(dict.fromkeys(command.strip() for command in [*blocks, *spoken]))


def test_every_command_is_run_somewhere() -> None:
    assert sorted(set(shown()) - {*HERE, *ELSEWHERE, "make help"}) == []
    assert sorted({*HERE, *ELSEWHERE} - set(shown())) == []
    for name in ELSEWHERE.values():
        assert (ROOT / "tests" / name).is_file()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    write_study(folder, ("trials = 2", "trials = 1"), ("\nsteps = 3", "\nsteps = 2"))
    return folder


@pytest.mark.parametrize("command", HERE)
def test_a_command_of_the_readme_works(command: str, folder: Path, cache: Path) -> None:
    study = str(folder / "tiny.toml")
    words = shlex.split(command.replace(TRIAL, TINY).replace("trial-3", "trial-1"))
    if words[0] == "make":
        given = [] if "STUDY=" in command else [f"STUDY={study}"]
        words += [*given, f"KIT_PYTHON={sys.executable}", f"OUT={folder / 'out'}"]
    else:
        words[0] = str(Path(sys.executable).with_name("qlora-repeat"))
        packed = folder / "pocket"
        words = [
            word.replace("pocket/runs/pocket", f"{packed}/runs/tiny").replace(
                "pocket.zip", f"{folder}/pocket.zip"
            )
            for word in words
        ]
        if words[1] == "pack":
            words[2:] = [study, "--out", str(folder / "pocket.zip")]
    environment = os.environ | {"QLORA_REPEAT_RUNS": str(folder / "runs"), "QLORA_REPEAT_CACHE": str(cache)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if command == "make all":
        assert (folder / "out" / "report.html").is_file() and (folder / "out" / "table-01.md").is_file()
    if "verify" in words:
        assert ": bitwise\n" in done.stdout
