"""Records become rows of results; tests write the records with the current inputs of their stages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkout import kit
from support.finished import SPLIT, finish
from support.places import at
from support.tiny import write_study

from qlora_repeat.records.record import Record, read_record, write_record
from qlora_repeat.records.stage_inputs import base_inputs, stage_inputs
from qlora_repeat.results.collect import collect, free_sources
from qlora_repeat.results.trial_result import TrialResult, read_results
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.randomness import PerTrial, Randomness
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import STAGES, Trial

FIRST = "tiny-neox/adamw-8bit/1"
FINGERPRINT = {
    "gpu": "A GPU",
    "cpu": "A CPU",
    "cpu_capability": "AVX2",
    "threads": 1,
    "packages": {"torch": "2.13.0"},
    "python": "3.11",
}
OUTPUTS: dict[str, dict[str, Any]] = {
    "finetune": {
        "adapter_digest": "a" * 64,
        "seeds": {"split": SPLIT, "adapter_init": 5, "data_order": 6, "dropout": 7},
        "initial_loss": 3.0,
        "final_loss": 2.0,
        "loss_curve": [[1.0, 2.0]],
        "diverged_at": None,
        "train_seconds": 10.0,
        "peak_memory_bytes": 2**20,
        "peak_memory_share": None,
        "weights": "nf4",
        "miniature": False,
    },
    "merge": {"merged_digest": "b" * 64},
    "evaluate": {"perplexity": 20.0, "perplexity_example_mean": 21.0, "test_examples": 6, "accuracy": None},
    "time": {"test_seconds": 1.0, "test_seconds_min": 0.5, "test_seconds_max": 1.5},
}
BASE = {
    "perplexity": 30.0,
    "perplexity_example_mean": 31.0,
    "accuracy": 0.5,
    "miniature": False,
    "split_seed": SPLIT,
}

Rows = Callable[..., dict[str, TrialResult]]


def write_trial(trial: Trial, **more: Any) -> None:
    """Write the records of a done trial of its study; `more` are outputs of its fine-tuning."""
    finish(trial)
    upstream: dict[str, Any] = {}
    for stage in STAGES:
        inputs = stage_inputs(trial, stage, upstream)
        outputs = OUTPUTS[stage] | (more if stage == "finetune" else {})
        left = read_record(trial.record(stage))
        assert left is not None
        record = Record(stage, trial.name, inputs, outputs, left.files, FINGERPRINT, "", "2026-01-01", 1.0)
        write_record(trial.record(stage), record)
        upstream |= outputs


def write_base(study: Study, model: str, runs: Path, cache: Path) -> None:
    test = at(study, runs, cache).base_tests(model)[0]
    inputs = base_inputs(test)
    record = Record("evaluate", test.name, inputs, BASE, {}, FINGERPRINT, "", "2026-01-01", 1.0)
    write_record(test.record, record)


def change(path: Path, **inputs: Any) -> None:
    """Change the inputs in a record."""
    record = read_record(path)
    assert record is not None
    write_record(path, Record(**(vars(record) | {"inputs": record.inputs | inputs})))


@pytest.fixture
def rows(study: Study, tmp_path: Path) -> Rows:
    """Return a function that changes the tiny study's file and returns its collected rows by trial."""

    def collected(*replacements: tuple[str, str], include_stale: bool = False) -> dict[str, TrialResult]:
        today = load_study(str(write_study(tmp_path, *replacements)))
        found = collect(at(today, tmp_path / "runs", tmp_path / "cache"), include_stale=include_stale)
        return {f"{row.model}/{row.optimizer}/{row.trial}": row for row in found}

    return collected


@pytest.fixture
def first(study: Study, tmp_path: Path) -> Trial:
    """Return the first trial of the tiny study, which is done."""
    trial = at(study, tmp_path / "runs", tmp_path / "cache").trial(FIRST)
    write_trial(trial)
    return trial


ALPHA = ("alpha = 32", "alpha = 16")


def test_a_done_trial_has_its_values_with_or_without_stale_ones(first: Trial, rows: Rows) -> None:
    for include_stale in (False, True):
        row = rows(include_stale=include_stale)[FIRST]
        assert (row.status, row.perplexity, row.stale_inputs, row.measured) == ("done", 20.0, [], True)
        assert (row.train_seconds, row.adapter_init_seed, row.test_seconds) == (10.0, 5, 1.0)
        assert (row.skipped_steps, row.randomness) == (None, getattr(first.study, "profile", None))


def test_a_stale_trial_has_values_on_request_and_names_what_changed(first: Trial, rows: Rows) -> None:
    plain = rows(ALPHA)[FIRST]
    assert (plain.status, plain.perplexity, plain.stale_inputs, plain.measured) == ("stale", None, [], False)
    asked = rows(ALPHA, ("timing_repeats = 2", "timing_repeats = 3"), include_stale=True)[FIRST]
    assert (asked.status, asked.perplexity, asked.final_loss, asked.measured) == ("stale", 20.0, 2.0, True)
    assert asked.stale_inputs == ["lora", "timing_repeats"]


def test_a_stale_trial_that_lacks_a_stage_has_no_values(first: Trial, rows: Rows) -> None:
    first.record("time").unlink()
    row = rows(ALPHA, include_stale=True)[FIRST]
    assert (row.status, row.perplexity, row.measured) == ("stale", None, False)


@pytest.mark.parametrize(
    ("stage", "name"), [("merge", "adapter_digest"), ("evaluate", "merged_digest"), ("time", "merged_digest")]
)
def test_stages_of_different_models_give_no_values(stage: Any, name: str, first: Trial, rows: Rows) -> None:
    change(first.record(stage), **{name: "c" * 64})
    row = rows(include_stale=True)[FIRST]
    assert (row.status, row.perplexity, row.final_loss, row.measured) == ("stale", None, None, False)


def test_a_failed_or_missing_trial_has_no_values_on_request_either(first: Trial, rows: Rows) -> None:
    first.failure.write_text('{"error": "x"}')
    found = rows(ALPHA, include_stale=True)
    assert (found[FIRST].status, found[FIRST].measured) == ("failed", False)
    assert found["tiny-neox/adamw-8bit/2"].status == "missing"


def test_a_stale_base_test_is_collected_on_request(
    study: Study, first: Trial, rows: Rows, tmp_path: Path
) -> None:
    write_base(study, "tiny-neox", tmp_path / "runs", tmp_path / "cache")
    fresh = rows(include_stale=True)[FIRST]
    assert (fresh.base_perplexity, fresh.stale_base_inputs) == (30.0, [])
    examples = ("examples = 6", "examples = 7")
    assert rows(examples)[FIRST].base_perplexity is None
    asked = rows(examples, include_stale=True)
    assert (asked[FIRST].base_perplexity, asked[FIRST].stale_base_inputs) == (30.0, ["examples"])
    assert asked["tiny-llama-chat/adamw-8bit/1"].stale_base_inputs == []


def test_a_base_test_on_another_split_is_not_used_for_a_trial(
    study: Study, rows: Rows, tmp_path: Path
) -> None:
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    write_base(study, "tiny-neox", runs, cache)
    for number, split in ((1, SPLIT), (2, SPLIT + 1)):
        finish(at(study, runs, cache).trial(f"tiny-neox/adamw-8bit/{number}"), split)
    found = rows()
    own, other = found[FIRST], found["tiny-neox/adamw-8bit/2"]
    assert own.status == other.status == "done"
    assert own.perplexity == other.perplexity == 8.25
    assert (own.base_perplexity, own.base_perplexity_example_mean, own.base_accuracy) == (30.0, 31.0, 0.5)
    assert (other.base_perplexity, other.base_perplexity_example_mean, other.base_accuracy) == (None,) * 3
    assert other.miniature is False


def test_skipped_steps_are_collected(study: Study, rows: Rows, tmp_path: Path) -> None:
    write_trial(at(study, tmp_path / "runs", tmp_path / "cache").trial(FIRST), skipped_steps=2)
    assert rows()[FIRST].skipped_steps == 2


def test_a_row_names_the_free_sources_of_randomness(study: Study, rows: Rows) -> None:
    assert rows()[FIRST].free_sources == free_sources(study.randomness)
    profiles = load_study("paper").profiles
    assert {name: free_sources(profile) for name, profile in profiles.items()} == {
        "as-published": ["adapter_init", "kernels"],
        "seeded": ["kernels"],
        "bitwise": [],
    }
    each = Randomness(PerTrial(1), 0, "fresh", PerTrial(1), 0, "deterministic")
    assert free_sources(each) == ["split", "data_order", "dropout"]


def test_collect_counts_stale_trials_and_tables_name_them(study: Study, tmp_path: Path) -> None:
    for trial in at(study, tmp_path / "runs", tmp_path / "cache").trials()[:3]:
        write_trial(trial)
    path = write_study(tmp_path, ALPHA)
    given = (path, "--runs", tmp_path / "runs", "--cache", tmp_path / "cache")
    plain = kit("collect", *given)
    assert (plain.returncode, plain.stderr) == (0, "")
    results = tmp_path / "runs/tiny/results.jsonl"
    assert plain.stdout.splitlines() == [
        f"{results}: 0 of 8 trials done",
        f"3 stale: `qlora-repeat status {path} --runs {tmp_path}/runs --cache {tmp_path}/cache` says why; "
        "--include-stale also collects them",
    ]
    asked = kit("collect", *given, "--include-stale")
    assert asked.stdout.splitlines()[1] == "3 stale, 3 of them with values; tables will name them"
    assert [row.measured for row in read_results(results)] == [True] * 3 + [False] * 5
    found = json.loads((tmp_path / "runs/tiny/statistics.json").read_text())
    assert {(each["model"], each["optimizer"]): each["trials"] for each in found["arms"]} == {
        ("tiny-neox", "adamw-8bit"): 2,
        ("tiny-neox", "adamw-32bit"): 1,
        ("tiny-llama-chat", "adamw-8bit"): 0,
        ("tiny-llama-chat", "adamw-32bit"): 0,
    }
    assert found["arms"][0]["measures"]["perplexity"]["sd"] == 0
    tables = kit("tables", path, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert tables.returncode == 0, tables.stderr
    text = (tmp_path / "out/table-01.md").read_text()
    assert "Stale (changed since: lora): Tiny NeoX 8-bit run 1, 2; Tiny NeoX 32-bit run 1." in text
