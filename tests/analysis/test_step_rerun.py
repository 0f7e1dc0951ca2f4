"""The operator that made two trials of the tiny study differ, found by running both again."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.places import at
from support.tiny import write_study
from support.trials import quiet

from qlora_repeat.cli.main import cli
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.record import keep, read_record, write_record
from qlora_repeat.records.trace import Step, read_trace, trace_line

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


def changed(folder: Path, copy: Path, change: Callable[[Step], Step]) -> Path:
    """Copy a trial's folder with a change to step 1 of its trace, which its record then has."""
    shutil.copytree(folder, copy)
    steps, record = read_trace(folder / "trace.jsonl"), read_record(folder / "finetune.json")
    assert record is not None
    steps[1] = change(steps[1])
    (copy / "trace.jsonl").write_text("".join(map(trace_line, steps)))
    kept = record.files | {"trace.jsonl": keep(copy / "trace.jsonl")}
    write_record(copy / "finetune.json", replace(record, files=kept))
    return copy


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


def test_the_first_step_is_found_also_where_no_record_has_its_digest(
    cache: Path, study_file: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    def less(step: Step) -> Step:
        return replace(step, loss=None, gradient_norm=None, adapter=None)

    first, second = (changed(folders[name], tmp_path / name, less) for name in ("plain", "kernels"))
    found = diff(cache, study_file, first, second)
    assert found["divergence"]["step"] > 1
    assert found["operations"]["step"] == 1
    assert found["operations"]["found"]["first"]["module"] == "gpt_neox.layers.0.attention"


def test_a_record_that_does_not_repeat_names_no_operator(
    cache: Path, study_file: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    forged = changed(folders["plain"], tmp_path / "forged", lambda step: replace(step, loss=1.0))
    found = diff(cache, study_file, folders["plain"], forged)["operations"]
    assert found["found"] is None
    assert f"{forged} does not repeat here: its re-run differs from step 1 on" in found["reason"]
