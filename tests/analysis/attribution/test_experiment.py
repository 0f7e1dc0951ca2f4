"""The attribution experiment really runs on a tiny arm, and finds known causes."""

import dataclasses
import json
import secrets
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.checkout import copy_folder, kit
from support.finished import finish
from support.places import at
from support.tiny import write_study
from support.trials import quiet

from qlora_repeat.analysis.attribution.control_checks import find_problems
from qlora_repeat.analysis.attribution.decompose import attribute
from qlora_repeat.analysis.attribution.experiment import (
    DEFAULT,
    STAGES,
    Condition,
    Experiment,
    conditions,
    make_experiment,
    measure,
    other_threads,
)
from qlora_repeat.analysis.attribution.measurements import (
    BASELINE,
    JOINT,
    NUDGE,
    OTHER,
    REPEAT,
    read_measured,
)
from qlora_repeat.cli.main import cli
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.execution.jobs import is_open
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.stage_inputs import stage_settings
from qlora_repeat.render.text.attribution import sentences
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.randomness import Source, draw_seed, stream_seed
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Trial

SHORT = ("\nsteps = 3", "\nsteps = 2"), ("examples = 6", "examples = 4")


def run(trial: Trial, cache: Path) -> None:
    run_trial(trial, STAGES, quiet, delete_merged=True)


@pytest.fixture(scope="module")
def done(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Return a finished experiment; only for reading."""
    folder = tmp_path_factory.mktemp("attribute")
    study = load_study(str(write_study(folder, *SHORT)))
    experiment = make_experiment(at(study, folder / "runs", cache), None, None, ["dropout"], 2, False)
    for condition in conditions(experiment):
        for trial in condition.trials:
            run(trial, cache)
    return experiment


@pytest.fixture
def copied(done: Experiment, tmp_path: Path) -> Experiment:
    """Return a copy of the finished experiment that a test may change."""
    copy_folder(done.workspace.runs, tmp_path / "runs")
    return changed(done, runs=tmp_path / "runs")


def changed(experiment: Experiment, **changes: Any) -> Experiment:
    """Return the experiment with another study or other folders."""
    return dataclasses.replace(experiment, workspace=dataclasses.replace(experiment.workspace, **changes))


def again(experiment: Experiment, name: str, number: int, cache: Path) -> None:
    """Run one trial again."""
    trial = by_name(experiment)[name].trials[number - 1]
    shutil.rmtree(trial.folder)
    run(trial, cache)


def by_name(experiment: Experiment) -> dict[str, Condition]:
    return {condition.name: condition for condition in conditions(experiment)}


def test_the_baseline_repeats_and_dropout_shows_in_the_first_gradient(done: Experiment, cache: Path) -> None:
    measured = measure(done)
    assert find_problems(measured) == []
    one, two = measured.of(BASELINE)
    (repeated,) = measured.of(REPEAT)
    assert repeated.adapter_digest == one.adapter_digest
    assert (repeated.first_step, repeated.update_distance, repeated.value_distance) == (None, 0, 0)
    assert one.initial_digest == two.initial_digest, "only dropout has levels"
    assert [(each.first_step, each.first_kind) for each in measured.of("dropout")] == [(1, "gradient")] * 2
    assert len({each.adapter_digest for each in measured.outcomes}) == 4
    assert all(0.1 < each.update_distance < 1.4 for each in measured.of("dropout"))


def test_merged_weights_are_deleted_after_their_test(done: Experiment) -> None:
    assert list(done.runs.rglob("merged")) == []
    assert len(list(done.runs.rglob("adapter_model.safetensors"))) == 5


def test_a_hidden_change_of_a_seed_is_found(
    copied: Experiment, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qlora_repeat.stages.finetune as module

    real = module.stream_seed

    def other(seed: int, source: Any, *position: Any) -> int:
        return real(seed, source, *position) + (source == "adapter_init")

    with monkeypatch.context() as patched:
        patched.setattr(module, "stream_seed", other)
        again(copied, REPEAT, 1, cache)
        again(copied, "dropout", 2, cache)
    repeated, dropout, *_ = find_problems(measure(copied))
    assert "repetition" in repeated
    assert "step 0, in init" in repeated
    assert dropout.startswith("dropout 2 first differs in init, at step 0. Changing only dropout")


def test_an_operation_that_is_not_deterministic_is_found(
    copied: Experiment, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_repeat.stages.trainer import TracingTrainer

    real = TracingTrainer.compute_loss

    def noisy(self: Any, *args: Any, **kwargs: Any) -> Any:
        return real(self, *args, **kwargs) * (1 + 1e-6 * (1 + secrets.randbelow(1000)))

    with monkeypatch.context() as patched:
        patched.setattr(TracingTrainer, "compute_loss", noisy)
        again(copied, REPEAT, 1, cache)
    measured = measure(copied)
    (problem,) = find_problems(measured)
    assert "step 1, in loss" in problem
    assert "kernels" in problem
    assert sentences(measured, attribute(measured))[0] == f"Do not interpret these results: {problem}"


def test_a_shuffled_split_is_found(copied: Experiment, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qlora_repeat.assets.derived_cache as module

    real = module.part_rows
    with monkeypatch.context() as patched:
        patched.setattr(module, "part_rows", lambda *args: real(*args)[::-1])
        again(copied, REPEAT, 1, cache)
        again(copied, "dropout", 2, cache)
    repeated, dropout, hidden = find_problems(measure(copied))
    assert "step 1, in data" in repeated
    assert "different examples" in repeated
    assert dropout.startswith("dropout 2 first differs in data, at step 1")
    assert hidden.startswith("dropout 2 differs from the baseline in rows in its steps")


def test_the_command_resumes_and_reports(
    copied: Experiment, cache: Path, study_file: Path, tmp_path: Path
) -> None:
    write_study(study_file.parent, *SHORT)
    lost = by_name(copied)["dropout"].trials[1]
    shutil.rmtree(lost.folder)
    arguments = ["attribute", study_file, "--sources", "dropout", "--replicates", 2]
    arguments += ["--runs", copied.workspace.runs, "--cache", cache]
    planned = kit(*arguments, "--dry-run")
    assert planned.stdout.split()[-2:] == ["5", "1"], planned
    assert not lost.folder.exists()
    done = kit(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "[1/1] dropout 2 done" in done.stderr
    assert not lost.merged.exists()
    assert not is_open(lost, STAGES)
    arm = "tiny-neox-adamw-32bit"
    for name in (f"table-S2-{arm}.md", f"table-S2-{arm}.tex", f"figure-S2-{arm}.png", f"figure-S2-{arm}.pdf"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    assert done.stdout.startswith("Dropout alone")
    content = json.loads(copied.file.read_text())
    assert done.stdout.splitlines()[: len(content["sentences"])] == content["sentences"]
    assert read_measured(copied.file) == measure(copied)

    rendered = kit("attribute", "--results", copied.file, "--out", tmp_path / "again")
    assert rendered.returncode == 0, rendered.stderr
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_unfinished_trials_are_named(copied: Experiment, cache: Path) -> None:
    lost = by_name(copied)["dropout"].trials[0]
    lost.record("evaluate").unlink()
    with pytest.raises(MissingError, match=r"dropout.*trial-1: its evaluate stage is missing"):
        measure(copied)


def test_a_changed_study_makes_the_experiment_stale(done: Experiment, cache: Path) -> None:
    lora = dataclasses.replace(done.study.lora, alpha=16)
    other = changed(done, study=dataclasses.replace(done.study, lora=lora))
    with pytest.raises(MissingError, match=r"finetune stage is stale \(lora\)"):
        measure(other)


def test_every_condition_is_read_and_compared_with_its_reference(
    study: Study, cache: Path, tmp_path: Path
) -> None:
    """Write trials without training; trials with the same number have the same trace and adapter."""
    experiment = changed(full(study), runs=tmp_path, cache=cache)
    for condition in conditions(experiment):
        for trial in condition.trials:
            finish(trial)
    measured = measure(experiment)
    assert {name: len(measured.of(name)) for name in measured.conditions} == {
        name: len(condition.trials) for name, condition in by_name(experiment).items()
    }
    assert measured.pairs == [
        ["adapter_init", "data_order"],
        ["adapter_init", "dropout"],
        ["data_order", "dropout"],
    ]
    first = {name: [each.first_step for each in measured.of(name)] for name in measured.conditions}
    assert all(steps == [None] * len(steps) for steps in first.values()), "the reference has the same number"
    assert {each.optimizer for each in measured.of(OTHER)} == {"adamw-8bit"}
    assert measured.steps == 3
    assert measured.one_ulp == 2**-25, "A has eight columns, so values up to 0.35"


def full(study: Study, **changes: Any) -> Experiment:
    experiment = make_experiment(at(study, Path("runs")), None, None, DEFAULT, 7, True)
    return dataclasses.replace(experiment, **changes)


def settings(trial: Trial) -> dict[str, Any]:
    found = stage_settings(trial, "finetune")
    names = ("split", "adapter_init", "data_order", "dropout", "kernels", "threads", "nudge", "optimizer")
    return {name: found[name] for name in names}


def test_conditions_change_only_the_levels_that_they_name(study: Study) -> None:
    found = by_name(full(study))
    first: dict[str, Any] = {
        "split": 42,
        "adapter_init": {"per_trial": 42},
        "data_order": {"per_trial": 42},
        "dropout": {"per_trial": 42},
        "kernels": "deterministic",
        "threads": 1,
        "nudge": False,
        "optimizer": "adamw-32bit",
    }
    second: dict[str, Any] = {
        source: {"per_trial": stream_seed(42, source, "second level")}
        for source in ("adapter_init", "data_order", "dropout")
    } | {"kernels": "default", "threads": 2}
    own = {
        BASELINE: [],
        REPEAT: [],
        "adapter_init": ["adapter_init"],
        "data_order": ["data_order"],
        "dropout": ["dropout"],
        "kernels": ["kernels", "threads"],
        "adapter_init × data_order": ["adapter_init", "data_order"],
        "adapter_init × dropout": ["adapter_init", "dropout"],
        "data_order × dropout": ["data_order", "dropout"],
        JOINT: list(second),
    }
    wanted = {name: first | {key: second[key] for key in keys} for name, keys in own.items()}
    wanted |= {NUDGE: first | {"nudge": True}, OTHER: first | {"optimizer": "adamw-8bit"}}
    assert {name: settings(condition.trials[0]) for name, condition in found.items()} == wanted
    for name, condition in found.items():
        assert [trial.number for trial in condition.trials] == [*range(1, 2 if name == REPEAT else 8)]
        assert all(settings(trial) == wanted[name] for trial in condition.trials), name


def test_levels_of_all_replicates_are_independent_draws(study: Study) -> None:
    found = by_name(full(study))
    sources: tuple[Source, ...] = ("adapter_init", "data_order", "dropout")
    drawn = {
        draw_seed(getattr(trial.study.randomness, source), source, trial.number)
        for condition in (found[BASELINE], found[JOINT])
        for trial in condition.trials
        for source in sources
    }
    assert len(drawn) == 2 * 7 * 3


def test_experiments_on_two_optimizers_share_trial_folders(study: Study) -> None:
    experiment = full(study)
    folders = [trial.folder for condition in conditions(experiment) for trial in condition.trials]
    assert len(set(folders)) == len(folders)
    assert {folder.parents[3] for folder in folders} == {Path("runs/tiny@attribute")}
    found, other = by_name(experiment), by_name(dataclasses.replace(experiment, optimizer="adamw-8bit"))
    assert found[OTHER].trials == other[BASELINE].trials


def test_smaller_experiments_have_their_own_files_and_other_levels_their_own_folders(study: Study) -> None:
    whole = full(study)
    assert whole.file == Path("runs/tiny@attribute/tiny-neox/adamw-32bit/attribution.json")
    fewer = dataclasses.replace(whole, replicates=3)
    assert (fewer.label, fewer.file.name) == (whole.label, "attribution-3-replicates.json")
    undisturbed = dataclasses.replace(whole, sources=("adapter_init", "data_order", "dropout", "kernels"))
    assert undisturbed.label == whole.label
    assert undisturbed.file.name == "attribution-no-nudge-no-optimizer.json"
    order = dataclasses.replace(whole, sources=("data_order", "nudge"))
    assert order.label == "tiny@attribute-data_order"
    assert dataclasses.replace(whole, kernels="default").file != whole.file


def test_seeds_of_the_study_give_the_first_levels(study: Study) -> None:
    profile = dataclasses.replace(study.randomness, data_order=7, dropout="fresh")
    given = dataclasses.replace(study, profiles=study.profiles | {study.profile: profile})
    first = settings(by_name(full(given))[BASELINE].trials[3])
    assert (first["data_order"], first["dropout"]) == ({"per_trial": 7}, {"per_trial": 42})


def test_the_other_number_of_threads_fits_the_cores() -> None:
    assert [other_threads(threads) for threads in (1, 2, 3, 8)] == [2, 1, 1, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "llama"], "trial 'llama/adamw-32bit/1': study tiny has the models tiny-neox, tiny-l"),
        (["--optimizer", "sgd"], "trial 'tiny-neox/sgd/1': study tiny has the optimizers adamw-8bit, adam"),
        (["--sources", "dropout,seed"], "--sources seed: expected one or more of adapter_init, data_ord"),
        (["--sources", ""], "--sources : expected one or more of"),
    ],
)
def test_mistakes_give_one_line(arguments: list[str], words: str, study_file: Path) -> None:
    done = CliRunner().invoke(cli, ["attribute", str(study_file), "--dry-run", *arguments])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith(words)


def test_at_least_one_source_is_named(study: Study) -> None:
    with pytest.raises(UsageError, match="expected one or more of"):
        make_experiment(at(study, Path("runs")), None, None, [], 7, False)


def test_one_replicate_is_refused(study_file: Path) -> None:
    done = CliRunner().invoke(cli, ["attribute", str(study_file), "--replicates", "1"])
    assert done.exit_code == 2
