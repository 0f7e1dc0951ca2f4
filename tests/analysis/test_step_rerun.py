"""The operator that made two trials of the tiny study differ, found by running both again."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.places import at
from support.tiny import write_study
from support.trials import quiet

from qlora_repeat.cli.main import cli
from qlora_repeat.execution.run_trial import run_trial

NAME = "tiny-neox/adamw-8bit/1"


@pytest.fixture(scope="module")
def folders(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of three trials with equal seeds, but other kernels or threads."""
    found = {}
    for name, profile, threads in (
        ("plain", "seeded", 1),
        ("kernels", "bitwise", 1),
        ("threads", "seeded", 2),
    ):
        folder = tmp_path_factory.mktemp(name)
        study = write_study(folder, ("threads = 1", f"threads = {threads}"), ("digest_every = 1", DIGESTS))
        trial = at(f"{study}@{profile}", folder / "runs", cache).trial(NAME)
        run_trial(trial, ["finetune"], quiet)
        found[name] = trial.folder
    return found


DIGESTS = "digest_every = 100"
"""Only the first and last step then have digests."""


def diff(cache: Path, study: Path, first: Path, second: Path) -> dict[str, Any]:
    given = ["diff", first, second, "--study", study, "--cache", cache, "--operations", "--json", "-q"]
    done = CliRunner().invoke(cli, [str(each) for each in given])
    assert done.exit_code in (0, 7), (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_other_kernels_are_named(cache: Path, study_file: Path, folders: dict[str, Path]) -> None:
    before = {path: path.read_bytes() for path in folders["plain"].rglob("*") if path.is_file()}
    found = diff(cache, study_file, folders["plain"], folders["kernels"])["operations"]
    assert found["step"] == 1
    assert found["found"]["kind"] == "operator"
    first = found["found"]["first"]
    assert first["name"] == "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert (first["module"], first["phase"]) == ("gpt_neox.layers.0.attention", "forward")
    assert "in gpt_neox.layers.0.attention, forward" in found["text"]
    assert "kernels (default and deterministic)" in found["text"]
    assert before == {path: path.read_bytes() for path in folders["plain"].rglob("*") if path.is_file()}


def test_an_operator_that_depends_on_threads_is_named(
    cache: Path, study_file: Path, folders: dict[str, Path]
) -> None:
    diffed = diff(cache, study_file, folders["plain"], folders["threads"])
    if diffed["divergence"] is None:
        pytest.skip("one thread and two threads give the same bits on this processor")
    found = diffed["operations"]
    assert found["found"]["kind"] == "output"
    assert found["found"]["first"]["inputs"] == found["found"]["second"]["inputs"]
    assert "threads (1 and 2)" in found["text"]
