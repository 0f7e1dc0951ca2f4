"""A trial through all its stages, on real NF4 models of both architectures."""

import dataclasses
import errno
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.places import NO_RUNS, at
from support.small_disk import needs_mount, on_small_disk
from support.tiny import write_study
from support.trials import outputs, quiet
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_repeat.assets.base_models import base_folder, load_full, load_tokenizer
from qlora_repeat.assets.datasets import encode, part_rows, study_prompts
from qlora_repeat.errors import StageError, StoppedError
from qlora_repeat.execution.run_trial import run_base_test, run_trial
from qlora_repeat.records.record import read_record, write_record
from qlora_repeat.records.trace import Step, read_trace
from qlora_repeat.records.trial_state import stage_states, trial_state
from qlora_repeat.stages.evaluate import measure_losses
from qlora_repeat.stages.generate import respond
from qlora_repeat.stages.merge import delete_merged, merge_weights
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.trial import STAGES, Progress, Trial
from qlora_repeat.system import hashing
from qlora_repeat.system.files import open_regular
from qlora_repeat.system.hashing import weights_digest
from qlora_repeat.system.safetensors_file import tensor_digests

MODELS = ["tiny-neox", "tiny-llama-chat"]


@pytest.fixture(scope="module", params=MODELS)
def trial(request: pytest.FixtureRequest, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Return the finished first 8-bit trial of each model, with its merged weights."""
    folder = tmp_path_factory.mktemp("kept")
    study = load_study(str(write_study(folder, ("keep_merged = false", "keep_merged = true"))))
    trial = at(study, folder / "runs", cache).trial(f"{request.param}/adamw-8bit/1")
    run_base_test(trial.workspace.base_tests(trial.model_name)[0], quiet)
    run_trial(trial, STAGES, quiet)
    return trial


def test_all_stages_are_done(trial: Trial, cache: Path) -> None:
    assert trial_state(trial).state == "done"


def test_peft_loads_the_adapter_onto_the_base(trial: Trial, cache: Path) -> None:
    base = load_full(base_folder(at(trial.study, NO_RUNS, cache), trial.model.base), "float32")
    adapted = PeftModel.from_pretrained(base, trial.adapter)
    config = adapted.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 32, 0.05)
    moved = [value for name, value in adapted.named_parameters() if "lora_B" in name]
    assert moved
    assert all(value.abs().max() > 0 for value in moved)


def test_plain_transformers_loads_the_merged_model(trial: Trial) -> None:
    model = AutoModelForCausalLM.from_pretrained(trial.merged)
    tokenizer = AutoTokenizer.from_pretrained(trial.merged)
    assert model.dtype == torch.float16
    assert tokenizer("Your silence will").input_ids
    assert weights_digest(trial.merged) == outputs(trial, "merge")["merged_digest"]


def test_merged_weights_have_the_bits_of_pefts_merge(trial: Trial, cache: Path, tmp_path: Path) -> None:
    folder = base_folder(at(trial.study, NO_RUNS, cache), trial.model.base)
    merge_weights(folder, trial.adapter, tmp_path, "float32")
    ours = load_full(tmp_path, "float32").state_dict()
    theirs = PeftModel.from_pretrained(load_full(folder, "float32"), trial.adapter).merge_and_unload()
    assert [name for name, value in theirs.state_dict().items() if not torch.equal(value, ours[name])] == []


def test_merged_logits_match_base_and_adapter(trial: Trial, cache: Path, tmp_path: Path) -> None:
    folder = base_folder(at(trial.study, NO_RUNS, cache), trial.model.base)
    merge_weights(folder, trial.adapter, tmp_path, "float32")
    ids = torch.arange(40, 60)[None]
    with torch.inference_mode():
        base = load_full(folder, "float32")(ids).logits
        unmerged = PeftModel.from_pretrained(load_full(folder, "float32"), trial.adapter).eval()(ids).logits
        merged = load_full(tmp_path, "float32")(ids).logits
    difference = (merged - unmerged).abs().max().item()
    assert difference < 1e-5
    assert (merged - base).abs().max().item() > 100 * difference


def test_perplexity_matches_transformers_loss_of_single_examples(trial: Trial, cache: Path) -> None:
    model = load_full(trial.merged, "float32")
    tokenizer = load_tokenizer(trial.merged)
    total, tokens = 0.0, 0
    for row in part_rows(at(trial.study, NO_RUNS, cache), trial.model.data, "test", 42)[:6]:
        ids = tokenizer(trial.model.template.format(**row), return_tensors="pt").input_ids
        with torch.inference_mode():
            total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    recorded = outputs(trial, "evaluate")
    assert recorded["test_tokens"] == tokens
    assert recorded["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)


def test_responses_are_recorded_for_each_prompt_and_sampling(trial: Trial) -> None:
    responses = outputs(trial, "evaluate")["responses"]
    settings = [(response["temperature"], response["top_p"]) for response in responses]
    assert settings == [(1.0, 1.0), (0.1, 0.1)] * 2
    assert len({response["prompt"] for response in responses}) == 2


def test_the_trace_has_every_step(trial: Trial) -> None:
    start, *steps = read_trace(trial.trace)
    assert start == Step(0, adapter=start.adapter)
    assert [step.step for step in steps] == [1, 2, 3]
    assert all(math.isfinite(step.loss or math.nan) and (step.gradient_norm or 0) > 0 for step in steps)
    assert [step.learning_rate for step in steps] == [trial.model.training.learning_rate] * 3
    assert [len(step.examples or []) for step in steps] == [1, 1, 1]
    found = outputs(trial)
    assert steps[-1].loss == found["final_loss"]
    assert steps[-1].adapter == found["adapter_digest"]
    assert len({step.adapter for step in (start, *steps)}) == 4


def test_rare_digests_are_also_taken_after_the_first_and_the_last_step(
    trial: Trial, cache: Path, tmp_path: Path
) -> None:
    """Check the digest after the first update, where optimizers first differ."""
    study = dataclasses.replace(trial.study, digest_every=10)
    rare = at(study, tmp_path, cache).trial(trial.name)
    run_trial(rare, ["finetune"], quiet, seeds=outputs(trial)["seeds"])
    digests = [step.adapter for step in read_trace(trial.trace)]
    assert [step.adapter for step in read_trace(rare.trace)] == [*digests[:2], None, digests[3]]


def test_the_trace_names_the_rows_of_each_batch(trial: Trial, cache: Path) -> None:
    rows = part_rows(at(trial.study, NO_RUNS, cache), trial.model.data, "train", 42)
    examples = encode(load_tokenizer(trial.merged), trial.model, rows)
    for step in read_trace(trial.trace)[1:]:
        assert step.tokens == sum(len(examples[row].ids) for row in step.examples or [])


def test_a_finished_fine_tuning_leaves_no_checkpoint(trial: Trial) -> None:
    assert not trial.unfinished.exists()


def test_the_8bit_arm_keeps_8bit_state(trial: Trial) -> None:
    assert outputs(trial)["optimizer_state"].get("uint8", 0) > 0


def test_peak_memory_is_measured_for_this_process(trial: Trial) -> None:
    found = outputs(trial)
    assert found["peak_memory_share"] is None
    assert 2**27 < found["peak_memory_bytes"] < 2**35


@pytest.mark.parametrize("model", MODELS)
def test_seeded_trials_give_the_same_bits_and_other_state_precision_other_bits(
    model: str, cache: Path, study_file: Path, tmp_path: Path
) -> None:
    study = load_study(f"{study_file}@seeded")
    digests = {}
    for name in ("adamw-8bit/1", "adamw-8bit/2", "adamw-32bit/1"):
        trial = at(study, tmp_path / "runs", cache).trial(f"{model}/{name}")
        run_trial(trial, ["finetune"], quiet)
        digests[name] = outputs(trial)["adapter_digest"]
    assert digests["adamw-8bit/1"] == digests["adamw-8bit/2"]
    assert digests["adamw-8bit/1"] != digests["adamw-32bit/1"]
    assert set(outputs(trial)["optimizer_state"]) == {"float32"}


def test_fresh_adapters_differ_and_can_be_repeated_from_recorded_seeds(
    cache: Path, study_file: Path, tmp_path: Path
) -> None:
    study = load_study(str(study_file))
    first, second = at(study, tmp_path / "runs", cache).trials()[:2]
    for trial in (first, second):
        run_trial(trial, ["finetune"], quiet)
    found = [outputs(trial) for trial in (first, second)]
    assert found[0]["seeds"]["adapter_init"] != found[1]["seeds"]["adapter_init"]
    assert found[0]["adapter_digest"] != found[1]["adapter_digest"]
    # B begins at zero, so the first loss is the base model's: equal losses show equal order and dropout.
    assert found[0]["initial_loss"] == found[1]["initial_loss"]
    run_trial(second, ["finetune"], quiet, force=True, seeds=found[0]["seeds"])
    assert outputs(second)["adapter_digest"] == found[0]["adapter_digest"]
    assert second.trace.read_bytes() == first.trace.read_bytes()


@pytest.mark.parametrize("setting", ['"fresh"', "{ per_trial = 42 }"])
def test_a_trial_with_its_own_split_is_tested_on_its_own_test_part(
    setting: str, cache: Path, tmp_path: Path
) -> None:
    study = load_study(str(write_study(tmp_path, ("split = 42", f"split = {setting}"))))
    splits = []
    for trial in at(study, tmp_path / "runs", cache).trials()[:2]:
        run_trial(trial, ["finetune", "merge", "evaluate"], quiet)
        seed = outputs(trial)["seeds"]["split"]
        rows = part_rows(at(study, NO_RUNS, cache), trial.model.data, "test", seed)[
            : study.evaluation.examples
        ]
        examples = encode(load_tokenizer(trial.merged), trial.model, rows)
        tokens = [example["tokens"] for example in outputs(trial, "evaluate")["examples"]]
        assert tokens == [len(example.ids) - 1 for example in examples]
        splits.append(rows)
    assert splits[0] != splits[1]


@pytest.fixture
def trained(cache: Path, study_file: Path, tmp_path: Path) -> Trial:
    """Return a fine-tuned trial with fresh seeds."""
    trial = at(study_file, tmp_path / "runs", cache).trials()[0]
    run_trial(trial, ["finetune"], quiet)
    return trial


def stop_at(step: int) -> Progress:
    """Return a callback that stops a fine-tuning at a step, as a signal does."""

    def watch(stage: str, done: int, total: int, loss: float | None) -> None:
        if loss is not None and done == step:
            raise StoppedError("enough")

    return watch


def test_given_seeds_replace_an_attempt_with_other_seeds(trained: Trial, cache: Path) -> None:
    trial, before = trained, outputs(trained)
    with pytest.raises(StoppedError):
        run_trial(trial, ["finetune"], stop_at(2), force=True)
    assert trial.unfinished.exists()
    run_trial(trial, ["finetune"], quiet, force=True, seeds=before["seeds"])
    assert outputs(trial)["seeds"] == before["seeds"]
    assert outputs(trial)["adapter_digest"] == before["adapter_digest"]


def test_a_damaged_adapter_is_restored_from_its_recorded_seeds(trained: Trial, cache: Path) -> None:
    trial, before = trained, outputs(trained)
    (trial.adapter / "adapter_model.safetensors").unlink()
    run_trial(trial, ["finetune"], quiet)
    assert outputs(trial)["adapter_digest"] == before["adapter_digest"]


def test_an_older_adapter_is_kept_if_the_disk_is_too_full_for_a_new_one(
    trained: Trial, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, before = trained, outputs(trained)

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(StageError, match="No space left"):
        patched.setattr(PeftModel, "save_pretrained", full)
        run_trial(trial, ["finetune"], quiet, force=True)
    assert stage_states(trial)["finetune"].state == "done"
    assert outputs(trial) == before
    run_trial(trial, ["finetune"], quiet, force=True)
    found = outputs(trial)
    assert found["resumed_from"] == found["steps"], "no step was trained again"


def test_fresh_responses_are_drawn_once_for_a_trial(cache: Path, tmp_path: Path) -> None:
    study = load_study(str(write_study(tmp_path, ("generation = 42", 'generation = "fresh"'))))
    first, second = at(study, tmp_path / "runs", cache).trials()[:2]
    for trial in (first, second):
        run_trial(trial, STAGES, quiet)
    drawn = outputs(first)["seeds"]["generation"]
    assert outputs(first, "evaluate")["generation_seed"] == drawn
    assert outputs(first, "time")["generation_seed"] == drawn
    assert outputs(second, "evaluate")["generation_seed"] != drawn


def test_deleted_merged_weights_are_rebuilt_and_then_deleted_again(
    cache: Path, study_file: Path, tmp_path: Path
) -> None:
    trial = at(study_file, tmp_path / "runs", cache).trial("tiny-neox/adamw-8bit/1")
    run_trial(trial, ["finetune", "merge"], quiet)
    delete_merged(trial)
    run_trial(trial, ["evaluate"], quiet)
    assert trial.merged.is_dir(), "the time stage still needs them"
    run_trial(trial, ["time"], quiet)
    assert not trial.merged.exists()
    assert trial_state(trial).state == "done"


def flip(path: Path) -> None:
    """Flip the last bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_damaged_adapter_is_named_and_trained_again(cache: Path, tmp_path: Path) -> None:
    study = load_study(str(write_study(tmp_path, ('adapter_init = "fresh"', "adapter_init = 7"))))
    trial = at(study, tmp_path / "runs", cache).trial("tiny-neox/adamw-8bit/1")
    run_trial(trial, STAGES, quiet)
    before = {stage: outputs(trial, stage) for stage in STAGES}
    weights = trial.adapter / "adapter_model.safetensors"
    flip(weights)
    assert trial_state(trial).state == "damaged"
    with pytest.raises(
        StageError, match=rf"merge needs the finetune stage, which is damaged: {weights}: not the bytes that"
    ):
        run_trial(trial, ["merge"], quiet)
    assert outputs(trial) == before["finetune"], "the record is kept"
    run_trial(trial, STAGES, quiet)
    assert trial_state(trial).state == "done"
    assert outputs(trial)["adapter_digest"] == before["finetune"]["adapter_digest"]
    # The adapter is the same again, so the later stages are still valid.
    assert outputs(trial, "time") == before["time"]


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "record"])
def test_damaged_merged_weights_are_rebuilt_for_a_later_stage(
    damage: str, cache: Path, study_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trial = at(study_file, tmp_path / "runs", cache).trial("tiny-neox/adamw-8bit/1")
    run_trial(trial, ["finetune", "merge"], quiet)
    before = outputs(trial, "merge")
    path = trial.record("merge") if damage == "record" else trial.merged / damage
    flip(path)
    assert stage_states(trial)["merge"].state == "damaged"
    if damage == "record":
        with pytest.raises(StageError, match="evaluate needs the merge stage, which is damaged"):
            run_trial(trial, ["evaluate"], quiet)
    else:
        run_trial(trial, ["evaluate"], quiet)
        assert str(path) in capfd.readouterr().err
        assert weights_digest(trial.merged) == before["merged_digest"]
        assert stage_states(trial)["evaluate"].state == "done"
    run_trial(trial, STAGES, quiet)
    assert trial_state(trial).state == "done"
    assert outputs(trial, "merge") == before


def test_no_weights_are_hashed_twice(
    cache: Path, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merged weights are hashed while they are written, and the base once."""
    monkeypatch.setattr(hashing, "_SETTLED", -(10**18))  # as if all had been written long ago
    monkeypatch.setattr(hashing, "_found", {})
    opened = Counter[str]()

    def counted(path: Path, *, follow: bool = False) -> Any:
        opened[f"{path.parent.name}/{path.name}"] += 1
        return open_regular(path, follow=follow)

    def digests(path: Path) -> dict[str, list[Any]]:
        opened[f"tensors of {path.parent.name}"] += 1
        return tensor_digests(path)

    monkeypatch.setattr(hashing, "open_regular", counted)
    monkeypatch.setattr(hashing, "tensor_digests", digests)
    trial = at(study_file, tmp_path / "runs", cache).trial("tiny-neox/adamw-8bit/1")
    run_trial(trial, STAGES, quiet)
    folder = base_folder(trial.workspace, "tiny-neox").name
    assert opened[f"{folder}/model.safetensors"] == 1
    assert not [name for name in opened if name.endswith(("merged/model.safetensors", "of merged"))]
    assert opened["adapter/adapter_model.safetensors"] == opened["tensors of adapter"] == 1
    assert outputs(trial, "evaluate")["perplexity"] > 0


def test_merged_weights_that_differ_from_the_record_are_not_evaluated(
    cache: Path, study_file: Path, tmp_path: Path
) -> None:
    trial = at(study_file, tmp_path / "runs", cache).trial("tiny-neox/adamw-8bit/1")
    run_trial(trial, ["finetune", "merge"], quiet)
    record = read_record(trial.record("merge"))
    assert record is not None
    other = dataclasses.replace(record, outputs={**record.outputs, "merged_digest": "0" * 64})
    write_record(trial.record("merge"), other)
    with pytest.raises(
        StageError, match=r"the merge record has 0000000000000000; run `qlora-repeat merge tiny"
    ):
        run_trial(trial, ["evaluate"], quiet)
    assert not trial.merged.exists()
    assert not trial.record("evaluate").exists()


@needs_mount
def test_a_full_disk_gives_a_helpful_error_and_loses_nothing(
    cache: Path, study_file: Path, tmp_path: Path
) -> None:
    """Fill the disk after the adapter is written and before the merged weights are."""
    script = """
import shutil, sys
from pathlib import Path
from qlora_repeat.errors import StageError, StoppedError
from qlora_repeat.records.record import read_record, write_record
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.trial_state import stage_states, trial_state
from qlora_repeat.study.trial import STAGES
from qlora_repeat.study.loading import open_workspace
here, study, cache = map(Path, sys.argv[1:])
trial = open_workspace(str(study), runs=here, cache=cache).trial("tiny-neox/adamw-8bit/1")
ballast = here / "ballast"

def fill(stage, done, total, loss):
    if stage == "merge" and not ballast.exists():
        with ballast.open("wb") as file:
            file.write(b"0" * (shutil.disk_usage(here).free - 100_000))

try:
    run_trial(trial, STAGES, fill)
except StageError as error:
    print(error)
assert [state.state for state in stage_states(trial).values()] == ["done"] + ["missing"] * 3
assert not list(trial.folder.glob(".merged*"))
digest = read_record(trial.record("finetune")).outputs["adapter_digest"]
ballast.unlink()
run_trial(trial, STAGES, lambda *_: None)
assert trial_state(trial).state == "done"
assert read_record(trial.record("finetune")).outputs["adapter_digest"] == digest
"""
    done = on_small_disk(script, tmp_path / "disk", 200, study_file, cache)
    assert done.returncode == 0, done.stderr
    merged = tmp_path / "disk" / "tiny" / "tiny-neox" / "adamw-8bit" / "trial-1" / "merged"
    assert done.stdout == (
        f"tiny-neox/adamw-8bit/1: merge: {merged}: No space left on device; free some space there, or set "
        "QLORA_REPEAT_RUNS (results) or QLORA_REPEAT_CACHE (models and data) to another folder; "
        "finished work is kept\n"
    )


def test_a_changed_setting_makes_only_its_stages_stale(cache: Path, study_file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    trial = at(study_file, runs, cache).trial("tiny-neox/adamw-8bit/1")
    run_trial(trial, STAGES, quiet)

    def states(*replacements: tuple[str, str]) -> list[str]:
        changed = at(write_study(tmp_path, *replacements), runs, cache).trial(trial.name)
        return [state.state for state in stage_states(changed).values()]

    assert states() == ["done", "done", "done", "done"]
    assert states(("timing_repeats = 2", "timing_repeats = 3")) == ["done", "done", "done", "stale"]
    assert states(("examples = 6", "examples = 7")) == ["done", "done", "stale", "done"]
    assert states(("alpha = 32", "alpha = 16")) == ["stale", "stale", "stale", "stale"]
    assert states(('title = "Tiny NeoX"', 'title = "Another name"')) == ["done", "done", "done", "done"]


def test_a_stage_out_of_order_says_what_is_missing(cache: Path, study_file: Path, tmp_path: Path) -> None:
    trial = at(study_file, tmp_path / "runs", cache).trial("tiny-neox/adamw-8bit/1")
    with pytest.raises(StageError, match="evaluate needs the merge stage, which has not run"):
        run_trial(trial, ["evaluate"], quiet)
    assert trial_state(trial).state == "failed"


def test_greedy_decoding_gives_the_answers_that_count_as_right(cache: Path, study_file: Path) -> None:
    """Evaluate and ask a model that has memorized one answer."""
    study = load_study(str(study_file))
    wanted = study.models["tiny-llama-chat"]
    folder = base_folder(at(study, NO_RUNS, cache), wanted.base)
    model, tokenizer = load_full(folder, "float32"), load_tokenizer(folder)
    rows = part_rows(at(study, NO_RUNS, cache), wanted.data, "test", 42)
    example = encode(tokenizer, wanted, rows[:1])[0]
    ids = torch.tensor([example.ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = measure_losses(
        at(study, NO_RUNS, cache), "tiny-llama-chat", model.eval(), tokenizer, 42, lambda *_: None
    )
    assert measured["examples"][0]["answered"]
    start = example.answer_start
    decoded = model.generate(ids[:, :start], max_new_tokens=len(example.ids) - start, do_sample=False)
    assert decoded[0].tolist() == example.ids
    assert 0 < measured["accuracy"] < 1


def test_a_diverged_model_answers_and_is_measured(cache: Path, study_file: Path) -> None:
    study = load_study(str(study_file))
    folder = base_folder(at(study, NO_RUNS, cache), "tiny-neox")
    model, tokenizer = load_full(folder, "float32"), load_tokenizer(folder)
    model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.data.fill_(math.nan)
    measured = measure_losses(at(study, NO_RUNS, cache), "tiny-neox", model, tokenizer, 42, lambda *_: None)
    assert math.isnan(measured["perplexity"])
    prompt = study_prompts(at(study, NO_RUNS, cache), "tiny-neox", 42)[0]
    for sampling in study.generation.samplings:
        assert isinstance(respond(model, tokenizer, prompt, study, "tiny-neox", sampling, 1), str)


def test_another_base_or_split_makes_a_trial_stale_before_it_is_fetched(
    cache: Path, study_file: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    trial = at(study_file, runs, cache).trial("tiny-neox/adamw-8bit/1")
    run_trial(trial, ["finetune"], quiet)
    for change, name in (
        (("split = 42", "split = 43"), "split"),
        (('sha256 = "b179', 'sha256 = "c179'), "base_source"),
    ):
        changed = at(write_study(tmp_path, change), runs, cache).trial(trial.name)
        state = stage_states(changed)["finetune"]
        assert state.state == "stale"
        assert state.changed == [name]
