"""The test of a fine-tuned model: perplexity, accuracy and responses (section VIII)."""

import dataclasses
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_folder, check_base, is_miniature, load_full, load_tokenizer
from qlora_repeat.assets.datasets import Prompt, study_prompts
from qlora_repeat.assets.tokenized import encoded_part
from qlora_repeat.stages.generate import answer_letter
from qlora_repeat.stages.generate_batch import Asked, respond_batch
from qlora_repeat.stages.perplexity import accuracy, example_losses, mean_example_perplexity, perplexity
from qlora_repeat.study.randomness import draw_seed, recorded_or_drawn, stream_seed
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Trial
from qlora_repeat.study.watch import Report


def evaluate(trial: Trial, cache: Path, report: Report, seeds: dict[str, int]) -> dict[str, Any]:
    """Tests a trial's merged model on the test part of the split that it was fine-tuned with.

    `seeds` are those of the fine-tuning's record.

    Returns:
        The record's outputs: what `measure_losses` gives, the responses at each sampling, and how many of
        them were not drawn together with others.
    """
    study = trial.study
    model = load_full(trial.merged, study.precision.compute)
    tokenizer = load_tokenizer(trial.merged)
    outputs = measure_losses(study, trial.model_name, model, tokenizer, cache, seeds["split"], report)
    prompts = study_prompts(study, trial.model_name, cache, seeds["split"])
    seed = recorded_or_drawn(study.randomness.generation, "generation", trial.number, seeds)
    outputs["generation_seed"] = seed
    once = asked_once(trial, prompts, seed)
    again = asked_again(trial, prompts) if trial.repeats_responses else []
    answers = respond_batch(model, tokenizer, [*once, *again], study, trial.model_name)
    responses = [_response(one, text) for one, text in zip([*once, *again], answers.texts, strict=True)]
    outputs["responses"] = responses[: len(once)]
    if trial.repeats_responses:
        outputs["repeated_responses"] = responses[len(once) :]
    outputs["responses_alone"] = answers.alone
    return outputs


def evaluate_base(study: Study, model_name: str, number: int, cache: Path, report: Report) -> dict[str, Any]:
    """Tests the base of one of the study's models, at the same precision and on the same path."""
    split_seed = draw_seed(study.randomness.split, "split", number)
    base = study.models[model_name].base
    check_base(study, base, cache)
    folder = base_folder(study, base, cache)
    model = load_full(folder, study.precision.compute)
    measured = measure_losses(study, model_name, model, load_tokenizer(folder), cache, split_seed, report)
    return measured | {"miniature": is_miniature(folder), "split_seed": split_seed}


def measure_losses(
    study: Study, model_name: str, model: Any, tokenizer: Any, cache: Path, split_seed: int, report: Report
) -> dict[str, Any]:
    """Perplexity and accuracy on the first examples of the test split, with each example's own loss."""
    examples = encoded_part(
        study, model_name, "test", cache, split_seed, tokenizer, study.evaluation.examples
    )
    losses = example_losses(
        model,
        examples,
        study.evaluation.batch_size,
        tokenizer.pad_token_id,
        lambda done: report(done, len(examples), None),
    )
    return {
        "perplexity": perplexity(losses),
        "perplexity_example_mean": mean_example_perplexity(losses),
        "accuracy": accuracy(losses),
        "test_examples": len(losses),
        "test_tokens": sum(loss.tokens for loss in losses),
        "examples": [dataclasses.asdict(loss) for loss in losses],
    }


def asked_once(trial: Trial, prompts: list[Prompt], seed: int) -> list[Asked]:
    """Each prompt at each sampling, each from a stream of its own."""
    return [
        Asked(
            prompt,
            sampling,
            stream_seed(seed, "generation", number, sampling.temperature, sampling.top_p),
        )
        for number, prompt in enumerate(prompts, 1)
        for sampling in trial.study.generation.samplings
    ]


def asked_again(trial: Trial, prompts: list[Prompt]) -> list[Asked]:
    """The same of one model again and again, each from entropy of its own (section IX)."""
    ablation = trial.study.ablation
    assert ablation is not None, "only a study with ablation asks for this"
    return [
        Asked(prompt, sampling, draw_seed("fresh", "generation", trial.number))
        for prompt in prompts
        for sampling in trial.study.generation.samplings
        for _ in range(ablation.responses)
    ]


def _response(asked: Asked, text: str) -> dict[str, Any]:
    return {
        "prompt": asked.prompt.shown,
        "temperature": asked.sampling.temperature,
        "top_p": asked.sampling.top_p,
        "text": text,
        "answer": answer_letter(text) if asked.prompt.has_options else None,
        "seed": asked.seed,
    }
