"""Responses drawn together are those that are drawn one by one."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_repeat.assets.base_models import base_folder, load_full, load_tokenizer
from qlora_repeat.assets.datasets import study_prompts
from qlora_repeat.stages.generate import finite_scores, respond, warpers
from qlora_repeat.stages.generate_batch import ROWS, Asked, can_batch, respond_batch, sure_token
from qlora_repeat.study.randomness import Kernels, torch_stream
from qlora_repeat.study.study import Sampling, Study
from qlora_repeat.system.determinism import set_kernels

LIKELY, UNLIKELY = Sampling(0.1, 0.1), Sampling(1.0, 1.0)


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    yield
    set_kernels("default", 1)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A tiny model, with a head that makes some tokens much likelier than others."""

    study: Study
    name: str
    model: Any
    tokenizer: Any
    asked: list[Asked]

    def alone(self) -> list[str]:
        return [
            respond(self.model, self.tokenizer, one.prompt, self.study, self.name, one.sampling, one.seed)
            for one in self.asked
        ]

    def together(self, **options: Any) -> tuple[list[str], int]:
        answers = respond_batch(self.model, self.tokenizer, self.asked, self.study, self.name, **options)
        return answers.texts, answers.alone


def load(
    study: Study, cache: Path, name: str, top_k: int = 50, stop: str | None = None, seeds: int = 4
) -> Loaded:
    """Answers are of 8 tokens, so that there are more to part at."""
    generation = dataclasses.replace(study.generation, top_k=top_k)
    data = {key: dataclasses.replace(each, max_new_tokens=8) for key, each in study.data.items()}
    wanted = dataclasses.replace(study.models[name], stop=stop or study.models[name].stop)
    study = dataclasses.replace(study, generation=generation, data=data, models={name: wanted})
    folder = base_folder(study, wanted.base, cache)
    model, tokenizer = load_full(folder, "float32"), load_tokenizer(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    asked = [
        Asked(prompt, sampling, seed)
        for seed in range(seeds)
        for prompt in study_prompts(study, name, cache, 42)
        for sampling in study.generation.samplings
    ]
    return Loaded(study, name, model, tokenizer, asked)


@pytest.mark.parametrize("kernels", ["default", "deterministic"])
@pytest.mark.parametrize("top_k", [50, 0])
@pytest.mark.parametrize("name", ["tiny-neox", "tiny-llama-chat"])
def test_the_texts_are_those_of_one_by_one(
    name: str, top_k: int, kernels: Kernels, study: Study, cache: Path
) -> None:
    set_kernels(kernels, 1)
    loaded = load(study, cache, name, top_k, seeds=9)
    assert len(loaded.asked) > ROWS
    prompts = {one.prompt.fed: loaded.tokenizer(one.prompt.fed).input_ids for one in loaded.asked}
    assert len({len(ids) for ids in prompts.values()}) == 2, "one of them is padded"
    texts, alone = loaded.together()
    assert texts == loaded.alone()
    assert alone < len(texts) / 4
    assert len(set(texts)) > 9


@pytest.mark.parametrize("name", ["tiny-neox", "tiny-llama-chat"])
def test_each_ends_where_it_ends_alone(name: str, study: Study, cache: Path) -> None:
    loaded = load(study, cache, name, stop="e")
    texts, alone = loaded.together()
    assert texts == loaded.alone()
    assert alone < len(texts) / 4
    assert not any("e" in text for text in texts)
    assert len({len(text) for text in texts}) > 3


@pytest.mark.parametrize("prompts", [1, 2])
def test_each_ends_at_a_token_that_ends_texts(prompts: int, study: Study, cache: Path) -> None:
    """The likeliest after a prompt, or those after both."""
    loaded = load(study, cache, "tiny-neox")
    whole = loaded.alone()
    ends = []
    for fed in {one.prompt.fed: None for one in loaded.asked}:
        ids = loaded.tokenizer(fed, return_tensors="pt").input_ids
        ends.append(loaded.model(ids).logits[0, -1].argmax().item())
    loaded.model.generation_config.eos_token_id = ends if prompts == 2 else ends[0]
    texts, alone = loaded.together()
    assert texts == loaded.alone() != whole
    assert alone < len(texts) / 4
    assert len(min(texts, key=len)) < len(min(whole, key=len))


def test_a_token_that_may_be_another_sends_its_response_to_be_drawn_alone(study: Study, cache: Path) -> None:
    loaded = load(study, cache, "tiny-llama-chat")
    expected = loaded.alone()
    counts = []
    for bound in (0.0, 3e-4, 1e9):
        texts, alone = loaded.together(bound=bound)
        assert texts == expected
        counts.append(alone)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == len(expected)


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_a_diverged_model_answers_as_it_does_alone(worst: float, study: Study, cache: Path) -> None:
    loaded = load(study, cache, "tiny-neox")
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[7] = worst
    texts, alone = loaded.together()
    assert texts == loaded.alone()
    assert alone == len(texts)


def test_what_the_bound_is_not_meant_for_is_drawn_alone(study: Study, cache: Path) -> None:
    loaded = load(study, cache, "tiny-neox")
    loaded.model.generation_config.repetition_penalty = 1.5
    assert loaded.together() == (loaded.alone(), len(loaded.asked))
    loaded.model.generation_config.repetition_penalty = None
    assert loaded.together()[1] < len(loaded.asked)
    half = dataclasses.replace(loaded, model=loaded.model.to(torch.bfloat16), asked=loaded.asked[:4])
    assert half.together() == (half.alone(), 4)
    assert not can_batch(loaded.model.float().to("meta")), "measured on a CPU only"


def test_a_model_that_differs_more_among_others_has_a_wider_bound(study: Study, cache: Path) -> None:
    """One that makes a row depend on how many there are, by a hundredth."""
    loaded = load(study, cache, "tiny-neox")

    def disturb(module: Any, inputs: Any, output: Any) -> Any:
        sign = torch.arange(output.shape[-1]) % 2 * 2 - 1
        return output + 0.01 * sign * (len(output) > 1)

    loaded.model.get_output_embeddings().register_forward_hook(disturb)
    texts, alone = loaded.together()
    assert texts == loaded.alone()
    assert alone > len(texts) / 4


@pytest.mark.parametrize("size", [7, 49152, 50432])
def test_multinomial_is_a_race_of_exponential_waits(size: int) -> None:
    """In its result, and in what it leaves of the generator's numbers."""
    generator = torch.Generator()
    for seed in range(30):
        chances = torch.softmax(torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) * 5, -1)
        chances[chances < 1e-4] = 0
        generator.manual_seed(seed)
        with torch_stream(seed):
            for _ in range(3):
                waits = torch.empty_like(chances).exponential_(generator=generator)
                assert torch.multinomial(chances, 1).item() == (chances / waits).argmax().item()
                assert torch.equal(torch.get_rng_state(), generator.get_state())


@pytest.mark.parametrize("top_k", [0, 1, 5, 64, 100])
@pytest.mark.parametrize("sampling", [UNLIKELY, LIKELY, Sampling(0.7, 0.9), Sampling(2.0, 0.5)])
def test_a_sure_token_is_drawn_from_all_scores_within_the_bound(sampling: Sampling, top_k: int) -> None:
    """Also where they are moved against it: it down, and all others, or those that were left out, up."""
    random = torch.Generator().manual_seed(top_k)
    bound, sure = 0.02, 0
    for _ in range(300):
        scores = torch.randn(64, generator=random) * 2
        waits = torch.empty(64).exponential_(generator=random)
        token = sure_token(scores, waits, sampling, top_k, bound)
        drawn = race(scores, waits, sampling, top_k)
        if token is None:
            continue
        sure += 1
        assert token == drawn
        moves = [torch.rand(64, generator=random) * 2 - 1 for _ in range(10)]
        moves += [move.sign() for move in moves]
        against = torch.ones(64)
        against[token] = -1
        above = torch.where(scores > scores[token], 1.0, -1.0)
        moves += [against, -against, above, -above]
        by = bound * max(1.0, scores.abs().max().item())
        for move in moves:
            assert race(scores + by * move, waits, sampling, top_k) == token
    assert sure > 60


def race(scores: torch.Tensor, waits: torch.Tensor, sampling: Sampling, top_k: int) -> int:
    """What `generate` draws."""
    scores = finite_scores(None, scores[None])
    for warper in warpers(sampling.temperature, sampling.top_p, top_k):
        scores = warper(None, scores)
    return int((torch.softmax(scores, -1) / waits).argmax())


@pytest.mark.parametrize("sampling", [UNLIKELY, LIKELY])
@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf, 1e35])
def test_scores_that_are_not_sampled_from_as_they_are_are_not_sure(worst: float, sampling: Sampling) -> None:
    assert sure_token(torch.tensor([9.0, worst, 1.0]), torch.ones(3), sampling, 2, 0.0) is None
    assert sure_token(torch.tensor([9.0, 0.0, 1.0]), torch.ones(3), sampling, 2, 0.0) == 0


@pytest.mark.parametrize("top_k", [0, 1, 2])
def test_a_tie_is_not_sure(top_k: int) -> None:
    for sampling in (UNLIKELY, LIKELY):
        assert sure_token(torch.tensor([1.0, 5.0, 5.0]), torch.ones(3), sampling, top_k, 0.0) is None
