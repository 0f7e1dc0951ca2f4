"""Answers to test rows, generated greedily in batches of one shape, and their scores."""

from collections.abc import Callable, Sequence
from typing import Any

from qlora_repeat.assets.answer_rows import asked_rows, data_labels
from qlora_repeat.errors import StageError
from qlora_repeat.stages.generate import finite_scores
from qlora_repeat.stages.padding import padding_id
from qlora_repeat.stages.scores import scores
from qlora_repeat.study.scores import MOST_CHARACTERS
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.printable import say


def measure_answers(
    workspace: Workspace,
    model_name: str,
    model: Any,
    tokenizer: Any,
    split_seed: int,
    report: Callable[[int, int, None], None],
) -> dict[str, Any]:
    """Return the answers of a model to the first test rows, with references and scores.

    Raises:
        StageError: no row can be answered.
        UsageError: the labels of the data cannot be told apart.
    """
    study = workspace.study
    wanted = study.models[model_name]
    data, settings = study.data[wanted.data], study.evaluation.answers
    labels = data_labels(workspace, wanted.data) if data.task == "classification" else []
    asked, left_out = asked_rows(workspace, model_name, split_seed, tokenizer)
    if not asked:
        raise StageError(f"{model_name}: no test row can be answered and scored")
    if left_out:
        say(f"{model_name}: {left_out} test rows have too long a prompt or reference; left out", error=True)
    texts: list[str] = []
    for start in range(0, len(asked), settings.batch_size):
        prompts = [each.ids for each in asked[start : start + settings.batch_size]]
        filled = prompts + prompts[-1:] * (settings.batch_size - len(prompts))
        answered = generate(
            model, tokenizer, filled, settings.prompt_length, data.max_new_tokens, wanted.stop
        )
        texts += answered[: len(prompts)]
        report(len(texts), len(asked), None)
    return {
        "labels": labels,
        "left_out": left_out,
        "examples": [
            {"row": each.row, "reference": each.reference, "text": text}
            for each, text in zip(asked, texts, strict=True)
        ],
        "scores": scores(data.task, [each.reference for each in asked], texts, labels),
    }


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], length: int, new_tokens: int, stop: str | None
) -> list[str]:
    """Return the likeliest continuation of each prompt, token by token, up to `stop` or an end of text.

    Prompts are padded on the left to `length`, so that the new tokens follow them directly. The batch ends
    when all answers have ended; until then, ended ones are padded.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    padding = padding_id(model, tokenizer)
    absent = [length - len(ids) for ids in prompts]
    ids = [[padding] * count + own for count, own in zip(absent, prompts, strict=True)]
    mask = [[0] * count + [1] * len(own) for count, own in zip(absent, prompts, strict=True)]

    def stopped(ids: Any, scores: Any, **kwargs: Any) -> Any:
        texts = tokenizer.batch_decode(ids[:, length:]) if stop is not None else []
        done = [stop is not None and stop in text for text in texts] or [False] * len(ids)
        return torch.tensor(done, device=ids.device)

    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            do_sample=False,
            num_beams=1,
            max_new_tokens=new_tokens,
            pad_token_id=padding,
            logits_processor=LogitsProcessorList([finite_scores]),
            stopping_criteria=StoppingCriteriaList([stopped]),
        )
    ends = _end_tokens(model)
    return [_text(tokenizer, row, ends, stop) for row in output[:, length:].tolist()]


def _end_tokens(model: Any) -> set[int]:
    """Return the tokens at which `generate` ends a text."""
    ends = model.generation_config.eos_token_id
    return {*ends} if isinstance(ends, list) else set() if ends is None else {ends}


def _text(tokenizer: Any, ids: list[int], ends: set[int], stop: str | None) -> str:
    end = next((place for place, each in enumerate(ids) if each in ends), len(ids))
    text: str = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return (text.partition(stop)[0] if stop else text)[:MOST_CHARACTERS]
