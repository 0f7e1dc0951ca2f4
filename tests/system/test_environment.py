"""Variables of the environment: the list is complete, and what would change a trial is removed."""

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_repeat.system import environment
from qlora_repeat.system.environment import clear_environment, notes, removed_variables, rule, too_late
from qlora_repeat.system.fingerprint import environment as recorded

_READ = re.compile(
    r"""(?:environ(?:\.(?:get|pop|setdefault))?\s*[\[(]|getenv\(|parse_\w+_from_env\(|is_env_variable_\w+\()\s*"""
    r"""["'](?P<name>[A-Z]\w+)["']|["'](?P<tested>[A-Z]\w+)["'] (?:not )?in os\.environ"""
    r"""|get_int_from_env\(\s*\[(?P<several>[^\]]*)\]"""
)
_UNUSED = re.compile(r"testing|/commands?/|/cli/|/test_|/models/(?!auto)|/continuous_batching|launch\.py")


def variables_of(library: str) -> dict[str, Path]:
    """Return the variables that a library's sources read by a literal name, and where."""
    found = importlib.util.find_spec(library)
    assert found is not None and found.origin is not None
    root, names = Path(found.origin).parent, dict[str, Path]()
    for file in root.rglob("*.py"):
        if not _UNUSED.search(f"/{file.relative_to(root.parent)}"):
            for match in _READ.finditer(file.read_text(encoding="utf-8", errors="replace")):
                one, several = match["name"] or match["tested"], match["several"]
                names |= dict.fromkeys([one] if one else re.findall(r'"(\w+)"', several), file)
    return names


LIBRARIES = ("accelerate", "transformers", "peft", "bitsandbytes", "datasets", "huggingface_hub")


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_variable_that_a_library_reads_is_in_the_list(library: str) -> None:
    """A new version of a library may read new ones: decide in `VARIABLES` what the kit does about them."""
    names = variables_of(library)
    assert len(names) >= 2
    unknown = {name: path for name, path in names.items() if name != "FOO" and rule(name) is None}  # docs
    assert unknown == {}


def test_the_search_finds_what_is_known_to_leak() -> None:
    names = variables_of("accelerate") | variables_of("transformers")
    leaks = {"ACCELERATE_MIXED_PRECISION", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"}
    assert {*leaks, "MPI_LOCALRANKID", "USE_HUB_KERNELS"} <= names.keys()


@pytest.fixture
def nothing_removed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(environment, "_removed", {})
    monkeypatch.setattr(environment, "_too_late", [])
    yield


@pytest.mark.usefixtures("nothing_removed")
def test_what_would_change_a_trial_is_removed_and_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    leaks = (
        "ACCELERATE_MIXED_PRECISION",
        "MKL_NUM_THREADS",
        "NVIDIA_TF32_OVERRIDE",
        "OMPI_COMM_WORLD_SIZE",
        "RANK",
    )
    for name in leaks:
        os.environ[name] = "1"
    kept = {"CUDA_VISIBLE_DEVICES": "", "HF_HOME": "/hub", "SLURM_JOB_ID": "7", "OMPI_MCA_btl": "tcp"}
    os.environ |= kept | {"ATEN_CPU_CAPABILITY": "avx2", "USE_HUB_KERNELS": "YES"}
    clear_environment()
    assert set(leaks).isdisjoint(os.environ) and kept.items() <= os.environ.items()
    assert [*removed_variables()] == sorted(leaks)
    ignored, used = notes()
    assert ignored == f"Ignores {', '.join(leaks)}: the study decides, not the environment"
    assert used.startswith("Uses ATEN_CPU_CAPABILITY")
    assert (os.environ["USE_HUB_KERNELS"], os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"]) == ("NO", "0")
    assert recorded()["ATEN_CPU_CAPABILITY"] == "avx2"
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD" not in recorded(), "old records do not have it"
    assert too_late() is None
    clear_environment()
    assert notes() == [ignored, used]


@pytest.mark.usefixtures("nothing_removed")
def test_what_a_loaded_torch_has_read_is_an_error() -> None:
    os.environ |= {"OMP_DYNAMIC": "true", "RANK": "1"}
    clear_environment()
    line = too_late()
    assert line is not None and line.startswith("OMP_DYNAMIC: set when this process imported torch")
    clear_environment()
    assert too_late() == line, "it still has its value"
