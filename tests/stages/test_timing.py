"""The test time has no first use of a kernel: which prompts a model answers before the clock starts."""

from types import SimpleNamespace

import pytest
import torch
from support.places import NO_RUNS, at

from qlora_repeat.assets.datasets import Prompt
from qlora_repeat.stages import timing
from qlora_repeat.study.study import Study


@pytest.mark.parametrize(("device", "before"), [("cpu", [0]), ("cuda", [0, 1])])
def test_each_prompt_is_answered_before_it_is_timed_on_a_gpu(
    device: str, before: list[int], study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, answered, seen = [Prompt("short", "short", False), Prompt("longer", "longer", False)], [], []

    def respond(model: object, tokenizer: object, prompt: Prompt, *rest: object) -> str:
        answered.append(prompts.index(prompt))
        return ""

    monkeypatch.setattr(timing, "load_full", lambda *given: SimpleNamespace(device=torch.device(device)))
    monkeypatch.setattr(timing, "load_tokenizer", lambda folder: None)
    monkeypatch.setattr(timing, "study_prompts", lambda *given: prompts)
    monkeypatch.setattr(timing, "respond", respond)
    trial = at(study, NO_RUNS).trials()[0]
    outputs = timing.time_responses(trial, lambda *done: seen.append(len(answered)), {"split": 1})
    repeats = study.evaluation.timing_repeats
    assert answered == before + [0, 1] * repeats
    assert seen == [len(before) + 2 * number for number in range(1, repeats + 1)]
    assert len(outputs["seconds"]) == repeats
