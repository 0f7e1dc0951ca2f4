"""Verify recorded trials of the tiny study: unchanged, forged, interrupted, or moved elsewhere."""

import copy
import dataclasses
import json
import math
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file
from support.checkout import copy_folder
from support.places import at
from support.tiny import write_study
from support.trials import quiet

from qlora_repeat.analysis.verify.rerun import read_recorded, rerun_folder, run_again
from qlora_repeat.analysis.verify.sampling import most_false
from qlora_repeat.errors import BusyError, KitError, MissingError, StoppedError, UsageError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.record import keep, read_record, write_record
from qlora_repeat.records.self_test import Check, SelfTest, self_test_file, write_self_test
from qlora_repeat.stages.perplexity import ExampleLoss, mean_example_perplexity, perplexity
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.system.fingerprint import fingerprint
from qlora_repeat.system.hashing import folder_digests

NAME = "tiny-neox/adamw-8bit/1"


@dataclasses.dataclass(frozen=True)
class Lab:
    """A study with its results and the folder for re-runs."""

    study: Path
    runs: Path
    scratch: Path
    cache: Path

    @property
    def trial(self) -> Trial:
        return at(self.study, self.runs, self.cache).trial(NAME)

    def verify(self, *options: object, trial: object = NAME) -> Result:
        from qlora_repeat.cli.main import cli

        where = ["--study", self.study, "--runs", self.runs, "--scratch", self.scratch, "--cache", self.cache]
        return CliRunner().invoke(cli, ["verify", *map(str, (trial, *where, *options, "--quiet"))])

    def verdict(self, *options: object, trial: object = NAME) -> dict[str, Any]:
        result = self.verify(*options, "--json", trial=trial)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        verdict: dict[str, Any] = json.loads(result.stdout)
        return verdict | {"exit": result.exit_code}


@pytest.fixture(scope="session")
def recorded(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Return one trial, fine-tuned with a fresh seed, merged and evaluated; only for reading."""
    folder = tmp_path_factory.mktemp("recorded")
    lab = Lab(write_study(folder), folder / "runs", folder / "verify", cache)
    run_trial(lab.trial, ["finetune", "merge", "evaluate"], quiet)
    return lab


@pytest.fixture
def lab(recorded: Lab, tmp_path: Path) -> Lab:
    """Return a copy of the recorded trial that a test may change."""
    copy_folder(recorded.runs, tmp_path / "runs")
    return Lab(write_study(tmp_path), tmp_path / "runs", tmp_path / "verify", recorded.cache)


def run_elsewhere(
    trial: Trial, runs: Path, stages: Sequence[Stage], seeds: dict[str, int], *, threads: int, **changes: Any
) -> Trial:
    """Run a trial with these seeds, another number of threads and other changes in another folder."""
    study = dataclasses.replace(trial.workspace.study, threads=threads)
    elsewhere = dataclasses.replace(trial.workspace, study=study, runs=runs)
    other = dataclasses.replace(trial, workspace=elsewhere, **changes)
    run_trial(other, stages, quiet, seeds=seeds)
    return other


@pytest.fixture(scope="session")
def threads_matter(recorded: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where a second thread changes no bit of the recorded trial, as on some processors."""
    record = read_record(recorded.trial.record("finetune"))
    assert record is not None
    runs, seeds = tmp_path_factory.mktemp("two-threads"), record.outputs["seeds"]
    other = run_elsewhere(recorded.trial, runs, ["finetune"], seeds, threads=2)
    if outputs_of(other, "finetune")["adapter_digest"] == record.outputs["adapter_digest"]:
        pytest.skip("with this processor, a second thread changes no bit of so small a trial")


def rewrite(trial: Trial, stage: Stage, inputs: dict[str, Any] | None = None, **outputs: Any) -> None:
    """Forge a record: change it, and update its digest and those of its files."""
    record = read_record(trial.record(stage))
    assert record is not None
    forged = dataclasses.replace(
        record,
        inputs=record.inputs if inputs is None else inputs,
        outputs=record.outputs | outputs,
        files={name: keep(trial.folder / name) for name in record.files},
    )
    write_record(trial.record(stage), forged)


def inputs_of(trial: Trial) -> dict[str, Any]:
    record = read_record(trial.record("finetune"))
    assert record is not None
    return copy.deepcopy(record.inputs)


def test_an_unchanged_trial_is_bitwise_and_not_modified(lab: Lab) -> None:
    """Repeat a trial whose fresh adapter seed is in its record, on a machine with a self-test."""
    machine = fingerprint()
    tested = SelfTest("2026-11-30T12:00:00+00:00", 60.0, False, [Check("a", "passed", "b")], machine)
    write_self_test(self_test_file(lab.runs, machine), tested)
    before = folder_digests(lab.runs)
    result = lab.verify()
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"tiny:{NAME}: bitwise\n")
    assert "The same bits are expected, because " in " ".join(result.stdout.split())
    assert folder_digests(lab.runs) == before
    test = "self-test of 2026-11-30: 1 passed"
    assert f"Machines: recorded one, {test}; this one, {test}." in " ".join(result.stdout.split())
    page = next(lab.scratch.rglob("verdict.html")).read_text()
    assert test in page
    assert "bitwise" in page
    assert "<svg" in page


def test_settings_come_from_the_record_and_not_from_the_study_file(lab: Lab) -> None:
    text = lab.study.read_text()
    lab.study.write_text(
        text.replace("learning_rate = 1e-3", "learning_rate = 5e-3").replace("r = 8", "r = 4")
    )
    verdict = lab.verdict()
    assert verdict["verdict"] == "bitwise"
    assert verdict["notes"] == ["The record has other settings than the study file: lora, training."]


def test_verifying_first_steps_says_what_remains_unknown(lab: Lab) -> None:
    verdict = lab.verdict("--steps", 2)
    assert (verdict["verdict"], verdict["exit"], verdict["steps"]) == ("bitwise", 0, 2)
    assert "steps 3 to 3, the adapter and its perplexity" in verdict["cannot_tell"][0]


def test_only_the_evaluation_can_be_verified(lab: Lab) -> None:
    verdict = lab.verdict("--stages", "evaluate")
    assert (verdict["verdict"], verdict["scope"]) == ("bitwise", "evaluation"), verdict["why"]
    assert "because it was not run again" in verdict["cannot_tell"][0]


def test_a_forged_seed_is_different(lab: Lab) -> None:
    record = json.loads((lab.trial.folder / "finetune.json").read_text())
    seeds = record["outputs"]["seeds"]
    rewrite(lab.trial, "finetune", seeds=seeds | {"adapter_init": seeds["adapter_init"] + 1})
    without_tolerance(lab)
    verdict = lab.verdict("--steps", 3)
    assert (verdict["verdict"], verdict["exit"]) == ("different", 7)
    assert verdict["divergence"]["kind"] == "init"


def test_a_trace_of_another_adapter_contradicts_the_record(lab: Lab) -> None:
    trace = lab.trial.trace
    lines = trace.read_text().splitlines(keepends=True)
    lines[-1] = lines[-1].replace('"adapter": "', '"adapter": "0')
    trace.write_text("".join(lines))
    rewrite(lab.trial, "finetune")
    assert "the last step of its trace says 0" in contradicted(lab)


def without_tolerance(lab: Lab) -> None:
    """Set all tolerances to zero, so that only identical bits are within tolerance."""
    names = ("first_loss", "loss", "adapter", "perplexity")
    strict = "\n".join(["[tolerance.adamw-8bit]", *(f"{name} = 0.0" for name in names), "\n[quantization]\n"])
    lab.study.write_text(lab.study.read_text().replace("[quantization]\n", strict))


def contradicted(lab: Lab) -> str:
    """Return the reason for a verdict that needs no re-run."""
    verdict = lab.verdict()
    assert (verdict["verdict"], verdict["exit"], verdict["steps"]) == ("different", 7, 0)
    assert verdict["why"][-2:] == ["The recorded files contradict each other.", "It was not run again."]
    return str(verdict["why"][0])


def test_a_chosen_seed_contradicts_its_setting(lab: Lab) -> None:
    record = read_record(lab.trial.record("finetune"))
    assert record is not None
    rewrite(lab.trial, "finetune", seeds=record.outputs["seeds"] | {"data_order": 1337})
    assert contradicted(lab) == "The recorded seed of data_order is not the one that its setting gives."


def test_an_output_that_does_not_follow_from_the_trace_contradicts_it(lab: Lab) -> None:
    rewrite(lab.trial, "finetune", loss_curve=[[1.0, 2.0]])
    assert contradicted(lab) == "The record's loss_curve does not follow from the trace."


@pytest.mark.parametrize(
    ("name", "value", "own"), [("lora_alpha", 64, "32"), ("init_lora_weights", "pissa", "True")]
)
def test_an_adapter_with_another_scale_or_base_contradicts_its_settings(
    lab: Lab, name: str, value: object, own: str
) -> None:
    path = lab.trial.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    rewrite(lab.trial, "finetune")
    assert (
        contradicted(lab)
        == f"The adapter's configuration has another {name} than the settings, which have {own}."
    )


@pytest.mark.parametrize(("name", "value"), [("use_rslora", "true"), ("alpha_pattern", '{"dense": 64}')])
def test_an_adapter_that_changes_a_model_in_another_way_contradicts_its_settings(
    lab: Lab, name: str, value: str
) -> None:
    path = lab.trial.adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {name: json.loads(value)}))
    rewrite(lab.trial, "finetune")
    assert contradicted(lab) == (f"The adapter's configuration sets {name}, which the settings do not have.")


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads", 7), ("kernels", {"deterministic": True}), ("packages", {"torch": "1.0"})],
)
def test_a_fingerprint_that_its_own_record_excludes_is_a_contradiction(
    lab: Lab, name: str, value: object
) -> None:
    """Claim what would explain other arithmetic, but would also have been a setting."""
    record = read_record(lab.trial.record("evaluate"))
    assert record is not None
    claimed = dataclasses.replace(record, fingerprint=record.fingerprint | {name: value})
    write_record(lab.trial.record("evaluate"), claimed)
    assert contradicted(lab) == f"The fingerprint of the evaluate stage has other {name} than its inputs."


def test_weights_beside_those_of_the_adapter_contradict_it(lab: Lab) -> None:
    """Move a tensor to another file, which changes no digest of the weights."""
    path = lab.trial.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file({name: tensors.pop(name)}, path.with_name("more.safetensors"))
    path.unlink()  # it is a hard link to the shared file
    save_file(tensors, path)
    rewrite(lab.trial, "finetune")
    assert contradicted(lab) == "The adapter has weights in more.safetensors, which PEFT does not read."


def test_a_trace_without_a_loss_is_a_contradiction(lab: Lab) -> None:
    lines = [json.loads(line) for line in lab.trial.trace.read_text().splitlines()]
    del lines[2]["loss"]
    lab.trial.trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rewrite(lab.trial, "finetune")
    assert contradicted(lab) == "Step 2 of the trace has no loss."


def test_a_forged_response_is_different(lab: Lab) -> None:
    record = read_record(lab.trial.record("evaluate"))
    assert record is not None
    forged = copy.deepcopy(record.outputs["responses"])
    forged[0]["text"] = "It repeats."
    rewrite(lab.trial, "evaluate", responses=forged)
    verdict = lab.verdict("--stages", "evaluate")
    assert verdict["verdict"] == "different"
    assert "The same adapter gave other responses, although the same bits are expected." in verdict["why"]


def outputs_of(trial: Trial, stage: Stage) -> dict[str, Any]:
    record = read_record(trial.record(stage))
    assert record is not None
    return copy.deepcopy(record.outputs)


def test_an_invented_merged_model_is_different(lab: Lab) -> None:
    """Claim another merged model in all records, which then fit each other, and an invented response."""
    invented = outputs_of(lab.trial, "evaluate")["responses"]
    invented[0]["text"] = "It repeats."
    record = read_record(lab.trial.record("evaluate"))
    assert record is not None
    rewrite(lab.trial, "merge", merged_digest="0" * 64)
    rewrite(lab.trial, "evaluate", record.inputs | {"merged_digest": "0" * 64}, responses=invented)
    verdict = lab.verdict()
    assert (verdict["verdict"], verdict["exit"]) == ("different", 7)
    why = "The same adapter gave other merged weights, responses, although the same bits are expected."
    assert why in verdict["why"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("perplexity", 1.5),
        ("perplexity_example_mean", 1.5),
        ("accuracy", 0.5),
        ("test_examples", 3),
        ("test_tokens", 7),
        ("examples", []),
        ("examples", None),
        ("examples", [{"row": 0, "tokens": 0, "loss": 1.0, "answered": None}]),
        ("examples", [{"row": 0, "tokens": 3, "loss": "1.0", "answered": None}]),
    ],
)
def test_a_test_that_does_not_follow_from_its_examples_is_a_contradiction(
    lab: Lab, name: str, value: object
) -> None:
    rewrite(lab.trial, "evaluate", **{name: value})
    assert contradicted(lab).startswith("The record of the evaluation")


@pytest.mark.parametrize("stage", ["evaluate", "time"])
def test_a_stage_of_another_merged_model_is_a_contradiction(lab: Lab, stage: Stage) -> None:
    if stage == "time":
        run_trial(lab.trial, ["time"], quiet)
    record = read_record(lab.trial.record(stage))
    assert record is not None
    rewrite(lab.trial, stage, record.inputs | {"merged_digest": "0" * 64})
    assert contradicted(lab) == f"The record of {stage} belongs to another merged_digest than merge left."


def forge_examples(trial: Trial, examples: list[dict[str, Any]]) -> None:
    """Record these losses of examples, and what follows from them."""
    losses = [ExampleLoss(**each) for each in examples]
    mean = mean_example_perplexity(losses)
    following = {"perplexity": perplexity(losses), "perplexity_example_mean": mean}
    rewrite(trial, "evaluate", examples=examples, **following)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_re_run_with_another_adapter_tests_the_recorded_one_too(lab: Lab, elsewhere: bool) -> None:
    """Forge a test by 1 %, also on a claimed other processor, and let new seeds give another adapter."""
    if elsewhere:
        for stage in ("merge", "evaluate"):
            record = read_record(lab.trial.record(stage))
            assert record is not None
            moved = dataclasses.replace(record, fingerprint=record.fingerprint | {"cpu": "another"})
            write_record(lab.trial.record(stage), moved)
    honest = lab.verdict("--new-seeds")
    assert honest["verdict"] == "inconclusive", honest["why"]
    examples = outputs_of(lab.trial, "evaluate")["examples"]
    forge_examples(lab.trial, [each | {"loss": each["loss"] * 0.99} for each in examples])
    verdict = lab.verdict("--new-seeds")
    assert verdict["verdict"] == "different"
    words = (
        "other arithmetic in float32 changes it"
        if elsewhere
        else "The same adapter gave other perplexity, examples"
    )
    assert words in " ".join(verdict["why"])


def replace_results(lab: Lab, *, optimizer: str, threads: int) -> None:
    """Keep what the records say of settings, but put results of other ones there; claim another processor."""
    stages: tuple[Stage, ...] = ("finetune", "merge", "evaluate")
    records = [read_record(lab.trial.record(stage)) for stage in stages]
    assert records[0] is not None
    runs, seeds = lab.runs.parent / "other-runs", records[0].outputs["seeds"]
    other = run_elsewhere(lab.trial, runs, stages, seeds, threads=threads, optimizer=optimizer)
    shutil.rmtree(lab.trial.folder)
    shutil.copytree(other.folder, lab.trial.folder)
    for record in records:
        assert record is not None
        made = read_record(other.record(record.stage))
        assert made is not None
        claimed = record.inputs | {
            name: made.inputs[name] for name in ("adapter_digest", "merged_digest") if name in record.inputs
        }
        claims = {"inputs": claimed, "fingerprint": record.fingerprint | {"cpu": "another"}}
        write_record(lab.trial.record(record.stage), dataclasses.replace(made, trial=NAME, **claims))


@pytest.mark.usefixtures("threads_matter")
def test_noise_of_the_trial_itself_is_measured_where_tolerances_do_not_suffice(lab: Lab) -> None:
    """Two threads for the recorded one give other bits, which no tolerance allows."""
    without_tolerance(lab)
    replace_results(lab, optimizer="adamw-8bit", threads=2)
    verdict = lab.verdict()
    assert verdict["verdict"] == "within tolerance", verdict["why"]
    assert "This allows 10 times what one more thread changes in this re-run." in verdict["why"]
    assert verdict["tolerance"]["adapter"] == pytest.approx(10 * verdict["noise"]["adapter"])


@pytest.mark.usefixtures("threads_matter")
def test_another_optimizer_is_found_also_if_another_processor_is_claimed(lab: Lab) -> None:
    replace_results(lab, optimizer="adamw-32bit", threads=1)
    verdict = lab.verdict()
    assert verdict["verdict"] == "different", verdict["why"]
    assert "One more thread changes the adapter by a relative" in verdict["why"][-2]


def test_invented_losses_of_examples_are_different(lab: Lab) -> None:
    """Move loss from one example to another, which keeps the perplexity."""
    outputs = outputs_of(lab.trial, "evaluate")
    outputs["examples"][0]["loss"] += 0.5
    outputs["examples"][1]["loss"] -= 0.5
    forge_examples(lab.trial, outputs["examples"])
    verdict = lab.verdict()
    assert verdict["verdict"] == "different"
    assert "examples, perplexity_example_mean" in " ".join(verdict["why"])


def invent(lab: Lab, number: int, factor: float) -> None:
    """Copy the trial to another number, with a perplexity that is multiplied by a factor."""
    copied = dataclasses.replace(lab.trial, number=number)
    shutil.copytree(lab.trial.folder, copied.folder)
    stages: tuple[Stage, ...] = ("finetune", "merge", "evaluate")
    for stage in stages:
        record = read_record(lab.trial.record(stage))
        assert record is not None
        write_record(copied.record(stage), dataclasses.replace(record, trial=copied.name))
    rewrite(copied, "evaluate", perplexity=outputs_of(lab.trial, "evaluate")["perplexity"] * factor)


def test_an_arm_has_only_the_trials_of_the_study(lab: Lab) -> None:
    """Invent trials beyond the study's last number, which nobody would draw to run them again."""
    for number, factor in enumerate((1.01, 0.99, 1.02, 0.98), 2):
        invent(lab, number, factor)
    (lab.trial.folder.parent / "trial-2").rename(lab.trial.folder.parent / "trial-02")
    recorded = read_recorded(lab.trial, lab.trial.folder, lab.scratch)
    assert recorded.others == []
    assert len(recorded.left_out) == 4


def test_re_runs_with_new_seeds_are_judged_together(lab: Lab) -> None:
    """Let six copies of the trial with other perplexities be its arm, which varies too much to decide."""
    without_tolerance(lab)
    lab.study.write_text(lab.study.read_text().replace("trials = 2", "trials = 7"))
    for number, factor in enumerate((1.0, 0.7, 1.3, 0.9, 1.1, 0.8), 2):
        invent(lab, number, factor)
    verdict = lab.verdict("--new-seeds", "--repeat", 3)
    assert verdict["reruns"] == 3
    assert "The mean of 3 re-runs" in " ".join(verdict["why"])
    assert isinstance(failure(lab, "--repeat", 2), UsageError)


def test_new_seeds_give_another_trial_of_the_arm(lab: Lab) -> None:
    without_tolerance(lab)
    verdict = lab.verdict("--new-seeds")
    assert (verdict["verdict"], verdict["exit"]) == ("inconclusive", 10)
    assert verdict["divergence"]["kind"] == "init"
    assert "adapter_init" in [each["key"] for each in verdict["explanations"]]
    assert "at least 5 other trials of the arm" in verdict["settle"][0]


def test_a_trial_folder_from_elsewhere_can_be_verified(lab: Lab, tmp_path: Path) -> None:
    shutil.move(lab.trial.folder, tmp_path / "theirs")
    assert lab.verdict("--steps", 1, trial=tmp_path / "theirs")["verdict"] == "bitwise"


def test_without_the_recorded_data_the_verdict_is_inconclusive(lab: Lab) -> None:
    rewrite(lab.trial, "finetune", inputs_of(lab.trial) | {"data": "0" * 64})
    verdict = lab.verdict()
    assert (verdict["verdict"], verdict["exit"]) == ("inconclusive", 10)
    assert "Data quotes here has digest" in verdict["why"][0]


def test_a_re_run_cannot_be_verified_by_itself(lab: Lab) -> None:
    """Refuse a folder of verify: nothing would be computed, and the folder could be deleted."""
    assert lab.verdict("--steps", 1)["verdict"] == "bitwise"
    inside = next(lab.scratch.rglob("trial-1"))
    shutil.copytree(lab.trial.folder, inside, dirs_exist_ok=True)
    assert "is itself a re-run" in str(failure(lab, trial=inside))


def test_a_folder_of_another_origin_is_neither_used_nor_deleted(lab: Lab) -> None:
    recorded = read_recorded(lab.trial, lab.trial.folder, lab.scratch, "first steps")
    with rerun_folder(recorded, "first steps", 1, False) as (again, _):
        folder = again.workspace.runs
    shutil.rmtree(folder)
    shutil.copytree(lab.runs, folder)
    assert "not a folder of verify" in str(failure(lab, "--steps", 1))
    assert (folder / "tiny").is_dir()


def test_a_killed_re_run_resumes(lab: Lab) -> None:
    recorded = read_recorded(lab.trial, lab.trial.folder, lab.scratch)

    def stop(stage: str, done: int, total: int, loss: float | None) -> None:
        if loss is not None and done == 2:
            raise StoppedError("enough")

    with (
        rerun_folder(recorded, "whole", None, False) as (again, seeds),
        pytest.raises(StoppedError),
    ):
        run_again(recorded, again, seeds, stop)
    assert list(lab.scratch.rglob("step-2"))
    assert lab.verdict()["verdict"] == "bitwise"
    content = json.loads(next(lab.scratch.rglob("finetune.json")).read_text())
    assert content["outputs"]["resumed_from"] == 2


def test_a_finished_re_run_starts_again(lab: Lab) -> None:
    assert lab.verdict("--steps", 1)["verdict"] == "bitwise"
    first = next(lab.scratch.rglob("step-1"))
    (first / "left").touch()
    assert lab.verdict("--steps", 1)["verdict"] == "bitwise"
    assert not (first / "left").exists()


def test_re_runs_are_private(lab: Lab) -> None:
    assert lab.verdict("--steps", 1)["verdict"] == "bitwise"
    folders = [lab.scratch, *(path for path in lab.scratch.iterdir() if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


@pytest.mark.parametrize("mode", [0o700, 0o720, 0o702])
def test_a_folder_that_others_could_write_to_is_not_used(lab: Lab, mode: int) -> None:
    """Plant the recorded adapter, which is not the one that the re-run of a forged record gives."""
    recorded = read_recorded(lab.trial, lab.trial.folder, lab.scratch)
    with rerun_folder(recorded, "whole", None, False) as (again, seeds):
        run_again(recorded, again, seeds, quiet)
    (again.workspace.runs / "planted").touch()
    again.workspace.runs.chmod(mode)
    assert lab.verdict()["verdict"] == "bitwise"
    assert (again.workspace.runs / "planted").exists() is (mode == 0o700)


def test_a_scratch_folder_that_others_control_is_refused(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    for folder, words in (("open/mine", "everybody can write to"), ("link", "a link")):
        error = failure(dataclasses.replace(lab, scratch=tmp_path / folder), "--steps", 1)
        assert isinstance(error, UsageError)
        assert words in str(error)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_scratch_folder_of_another_user_is_refused(lab: Lab) -> None:
    lab.scratch.mkdir()
    os.chown(lab.scratch, 65534, 65534)
    assert "belongs to another user" in str(failure(lab, "--steps", 1))


def verified(lab: Lab, *options: object, study: object = None) -> tuple[int, str]:
    from qlora_repeat.cli.main import cli

    where = ["--runs", lab.runs, "--scratch", lab.scratch, "--cache", lab.cache, "--quiet"]
    given = ["verify", study or lab.study, *where, *options]
    result = CliRunner().invoke(cli, list(map(str, given)))
    if isinstance(result.exception, KitError):
        raise result.exception
    return result.exit_code, result.stdout


def test_a_study_is_verified_by_a_sample(lab: Lab) -> None:
    """Run one of two trials again, and the first step of the other; then forge the record of one."""
    second = at(lab.study, lab.runs, lab.cache).trial(NAME.replace("/1", "/2"))
    run_trial(second, ["finetune"], quiet)
    code, text = verified(lab, "--sample", 1, "--seed", 3, "--steps", 1)
    assert code == 0
    assert "1 of 2 trials were run again, drawn with seed 3: 0 are different. " in text
    assert "So at 95% confidence, at most 1 of the 2 are false." in text
    assert sorted(line.split()[1] for line in text.splitlines()[:2]) == ["first", "whole"]
    page = next(lab.scratch.glob("study-*/verdict.html")).read_text()
    assert "at most 1 of the 2 are false" in page
    rewrite(second, "finetune", final_loss=0.5)
    code, text = verified(lab, "--all", "--json")
    assert code == 7
    assert [each["verdict"] for each in json.loads(text)["trials"]] == ["bitwise", "different"]
    assert "1 are different. So at 95% confidence, at most 1 of the 2 are false." in text


def test_a_verification_of_a_study_goes_on_where_it_was_stopped(lab: Lab) -> None:
    first = verified(lab, "--all")
    before = {path: path.stat().st_mtime_ns for path in lab.scratch.rglob("trace.jsonl")}
    assert verified(lab, "--all") == first
    assert {path: path.stat().st_mtime_ns for path in lab.scratch.rglob("trace.jsonl")} == before
    without_tolerance(lab)
    verified(lab, "--all")
    assert {path: path.stat().st_mtime_ns for path in lab.scratch.rglob("trace.jsonl")} != before


def test_a_changed_record_is_verified_again(lab: Lab) -> None:
    """Forge the test after a verification of the study, or plant its verdict."""
    assert verified(lab, "--all")[0] == 0
    forged = outputs_of(lab.trial, "evaluate")["responses"]
    forged[0]["text"] = "It repeats."
    rewrite(lab.trial, "evaluate", responses=forged)
    assert verified(lab, "--all")[0] == 7
    for place in lab.scratch.glob("study-*"):
        planted = next(place.glob("* *.json"))
        planted.write_text(planted.read_text().replace('"different"', '"bitwise"'))
        place.chmod(0o777)
    assert verified(lab, "--all")[0] == 7


def test_a_trial_that_cannot_be_read_does_not_stop_the_others(lab: Lab) -> None:
    second = dataclasses.replace(lab.trial, number=2)
    invent(lab, 2, 1.0)
    second.trace.write_text("no trace\n")
    rewrite(second, "finetune")
    code, text = verified(lab, "--all", "--json")
    assert code == 10
    assert [each["verdict"] for each in json.loads(text)["trials"]] == ["bitwise", "inconclusive"]


def test_a_trial_that_lacked_something_is_verified_when_it_is_there(lab: Lab, tmp_path: Path) -> None:
    trace, aside = lab.trial.trace, tmp_path / "aside"
    trace.rename(aside)
    assert verified(lab, "--all")[0] == 10
    aside.rename(trace)
    assert verified(lab, "--all")[0] == 0


def test_what_cannot_be_drawn_gives_one_line(lab: Lab, tmp_path: Path) -> None:
    for options, words in (
        (["--sample", 1], "--sample needs --seed"),
        (["--sample", 2, "--seed", 1], "--sample 2: expected 1 to 1"),
        (["--all", "--new-seeds"], "leave out --stages, --new-seeds and --repr"),
    ):
        with pytest.raises(UsageError, match=words):
            verified(lab, *options)
    assert "give --sample N too" in str(failure(lab, "--seed", 1))
    with pytest.raises(MissingError, match="no trial has a record to verify"):
        verified(dataclasses.replace(lab, runs=tmp_path / "empty"), "--all")


@pytest.mark.parametrize(
    ("trials", "drawn", "wrong", "most"),
    [(56, 3, 0, 34), (56, 10, 0, 13), (56, 56, 0, 0), (56, 56, 2, 2), (1, 1, 0, 0), (56, 3, 3, 56)],
)
def test_a_sample_bounds_how_many_trials_are_false(trials: int, drawn: int, wrong: int, most: int) -> None:
    """Compare with the definition: one more false trial would give such a sample in at most 5 % of draws."""
    assert most_false(trials, drawn, wrong) == most
    if most < trials - drawn + wrong:
        ways = math.comb(trials, drawn)
        few = sum(
            math.comb(most + 1, found) * math.comb(trials - most - 1, drawn - found)
            for found in range(wrong + 1)
        )
        assert few / ways <= 0.05


def failure(lab: Lab, *options: object, trial: object = NAME) -> KitError:
    result = lab.verify(*options, trial=trial)
    assert isinstance(result.exception, KitError), result.output
    return result.exception


def test_a_second_simultaneous_verification_is_refused(lab: Lab) -> None:
    recorded = read_recorded(lab.trial, lab.trial.folder, lab.scratch, "first steps")
    with rerun_folder(recorded, "first steps", 1, False):
        assert isinstance(failure(lab, "--steps", 1), BusyError)
        assert lab.verdict("--steps", 2)["verdict"] == "bitwise", "another question has its own folder"


def test_a_trial_that_cannot_be_verified_gives_one_line(lab: Lab) -> None:
    assert "was not run yet, so there is nothing to verify" in str(
        failure(lab, trial="tiny-neox/adamw-8bit/2")
    )
    assert "numbers its trials" in str(failure(lab, trial="tiny-neox/adamw-8bit/9"))
    assert isinstance(failure(lab, "--steps", 1, "--new-seeds"), UsageError)
    adapter = lab.trial.adapter / "adapter_model.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    adapter.unlink()  # it is a hard link to the shared file
    adapter.write_bytes(content)
    error = failure(lab, "--steps", 1)
    assert isinstance(error, MissingError)
    assert "adapter_model.safetensors: not the bytes that were recorded" in str(error)


def test_a_record_without_a_setting_gives_one_line(lab: Lab) -> None:
    inputs = inputs_of(lab.trial)
    del inputs["settings"]["lora"]
    rewrite(lab.trial, "finetune", inputs)
    assert "not the settings of a trial (no setting 'lora')" in str(failure(lab, "--steps", 1))
