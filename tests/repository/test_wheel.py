"""The kit installed from its wheel, in an empty folder, with the locked packages and without a checkout."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT, kit

from qlora_repeat.study.trial import STAGES

STUDY = "pocket@bitwise@2-steps-4-rows"
TRIAL = "smollm2-135m/adamw-8bit/2"  # the first trial would also answer each prompt seven times


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment with the wheel and the packages of the tests' environment, without its kit."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder / "dist"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    environment = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site_packages,) = environment.glob("lib/python3*/site-packages")
    # Python adds these folders, but ignores .pth files in them, such as that of the kit.
    seen = [path for path in sys.path if Path(path).name == "site-packages"]
    (site_packages / "locked.pth").write_text("\n".join(seen))
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python"]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel]
    subprocess.run(install, check=True)
    return environment


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty folder to run the commands in."""
    return tmp_path_factory.mktemp("empty")


def run(environment: Path, folder: Path, *command: object) -> "subprocess.CompletedProcess[str]":
    variables = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith("QLORA_REPEAT_")
    }
    return subprocess.run(
        [environment / "bin" / str(command[0]), *map(str, command[1:])],
        cwd=folder,
        env=variables | {"QLORA_REPEAT_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )


def test_the_installed_kit_is_imported_and_typed(environment: Path, empty: Path) -> None:
    found = run(environment, empty, "python", "-c", "import qlora_repeat; print(qlora_repeat.__path__[0])")
    folder = Path(found.stdout.strip())
    assert folder.is_relative_to(environment)
    assert (folder / "py.typed").is_file()


def test_the_papers_tables_are_the_same_as_from_a_checkout(
    environment: Path, empty: Path, tmp_path: Path
) -> None:
    done = run(environment, empty, "qlora-repeat", "tables", "published")
    assert done.returncode == 0, done.stderr
    assert kit("tables", "published", "--out", tmp_path).returncode == 0
    expected = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    made = {path.name: path.read_bytes() for path in (empty / "paper/build/published").iterdir()}
    assert "tables.md" in made
    assert made == expected


def test_a_trial_of_the_kits_own_study_runs(environment: Path, empty: Path) -> None:
    done = run(environment, empty, "qlora-repeat", "trial", TRIAL, "--study", STUDY)
    assert done.returncode == 0, done.stderr
    folder = empty / "runs" / STUDY / "smollm2-135m" / "adamw-8bit" / "trial-2"
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert re.search(r"^adapter [0-9a-f]{64}$", done.stdout, re.MULTILINE)
    assert {f"{stage}.json" for stage in STAGES} <= {path.name for path in folder.iterdir()}


def test_an_unknown_study_gives_the_names_of_those_in_the_wheel(environment: Path, empty: Path) -> None:
    done = run(environment, empty, "qlora-repeat", "tables", "nonesuch")
    assert done.returncode == 3
    assert done.stderr.strip().endswith(
        "there are collapse, collapse-averaging, paper, pocket, pocket-averaging, tasks"
    )


def test_the_lock_file_for_a_missing_package_is_in_the_wheel(environment: Path, empty: Path) -> None:
    script = (
        "from qlora_repeat.assets.package_files import package_folder; package_folder('some==1', 'nonesuch')"
    )
    done = run(environment, empty, "python", "-c", script)
    (command,) = re.findall(r"package some==1 is not installed; install it with `(.+)`", done.stderr)
    lock = Path(shlex.split(command)[-1])
    assert lock.is_relative_to(environment)
    assert lock.read_bytes() == (ROOT / "lockfiles" / "pocket.txt").read_bytes()
