"""The test time of Tables 10 and 11: seconds to answer the study's prompts."""

import statistics
import time
from typing import Any

from qlora_repeat.assets.base_models import load_full, load_tokenizer
from qlora_repeat.assets.datasets import Prompt, study_prompts
from qlora_repeat.stages.generate import respond
from qlora_repeat.study.randomness import recorded_or_drawn, stream_seed
from qlora_repeat.study.trial import Progress, Trial


def time_responses(trial: Trial, progress: Progress, seeds: dict[str, int]) -> dict[str, Any]:
    """Time how long a trial's merged model takes to answer all prompts, one by one, with the first sampling.

    Before the clock starts, the model is loaded and answers once; on a GPU, it answers every prompt, because
    kernels are loaded at their first use and depend on the length. Every repeat draws the same responses.

    Returns:
        The record's outputs: the seconds of each repeat, and their median, minimum and maximum.
    """
    study = trial.study
    model = load_full(trial.merged, study.precision.compute)
    tokenizer = load_tokenizer(trial.merged)
    prompts = study_prompts(trial.workspace, trial.model_name, seeds["split"], tokenizer)
    sampling, repeats = study.generation.samplings[0], study.evaluation.timing_repeats
    drawn = recorded_or_drawn(study.randomness.generation, "generation", trial.number, seeds)
    seed = stream_seed(drawn, "generation")

    def answer(given: list[Prompt]) -> float:
        began = time.perf_counter()
        for prompt in given:
            respond(model, tokenizer, prompt, study, trial.model_name, sampling, seed)
        return time.perf_counter() - began

    seconds = []
    answer(prompts if model.device.type == "cuda" else prompts[:1])
    for repeat in range(repeats):
        seconds.append(answer(prompts))
        progress("time", repeat + 1, repeats, None)
    return {
        "generation_seed": drawn,
        "seconds": seconds,
        "test_seconds": statistics.median(seconds),
        "test_seconds_min": min(seconds),
        "test_seconds_max": max(seconds),
    }
