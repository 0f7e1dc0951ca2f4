"""Padding, and rows with nothing to predict, in batches of fine-tuning and evaluation."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.own_rows import END, own_model, own_tokenizer, write_own_study
from support.trials import outputs, quiet
from transformers import DataCollatorForSeq2Seq

from qlora_repeat.assets.datasets import Example, prompt_ids
from qlora_repeat.errors import StageError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.trace import Step, known_losses, read_trace, trace_line
from qlora_repeat.stages.padding import attention_mask, collate, padding_id, predicts, right_padded
from qlora_repeat.stages.perplexity import accuracy, example_losses
from qlora_repeat.study.trial import Trial

NAME = "own/adamw-32bit/1"
WORDS = ["Is it so", "Is this a longer row of words", "Is", "Is there another row"]


def test_batches_are_those_of_transformers_for_a_tokenizer_that_pads_on_the_right() -> None:
    tokenizer = own_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"input_ids": ids, "labels": [*ids]} for ids in ([5, 6, 7], [8], [END, END], [9, 10, 11, 12])]
    expected = DataCollatorForSeq2Seq(tokenizer)([dict(row) for row in rows])
    found = collate(rows, END)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.dtype == expected[name].dtype
        assert torch.equal(values, expected[name])


def test_an_empty_row_is_padded_and_has_something_to_attend_to() -> None:
    assert right_padded([[], [5, 6]], 3).tolist() == [[3, 3], [5, 6]]
    assert attention_mask([[], [5, 6]]).tolist() == [[1, 0], [1, 1]]
    assert right_padded([[]], 3).tolist() == [[3]]


@pytest.mark.parametrize(("wanted", "used"), [(None, 0), (0, 0), (7, 7), (9, 9), (10, 0), (-1, 0)])
def test_a_padding_token_without_an_embedding_is_replaced(wanted: int | None, used: int) -> None:
    model = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(10, 2))
    assert padding_id(model, SimpleNamespace(pad_token_id=wanted)) == used


@pytest.mark.parametrize(
    ("labels", "some"), [([[5]], False), ([[5, -100]], False), ([[5, 6]], True), ([[-100, 6]], True)]
)
def test_the_first_token_of_a_row_is_not_predicted(labels: list[list[int]], some: bool) -> None:
    assert predicts(torch.tensor(labels)) == some


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("text", "length"), [("Is it", 5), ("Is it</s>", 6)])
def test_a_prompt_has_no_end_token_that_its_text_lacks(text: str, length: int, special: bool) -> None:
    model: Any = SimpleNamespace(special_tokens=special)
    assert len(prompt_ids(own_tokenizer(end=True), model, text)) == length


def finetuned(folder: Path, texts: list[str], *replacements: tuple[str, str], **options: Any) -> Trial:
    rows = [{"quote": text} for text in texts]
    fixed = ('adapter_init = "fresh"', "adapter_init = 7")
    workspace = write_own_study(folder, rows, fixed, *replacements, **options)
    trial = workspace.trial(NAME)
    run_trial(trial, ["finetune"], quiet)
    return trial


def test_a_tokenizer_that_pads_on_the_left_gives_the_same_bits(tmp_path: Path) -> None:
    """GPT-2 has absolute positions: padding on the left would shift them."""
    four = ("batch_size = 1", "batch_size = 4")
    trials = [
        finetuned(tmp_path / side, WORDS * 5, four, architecture="gpt2", side=side)
        for side in ("left", "right")
    ]
    assert trials[0].trace.read_text() == trials[1].trace.read_text()
    for trial in trials:
        run_trial(trial, ["merge", "evaluate"], quiet)
    left, right = (outputs(trial, "evaluate") for trial in trials)
    assert left["responses"]
    assert left == right


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_row_has_the_same_loss_in_any_batch(architecture: str) -> None:
    model, tokenizer = own_model(architecture).eval(), own_tokenizer(side="left")
    examples = [Example(row, tokenizer(text)["input_ids"], 0) for row, text in enumerate(WORDS)]
    alone, together = (
        [each.loss for each in example_losses(model, examples, size, END, lambda done: None)]
        for size in (1, len(examples))
    )
    assert together == pytest.approx(alone, rel=1e-5)
    rows = [{"input_ids": each.ids, "labels": each.ids} for each in examples]
    predicted = sum(len(each.ids) - 1 for each in examples)
    assert model(**collate(rows, END)).loss.item() == pytest.approx(sum(alone) / predicted, rel=1e-5)


def test_a_padding_token_without_an_embedding_does_not_stop_a_trial(tmp_path: Path) -> None:
    trial = finetuned(tmp_path, WORDS * 5, ("batch_size = 1", "batch_size = 4"), pad=True)
    run_trial(trial, ["merge", "evaluate"], quiet)
    assert math.isfinite(outputs(trial, "evaluate")["perplexity"])


@pytest.mark.parametrize("short", ["a", ""])
def test_a_step_without_a_token_to_predict_has_no_loss_and_is_no_divergence(
    short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ten = ("\nsteps = 3", "\nsteps = 16")
    trial = finetuned(tmp_path, [*WORDS[:2] * 5, *[short] * 10], ten)
    run_trial(trial, ["merge", "evaluate"], quiet)
    steps = read_trace(trial.trace)
    empty = [step for step in steps[1:] if step.empty]
    assert empty and len(empty) < 16
    assert all(step.loss is None and step.gradient_norm == 0 for step in empty)
    found = outputs(trial)
    assert found["diverged_at"] is None
    assert found["initial_loss"] == known_losses(steps)[0]
    assert found["final_loss"] == known_losses(steps)[-1]
    tested = outputs(trial, "evaluate")
    assert tested["test_examples"] + tested["left_out_examples"] == 4
    assert tested["left_out_examples"] > 0
    assert math.isfinite(tested["perplexity"])
    told = f"test examples left out, without a token to predict: {tested['left_out_examples']}\n"
    assert told in capsys.readouterr().err


def test_a_test_without_a_token_to_predict_fails_in_one_line(tmp_path: Path) -> None:
    trial = finetuned(tmp_path, ["a"] * 10)
    assert known_losses(read_trace(trial.trace)) == []
    run_trial(trial, ["merge"], quiet)
    with pytest.raises(StageError, match="own: no test example has a token to predict"):
        run_trial(trial, ["evaluate"], quiet)


def test_a_step_without_a_loss_is_marked_in_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    step = Step(1, epoch=1.0, examples=[0], tokens=1, gradient_norm=0.0, learning_rate=0.1, empty=True)
    path.write_text(trace_line(Step(0, adapter="a")) + trace_line(step))
    assert json.loads(path.read_text().splitlines()[1])["empty"] is True
    assert read_trace(path)[1] == step
    assert "empty" not in trace_line(Step(1, loss=1.0))


def test_a_cut_answer_is_not_judged() -> None:
    class Constant:
        device = "cpu"

        def __call__(self, input_ids: Any, **options: Any) -> Any:
            return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids.roll(-1, 1), 10).float())

    examples = [Example(0, [1, 2, 3], 2), Example(1, [1, 2, 3], 2, cut=True), Example(2, [4], 0)]
    losses = example_losses(Constant(), examples, 2, 0, lambda done: None)
    assert [(loss.row, loss.answered) for loss in losses] == [(0, True), (1, None)]
    assert accuracy(losses) == 1.0


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_configuration_may_name_a_padding_token_without_an_embedding(
    architecture: str, tmp_path: Path
) -> None:
    """Transformers cannot build such a model."""
    batches = ("batch_size = 1", "batch_size = 4")
    trial = finetuned(tmp_path, WORDS * 5, batches, architecture=architecture, config={"pad_token_id": 400})
    run_trial(trial, ["merge", "evaluate"], quiet)
    assert math.isfinite(outputs(trial, "evaluate")["perplexity"])
