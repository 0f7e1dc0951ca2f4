"""The self-test passes on this machine, and finds each fault that is planted in its processes."""

import functools
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from support.planted import FaultyTrial, NoisyBaseTest, NoisyStep, planned_with_another_activation

from qlora_repeat.analysis import step_rerun
from qlora_repeat.execution.process_pool import Job
from qlora_repeat.selftest import checks
from qlora_repeat.selftest.bench import Bench, fill_cache, self_test_study
from qlora_repeat.selftest.full_size import check_full_size, paper_hours, run_full_size
from qlora_repeat.selftest.jobs import Call

SMALL = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


class Ignored:
    def started(self, *told: Any) -> None: ...
    def progress(self, *told: Any) -> None: ...
    def ended(self, *told: Any) -> None: ...


def watch(jobs: Sequence[Job], workers: int) -> AbstractContextManager[Ignored]:
    return nullcontext(Ignored())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("selftest")
    made = Bench(folder, self_test_study(folder, gpu=False, sizes=SMALL), gpu=False, watch=watch)
    made.run([Call("models", folder, fill_cache, (made.workspace("first"),))])
    return made


def without_trials(models: Bench, folder: Path) -> Bench:
    """Return a bench with the same models and no trials."""
    folder.mkdir()
    (folder / "cache").symlink_to(models.folder / "cache")
    return Bench(folder, models.study, gpu=False, watch=watch)


@pytest.fixture
def bench(models: Bench, tmp_path: Path) -> Bench:
    return without_trials(models, tmp_path / "bench")


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(checks, "ChangedTrial", functools.partial(FaultyTrial, fault=fault))


def test_a_nondeterministic_operator_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "noisy_operator")
    outcome, figure, _ = checks.check_deterministic(bench)
    assert outcome == "failed"
    assert "gpt-neox/adamw-8bit/1 differs from step 1 on (loss)" in figure
    assert figure.count("differs") == 4


def test_with_default_kernels_the_first_operation_that_differs_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "noisy_operator")
    monkeypatch.setattr(step_rerun, "_StepJob", NoisyStep)
    outcome, figure, _ = checks.check_default(bench)
    assert outcome == "passed", "default kernels promise nothing"
    assert re.search(r"differs from step 1 .*; first operation: aten::add in \S+ \(forward\)$", figure)


def test_tests_of_a_base_that_differ_are_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BaseTestJob", NoisyBaseTest)
    outcome, figure, _ = checks.check_base_tests(bench)
    assert outcome == "failed"
    assert figure.startswith("gpt-neox: perplexities ")


def test_scaler_state_that_is_not_restored_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "scaler_not_restored")
    outcome, figure, _ = checks.check_resume(bench)
    assert outcome == "failed"
    assert "differs from step 4 on" in figure


def test_a_merged_model_with_another_scale_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run([checks.job(trial) for trial in bench.trials("first", optimizers=1)])
    plant(monkeypatch, "merged_twice")
    outcome, figure, _ = checks.check_merging(bench)
    assert outcome == "failed"
    assert "of the adapter's effect" in figure


def test_a_plan_for_another_activation_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "planned_peaks", planned_with_another_activation)
    outcome, figure, found = checks.check_memory(bench)
    assert outcome == "failed", figure
    assert found["gpt-neox, finetune"]["measured"] > 0


def test_a_model_of_full_size_runs_from_weights_made_on_the_device(bench: Bench, tmp_path: Path) -> None:
    fresh = Bench(tmp_path, self_test_study(tmp_path, gpu=False, sizes=SMALL), gpu=False, watch=watch)
    for trial in fresh.trials("full", optimizers=1):
        call = Call(f"full {trial.model_name}", fresh.folder, run_full_size, (trial,))
        fresh.run([call])
        assert all(call.result()[part] > 0 for part in ("load", "step", "row", "response"))


def test_full_size_needs_a_gpu(bench: Bench) -> None:
    assert check_full_size(bench)[0] == "cannot tell"


def test_the_hours_of_the_papers_study_follow_from_what_was_measured() -> None:
    """14 trials of each of four models; three epochs of 2006 quotes or 19,940 instructions."""
    none = {"load": 0.0, "merge": 0.0, "row": 0.0, "response": 0.0, "step": 0.0}
    steps = paper_hours({"gpt-neox": none | {"step": 1.0}, "llama": none})
    assert steps == pytest.approx(14 * 3 * (2006 + 19940) / 3600)
    rows = paper_hours({"gpt-neox": none, "llama": none | {"row": 3600.0}})
    assert rows == pytest.approx(14 * (502 + 4986))
    once = paper_hours({"gpt-neox": none | {"load": 3600.0, "merge": 3600.0}, "llama": none})
    assert once == pytest.approx(2 * 28)
