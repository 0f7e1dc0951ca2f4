"""The checks of the self-test. Each returns its outcome, one line with what it measured, and the numbers."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qlora_repeat.analysis.step_rerun import find_operations
from qlora_repeat.analysis.trial_diff import Divergence, compare_trials, first_divergence, read_side
from qlora_repeat.errors import KitError, StageError
from qlora_repeat.execution.jobs import BaseTestJob
from qlora_repeat.planning.gpu_catalog import Gpu
from qlora_repeat.planning.plan import make_plan, train_examples
from qlora_repeat.records.self_test import Outcome
from qlora_repeat.records.trace import read_trace
from qlora_repeat.records.trial_state import valid_record
from qlora_repeat.selftest.bench import SOURCES, Bench, self_test_study, with_long_texts
from qlora_repeat.selftest.full_size import run_full_size
from qlora_repeat.selftest.jobs import Call, ChangedTrial, fastest
from qlora_repeat.selftest.processes import compare_models, plain_steps, software
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.system.files import read_json
from qlora_repeat.system.memory import CONTEXT_BYTES

Result = tuple[Outcome, str, dict[str, Any]]

STOP = 3
"""The step after which a trial is stopped and resumed."""
FULL_STEPS = 20
"""Steps of models of full size."""
MOST_MEMORY = 0.10
"""The largest difference of measured memory from the plan, as a share of the plan."""
MOST_OF_ADAPTER = 0.05
"""The largest part of an adapter's effect that merging may lose by rounding."""
MOST_OF_BATCHES = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
"""The largest relative difference of perplexity in batches, by the precision of arithmetic."""
MOST_OF_PLAIN = 2.0
"""The most time of a step, in steps of the plain script."""


def check_software(bench: Bench) -> Result:
    """Check that the libraries compute on the device, and show their versions."""
    call = Call("software", bench.folder, software)
    bench.run([call])
    found = call.result()
    figure = ", ".join(f"{name} {value}" for name, value in found["versions"].items() if value)
    if found["problems"]:
        return "failed", f"{'; '.join(found['problems'])} ({figure})", found
    return "passed", figure, found


def check_deterministic(bench: Bench) -> Result:
    """Check that two processes give the same traces and adapters with deterministic kernels."""
    first, second = (_finetuned(bench, name) for name in ("first", "second"))
    return _repeats(first, second)


def check_default(bench: Bench) -> Result:
    """Show whether two processes agree with default kernels too, and otherwise the first difference.

    Default kernels promise nothing, so a difference is no failure.
    """
    study = _with_kernels(bench.study, "default")
    first, second = (_finetuned(bench, f"default-{place}", study) for place in ("first", "second"))
    outcome, figure, digests = _repeats(first, second)
    if outcome == "passed":
        return outcome, figure, digests
    pair = next(pair for pair in zip(first, second, strict=True) if _difference(*pair) is not None)
    sides = [read_side(f"{trial.name} ({place})", trial.folder) for place, trial in enumerate(pair, 1)]
    try:
        operations = find_operations(compare_trials(*sides), pair, bench.watch, must_repeat=False)
    except KitError as error:
        return "passed", f"{figure}; operation unknown: {error}", digests
    if operations.found is None:
        found = operations.reason or "none differs when both run again"
    else:
        operator = operations.found.first or operations.found.second
        assert operator is not None, "a difference has an operator"
        found = f"{operator.name} in {operator.module or 'the step'} ({operator.phase})"
    return "passed", f"{figure}; first operation: {found}", digests


def check_resume(bench: Bench) -> Result:
    """Check that a trial that was stopped and resumed has the bits of one that ran through.

    A loss scaler skips the first steps, so its state matters.
    """
    whole, resumed = bench.trials("whole", optimizers=1), bench.trials("resumed", optimizers=1)
    bench.run([_job(trial, skips=True) for trial in whole])
    bench.run([_job(trial, skips=True, until_step=STOP) for trial in resumed])
    bench.run([_job(trial, skips=True) for trial in resumed])
    outcome, figure, digests = _repeats(whole, resumed)
    steps = [read_trace(trial.trace) for trial in whole]
    skipped = [sum(step.skipped for step in trace[1 : STOP + 1]) for trace in steps]
    taken = [sum(not step.skipped for step in trace[1 : STOP + 1]) for trace in steps]
    if outcome == "passed" and not (all(skipped) and all(taken)):
        return (
            "cannot tell",
            f"the loss scaler skipped {skipped} of {STOP} steps; some and not all are needed",
            {},
        )
    return (
        outcome,
        f"{figure}; the loss scaler skipped {max(skipped)} of {STOP} steps before the stop",
        digests,
    )


def check_weights(bench: Bench) -> Result:
    """Compare unpacked with 4-bit weights: bits, and seconds of a step. Other bits are no failure."""
    packed = bench.trials("first", optimizers=1)
    unpacked = _finetuned(bench, "unpacked", replace(bench.study, weights="materialized"), optimizers=1)
    _, figure, digests = _repeats(packed, unpacked)
    return "passed", f"{figure}; {_seconds(packed, unpacked)}", digests


def check_filling(bench: Bench) -> Result:
    """Check that results do not depend on the content of new tensors, and show what filling them costs."""
    unfilled, filled = bench.trials("first", optimizers=1), bench.trials("filled", optimizers=1)
    bench.run([_job(trial, fills=True) for trial in filled])
    outcome, figure, digests = _repeats(unfilled, filled)
    return outcome, f"{figure}; {_seconds(unfilled, filled)}", digests


def check_merging(bench: Bench) -> Result:
    """Check merged models against base plus adapter, and perplexity in batches against one by one."""
    trials = bench.trials("first", optimizers=1)
    bench.run([_job(trial, stages=["merge"]) for trial in trials])
    calls = [
        Call(f"comparison of models {trial.model_name}", bench.folder, compare_models, (trial,))
        for trial in trials
    ]
    bench.run(calls)
    found = {call.arguments[0].model_name: call.result() for call in calls}
    lost = max(each["lost"] for each in found.values())
    apart = max(each["batches"] for each in found.values())
    most = MOST_OF_BATCHES[bench.study.precision.compute]
    well = lost <= MOST_OF_ADAPTER and apart <= most
    return (
        "passed" if well else "failed",
        f"merging loses {100 * lost:.2g} % of the adapter's effect (at most {100 * MOST_OF_ADAPTER:g} %); "
        f"perplexity differs by {apart:.1g} in batches (at most {most:g})",
        found,
    )


def check_base_tests(bench: Bench) -> Result:
    """Check that two tests of a base, in two processes, give the same losses."""
    workspace = bench.workspace("first")
    tests = {model: workspace.base_tests(model) for model in workspace.study.models}
    bench.run([BaseTestJob(test) for pair in tests.values() for test in pair])
    figures, found = list[str](), dict[str, Any]()
    for model, pair in tests.items():
        records = [valid_record(test.record) for test in pair]
        losses = [record.outputs["examples"] if record else None for record in records]
        found[model] = [record.outputs["perplexity"] if record else None for record in records]
        if losses[0] is None or losses[0] != losses[1]:
            figures.append(f"{model}: perplexities {found[model][0]} and {found[model][1]}")
    figure = "; ".join(figures) or f"the same losses: {', '.join(found)}"
    return "failed" if figures else "passed", figure, found


def check_memory(bench: Bench) -> Result:
    """Check the plan's peak memory of fine-tuning and of testing, with texts of `LENGTH` tokens."""
    study = with_long_texts(bench.study, 3)
    trials = bench.trials("memory", study, optimizers=1)
    bench.run([_job(trial, stages=["finetune", "merge", "evaluate"], measures="memory") for trial in trials])
    plan = make_plan(trials[0].workspace, Gpu("any", 10**12, None), 1, [])
    shares, found = dict[str, float](), dict[str, Any]()
    for trial, planned in zip(trials, plan.models, strict=True):
        measured = _read(trial)
        tuning = planned.arms[0].finetune_peak - CONTEXT_BYTES
        if not bench.gpu:  # the optimizer's state is not counted there
            tuning -= planned.arms[0].optimizer_state
        expected = {"finetune": tuning, "evaluate": planned.evaluate_peak - CONTEXT_BYTES}
        for stage, size in expected.items():
            shares[f"{trial.model_name}, {_STAGES[stage]}"] = measured[stage] / size - 1
            found[f"{trial.model_name}, {stage}"] = {"measured": measured[stage], "planned": size}
    figure = ", ".join(f"{name} {100 * share:+.1f} %" for name, share in shares.items())
    well = all(abs(share) <= MOST_MEMORY for share in shares.values())
    return "passed" if well else "failed", figure, found


_STAGES = {"finetune": "fine-tuning", "evaluate": "testing"}


def check_speed(bench: Bench) -> Result:
    """Compare the seconds of a step with those of a plain script, and show where they go.

    Much more time is no failure, since other work on the machine may be the reason.
    """
    steps = 24 if bench.gpu else 9
    trials = bench.trials(
        "speed", _with_kernels(with_long_texts(bench.study, steps), "default"), optimizers=1
    )
    calls = [
        Call(f"plain script {trial.model_name}", bench.folder, plain_steps, (trial,)) for trial in trials
    ]
    bench.run([_job(trial, measures="time") for trial in trials])
    bench.run(calls)
    figures, found, worst = list[str](), dict[str, Any](), 0.0
    for trial, call in zip(trials, calls, strict=True):
        measured, plain = _read(trial), fastest(call.result()["times"])
        ours = fastest(measured["times"])
        worst = max(worst, ours / plain)
        found[trial.model_name] = measured | {"step": ours, "plain_step": plain}
        parts = measured["milliseconds"]["gpu" if bench.gpu else "cpu"]
        largest = max(parts, key=lambda kind: parts[kind])
        share = 100 * parts[largest] / measured["profiled_step"]
        times = f"{ours:.3f} s, {ours / plain:.2f} of a plain script's"
        figures.append(f"{trial.model_name} {times} ({largest} {share:.0f} %)")
    return "passed" if worst <= MOST_OF_PLAIN else "cannot tell", "; ".join(figures), found


def check_full_size(bench: Bench) -> Result:
    """Run models of the paper's size, compare their memory with the plan, and estimate the paper's study."""
    if not bench.gpu:
        return "cannot tell", "models of full size need a GPU", {}
    study = with_long_texts(self_test_study(bench.folder, gpu=True, sizes={}), FULL_STEPS)
    trials = bench.trials("full", study, optimizers=1)
    calls = [Call(f"full size {trial.model_name}", bench.folder, run_full_size, (trial,)) for trial in trials]
    for call in calls:
        bench.run([call])
    plan = make_plan(trials[0].workspace, Gpu("any", 10**12, None), 1, [])
    bytes_per_second = min(map(_merging_rate, bench.trials("first", optimizers=1)))
    found, figures, worst = dict[str, Any](), list[str](), 0.0
    for trial, call, planned in zip(trials, calls, plan.models, strict=True):
        measured = found[trial.model_name] = call.result()
        shares = {
            "fine-tuning": measured["finetune_peak"] / (planned.arms[0].finetune_peak - CONTEXT_BYTES) - 1,
            "testing": measured["evaluate_peak"] / (planned.evaluate_peak - CONTEXT_BYTES) - 1,
        }
        measured["share"] = (measured["finetune_peak"] + CONTEXT_BYTES) / measured["gpu_memory"]
        measured["merge"] = 2 * planned.parameters / bytes_per_second
        worst = max(worst, *map(abs, shares.values()))
        against = ", ".join(f"{stage} {100 * share:+.1f} %" for stage, share in shares.items())
        figures.append(
            f"{trial.model_name}: memory against the plan: {against}; {measured['step']:.3f} s a step"
        )
    found["hours"] = _hours(found)
    figures.append(f"the paper's study: at most about {found['hours']:.0f} hours on one such GPU")
    return "passed" if worst <= MOST_MEMORY else "failed", "; ".join(figures), found


def _merging_rate(trial: Trial) -> float:
    record = valid_record(trial.record("merge"))
    if record is None:
        raise StageError(f"{trial.name}: was not merged")
    return float(record.outputs["merged_bytes"] / record.seconds)


def _hours(measured: dict[str, dict[str, float]]) -> float:
    """Return the hours of the paper's study, if each text had the longest length."""
    paper, seconds = load_study("paper"), 0.0
    for name, source in SOURCES.items():
        own, size = measured[name], paper.bases[source].architecture
        for model in paper.models.values():
            if paper.bases[model.base].architecture == size:
                data = paper.data[model.data]
                train = train_examples(data)
                answers = len(data.prompts) * len(paper.generation.samplings)
                trial = own["load"] + own["merge"] + model.training.total_steps(train) * own["step"]
                trial += ((data.rows or 0) - train) * own["row"] + answers * own["response"]
                seconds += trial * len(paper.optimizers) * paper.trials
    return seconds / 3600


def _job(trial: Trial, stages: Sequence[Stage] = ("finetune",), **changes: Any) -> ChangedTrial:
    variant = trial.workspace.runs.name
    return ChangedTrial(trial, stages, title=f"{trial.name} ({variant})", **changes)


def _finetuned(bench: Bench, name: str, study: Study | None = None, *, optimizers: int = 2) -> list[Trial]:
    trials = bench.trials(name, study, optimizers=optimizers)
    bench.run([_job(trial) for trial in trials])
    return trials


def _repeats(first: Sequence[Trial], second: Sequence[Trial]) -> Result:
    """Compare traces and adapters of trials pairwise."""
    differences, digests = dict[str, str](), dict[str, Any]()
    for pair in zip(first, second, strict=True):
        digests[pair[0].name] = [_outputs(trial)["adapter_digest"] for trial in pair]
        if (words := _difference(*pair)) is not None:
            differences[pair[0].name] = words
    if differences:
        figure = "; ".join(f"{trial} {words}" for trial, words in differences.items())
        return "failed", figure, digests
    return "passed", f"the same bits: {len(first)} of {len(first)} trials", digests


def _difference(first: Trial, second: Trial) -> str | None:
    """Return in words where two trials first differ, or None if traces and adapters are the same."""
    found: Divergence | None = first_divergence(read_trace(first.trace), read_trace(second.trace))
    if found is not None:
        return f"differs from step {found.step} on ({found.kind})"
    if _outputs(first)["adapter_digest"] != _outputs(second)["adapter_digest"]:
        return "has the same trace and another adapter"
    return None


def _outputs(trial: Trial) -> dict[str, Any]:
    record = valid_record(trial.record("finetune"))
    assert record is not None, "its job ended well"
    return record.outputs


def _seconds(first: Sequence[Trial], second: Sequence[Trial]) -> str:
    """Return the mean seconds of a step in two groups of trials, in words."""
    ours, theirs = ([_outputs(trial) for trial in trials] for trials in (first, second))
    means = [
        statistics.mean(each["train_seconds"] / each["steps"] for each in found) for found in (ours, theirs)
    ]
    return f"{means[1] / means[0]:.2f} times the seconds of a step ({means[0]:.3f} s)"


def _with_kernels(study: Study, kernels: Any) -> Study:
    profile = replace(study.randomness, kernels=kernels)
    return replace(study, profiles={**study.profiles, study.profile: profile})


def _read(trial: Trial) -> dict[str, Any]:
    found: dict[str, Any] = read_json(trial.folder / "measured.json", "run the self-test again")
    return found
