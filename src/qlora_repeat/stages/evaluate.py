"""The test of a fine-tuned model: perplexity, accuracy and responses (section VIII)."""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from qlora_repeat.assets.base_models import base_folder, check_base, is_miniature, load_full, load_tokenizer
from qlora_repeat.assets.datasets import Prompt, study_prompts
from qlora_repeat.assets.derived_cache import encoded_part
from qlora_repeat.errors import StageError
from qlora_repeat.stages.answers import measure_answers
from qlora_repeat.stages.generate import answer_letter, respond
from qlora_repeat.stages.padding import padding_id
from qlora_repeat.stages.perplexity import accuracy, example_losses, mean_example_perplexity, perplexity
from qlora_repeat.study.randomness import draw_seed, recorded_or_drawn, stream_seed
from qlora_repeat.study.scores import SCORES
from qlora_repeat.study.study import Sampling
from qlora_repeat.study.trial import BaseTest, Progress, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.printable import say


def evaluate(trial: Trial, progress: Progress, seeds: dict[str, int]) -> dict[str, Any]:
    """Evaluate a trial's merged model on the test part of its split.

    `seeds` are from the record of the fine-tuning.

    Returns:
        The record's outputs: those of `measure_losses`, the responses for each sampling and, for a
        classification or summarization, the answers to test rows with their scores.
    """
    study = trial.study
    model = load_full(trial.merged, study.precision.compute)
    tokenizer = load_tokenizer(trial.merged)
    report = partial(progress, "evaluate")
    measured = trial.workspace, trial.model_name, model, tokenizer, seeds["split"], report
    outputs = measure_losses(*measured)
    if trial.data.task in SCORES:
        outputs["answers"] = measure_answers(*measured)
    prompts = study_prompts(trial.workspace, trial.model_name, seeds["split"], tokenizer)
    seed = recorded_or_drawn(study.randomness.generation, "generation", trial.number, seeds)
    outputs["generation_seed"] = seed

    def response(prompt: Prompt, sampling: Sampling, seed: int) -> dict[str, Any]:
        text = respond(model, tokenizer, prompt, study, trial.model_name, sampling, seed)
        return {
            "prompt": prompt.shown,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "text": text,
            "answer": answer_letter(text) if prompt.has_options else None,
            "seed": seed,
        }

    asked = list(itertools.product(enumerate(prompts, 1), study.generation.samplings))
    outputs["responses"] = [
        response(prompt, each, stream_seed(seed, "generation", number, each.temperature, each.top_p))
        for (number, prompt), each in asked
    ]
    if trial.repeats_responses and study.ablation:
        outputs["repeated_responses"] = [  # section IX
            response(prompt, each, draw_seed("fresh", "generation", trial.number))
            for (_, prompt), each in asked
            for _ in range(study.ablation.responses)
        ]
    return outputs


def evaluate_base(test: BaseTest, progress: Progress) -> dict[str, Any]:
    """Evaluate the base of a model with the same precision and code as a merged model."""
    workspace, study, name = test.workspace, test.workspace.study, test.model_name
    split_seed = draw_seed(study.randomness.split, "split", test.number)
    base = study.models[name].base
    check_base(workspace, base)
    folder = base_folder(workspace, base)
    model, tokenizer = load_full(folder, study.precision.compute), load_tokenizer(folder)
    measured = workspace, name, model, tokenizer, split_seed, partial(progress, "base")
    outputs = measure_losses(*measured) | {"miniature": is_miniature(folder), "split_seed": split_seed}
    if study.data[study.models[name].data].task in SCORES:
        outputs["answers"] = measure_answers(*measured)
    return outputs


def measure_losses(
    workspace: Workspace,
    model_name: str,
    model: Any,
    tokenizer: Any,
    split_seed: int,
    report: Callable[[int, int, None], None],
) -> dict[str, Any]:
    """Return perplexity and accuracy on the first examples of the test part, and the loss of each example.

    Examples without a token to predict are left out, and accuracy leaves out cut answers; both are counted.

    Raises:
        StageError: no example has a token to predict.
    """
    settings = workspace.study.evaluation
    examples = encoded_part(workspace, model_name, "test", split_seed, tokenizer, settings.examples)
    losses = example_losses(
        model,
        examples,
        settings.batch_size,
        padding_id(model, tokenizer),
        lambda done: report(done, len(examples), None),
        workspace.study.models[model_name].training.loss,
    )
    left_out, cut = len(examples) - len(losses), sum(example.cut for example in examples)
    if not losses:
        raise StageError(f"{model_name}: no test example has a token to predict; correct data or template")
    if left_out:
        say(f"{model_name}: test examples left out, without a token to predict: {left_out}", error=True)
    if cut:
        what = f"{cut} of {len(examples)} test answers, which max_length cuts"
        say(f"{model_name}: accuracy leaves out {what}", error=True)
    return {
        "perplexity": perplexity(losses),
        "perplexity_example_mean": mean_example_perplexity(losses),
        "accuracy": accuracy(losses),
        "test_examples": len(losses),
        "test_tokens": sum(loss.tokens for loss in losses),
        "left_out_examples": left_out,
        "cut_answers": cut,
        "examples": [dataclasses.asdict(loss) for loss in losses],
    }
