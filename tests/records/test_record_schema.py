"""A record with wrong keys or types is damaged and named with the key, and other trials are unaffected."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from support.checkout import kit
from support.finished import finish_study
from support.places import at

from qlora_repeat.records.record import Record, read_record, write_record
from qlora_repeat.records.record_schema import misfit
from qlora_repeat.records.trial_state import base_damages, stage_states
from qlora_repeat.results.collect import collect
from qlora_repeat.results.trial_result import Response
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Trial

NAME = "tiny-neox/adamw-8bit/1"
NO_CACHE = Path("/nonexistent")
RESPONSE = {"prompt": "p", "temperature": 1, "top_p": 0.5, "text": "t", "answer": None, "seed": 3}
GONE = object()
"""Marks a missing key."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """Return the finished tiny study and its runs; each test restores what it changes."""
    from support.tiny import write_study

    folder = tmp_path_factory.mktemp("finished")
    study = load_study(str(write_study(folder, ("keep_merged = false", "keep_merged = true"))))
    finish_study(study, folder, NO_CACHE)
    return study, folder


@pytest.fixture
def trial(runs: tuple[Study, Path]) -> Trial:
    return at(runs[0], runs[1], NO_CACHE).trial(NAME)


@pytest.fixture
def rewrite(trial: Trial) -> Any:
    """Return a function that sets a dotted key of a record and its digest; restore the record afterwards."""
    before: dict[Path, bytes] = {}

    def rewritten(path: Path, key: str, value: Any) -> None:
        before.setdefault(path, path.read_bytes())
        record = read_record(path)
        assert record is not None
        content = dict(vars(record))
        *above, last = key.split("|")
        within = content
        for part in above:
            within[part] = dict(within[part])
            within = within[part]
        if value is GONE:
            del within[last]
        else:
            within[last] = value
        write_record(path, Record(**content))

    yield rewritten
    for path, text in before.items():
        path.write_bytes(text)


Rewrite = Callable[[Path, str, Any], None]

MISFITS: list[tuple[str, str, Any, str]] = [
    ("finetune", "outputs|seeds", GONE, "no outputs.seeds"),
    ("finetune", "outputs|seeds", [1], "outputs.seeds is [1]"),
    ("finetune", "outputs|seeds|split", GONE, "no outputs.seeds.split"),
    ("finetune", "outputs|seeds|dropout", 1.5, "outputs.seeds.dropout is 1.5"),
    ("finetune", "outputs|seeds|a\nb", "7", "outputs.seeds.'a\\nb' is '7'"),
    ("finetune", "outputs|adapter_digest", None, "outputs.adapter_digest is None"),
    ("finetune", "outputs|final_loss", "nan", "outputs.final_loss is 'nan'"),
    ("finetune", "outputs|loss_curve", [[1.0]], "no outputs.loss_curve.0.1"),
    ("finetune", "outputs|loss_curve", [[math.nan, 2.0]], "outputs.loss_curve.0.0 is nan"),
    ("finetune", "outputs|diverged_at", True, "outputs.diverged_at is True"),
    ("finetune", "outputs|diverged_at", -1, "outputs.diverged_at is -1"),
    ("finetune", "outputs|peak_memory_bytes", 2**63, "outputs.peak_memory_bytes is 9223372036854775808"),
    ("finetune", "fingerprint|kernels", [], "fingerprint.kernels is []"),
    ("finetune", "outputs|miniature", 0, "outputs.miniature is 0"),
    ("finetune", "files", {}, "files has no trace.jsonl"),
    ("finetune", "files|adapter/adapter_model.safetensors", GONE, "files has no adapter/adapter_model.saf"),
    ("finetune", "files|adapter/adapter_config.json", GONE, "files has no adapter/adapter_config.json"),
    ("finetune", "fingerprint", {}, "no fingerprint.gpu"),
    ("finetune", "fingerprint|packages", ["torch"], "fingerprint.packages is ['torch']"),
    ("merge", "outputs|merged_digest", 3, "outputs.merged_digest is 3"),
    ("merge", "files|merged/model.safetensors", GONE, "files has no merged/*.safetensors"),
    ("merge", "inputs|settings", None, "inputs.settings is None"),
    ("evaluate", "outputs|perplexity", GONE, "no outputs.perplexity"),
    ("evaluate", "outputs|perplexity", "7", "outputs.perplexity is '7'"),
    ("evaluate", "outputs|accuracy", False, "outputs.accuracy is False"),
    ("evaluate", "outputs|responses", [{**RESPONSE, "mood": 1}], "unknown outputs.responses.0.mood"),
    ("evaluate", "outputs|repeated_responses", [{"prompt": "p"}], "no outputs.repeated_responses.0."),
    ("evaluate", "inputs|settings", GONE, "no inputs.settings"),
    ("time", "outputs|test_seconds_max", None, "outputs.test_seconds_max is None"),
    ("time", "fingerprint|python", GONE, "no fingerprint.python"),
]


@pytest.mark.parametrize(("stage", "key", "value", "words"), MISFITS)
def test_a_record_with_wrong_keys_or_types_is_damaged_and_other_trials_are_unaffected(
    stage: Any, key: str, value: Any, words: str, trial: Trial, rewrite: Rewrite
) -> None:
    path = trial.record(stage)
    rewrite(path, key, value)
    state = stage_states(trial)[stage]
    assert (state.state, state.record) == ("damaged", None)
    assert state.damage is not None
    assert state.damage.startswith(f"{path}: not a valid record ({words}")
    assert state.damage.endswith(f"); `{trial.workspace.command('run')}` runs its stage again")
    assert len(state.damage.splitlines()) == 1
    rows = collect(trial.workspace)
    assert [row.status for row in rows] == ["damaged"] + ["done"] * 7
    assert rows[0].perplexity is None


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("outputs|miniature", GONE, "no outputs.miniature"),
        ("outputs|split_seed", "6", "outputs.split_seed is '6'"),
        ("outputs|perplexity_example_mean", [], "outputs.perplexity_example_mean is []"),
        ("inputs|settings", 1, "inputs.settings is 1"),
    ],
)
def test_a_base_test_with_wrong_keys_or_types_gives_no_number(
    key: str, value: Any, words: str, trial: Trial, rewrite: Rewrite
) -> None:
    path = trial.workspace.base_tests("tiny-neox")[0].record
    rewrite(path, key, value)
    assert base_damages(trial.workspace) == [
        f"tiny-neox/base/1 is damaged: {path}: not a valid record ({words}); "
        f"`{trial.workspace.command('run')}` runs its stage again"
    ]
    rows = [row for row in collect(trial.workspace) if row.model == "tiny-neox"]
    assert {(row.status, row.base_perplexity, row.perplexity) for row in rows} == {("done", None, 8.25)}


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("finetune", "outputs|final_loss", math.nan),
        ("finetune", "outputs|train_seconds", 3),
        ("finetune", "outputs|loss_curve", [[0, math.inf], [1.5, 2]]),
        ("finetune", "outputs|diverged_at", 2),
        ("finetune", "outputs|skipped_steps", None),
        ("finetune", "outputs|novelty", {"a": 1}),
        ("evaluate", "outputs|perplexity", math.inf),
        ("evaluate", "outputs|responses", [RESPONSE]),
        ("time", "fingerprint|gpu", "A GPU"),
    ],
)
def test_optional_and_additional_outputs_are_no_damage(
    stage: Any, key: str, value: Any, trial: Trial, rewrite: Rewrite
) -> None:
    rewrite(trial.record(stage), key, value)
    record = read_record(trial.record(stage))
    assert record is not None
    assert misfit(record) is None
    (row, *_) = collect(trial.workspace)
    assert row.status == "done"


def test_recorded_responses_fit_a_row_of_results(trial: Trial, rewrite: Rewrite) -> None:
    assert RESPONSE.keys() == get_type_hints(Response).keys()
    rewrite(trial.record("evaluate"), "outputs|responses", [RESPONSE])
    (row, *_) = collect(trial.workspace)
    assert row.responses == [Response(**RESPONSE)]  # type: ignore[arg-type]


def test_commands_name_the_damage_in_one_line(trial: Trial, rewrite: Rewrite, tmp_path: Path) -> None:
    rewrite(trial.record("finetune"), "outputs|seeds", GONE)
    line = f"{trial.record('finetune')}: not a valid record (no outputs.seeds); "
    options = [trial.workspace.runs / "tiny.toml", "--runs", trial.workspace.runs, "--cache", tmp_path]
    for command, code in (("status", 0), ("check", 3), ("collect", 0)):
        done = kit(command, *options)
        assert done.returncode == code, done.stderr
        assert line in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_the_schema_loads_no_large_library() -> None:
    script = "import sys, qlora_repeat.records.record_schema; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "transformers", "datasets"} & set(done.stdout.split()) == set()
