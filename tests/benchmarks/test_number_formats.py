"""Grids of number formats agree with torch's numbers and with counting."""

import random

import pytest
import torch
from number_formats import (
    BASE,
    FORMATS,
    LARGEST,
    agreement,
    at_least,
    grid,
    lies_on,
    losses_of,
    read_perplexities,
    share_on,
    sources,
)
from scipy.stats import binom
from support.checkout import ROOT


@pytest.mark.parametrize("name", FORMATS)
def test_a_grid_has_all_numbers_of_its_format(name: str) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(getattr(torch, name)).double()
    assert grid(name).tolist() == sorted(every[every.isfinite() & (every > 0)].tolist())


@pytest.mark.parametrize("name", FORMATS)
def test_a_grid_of_exponentials_has_what_torch_gives_for_losses_of_the_format(name: str) -> None:
    losses = grid(name)
    losses = losses[(losses > 1) & (losses < 11)]
    exponentials = torch.tensor(losses).to(getattr(torch, name)).exp().double().tolist()
    assert len(set(exponentials)) > 300
    for loss, exponential in zip(losses.tolist(), exponentials, strict=True):
        assert loss in losses_of(exponential, name)
        assert exponential in grid(f"exp-{name}")


@pytest.mark.parametrize(
    ("text", "name", "numbers"),
    [
        ("8.039", "float16", [8.0390625]),  # 8.03906...
        ("8.391", "float16", [8.390625]),  # rounded up
        ("8.179", "float16", [8.1796875]),  # truncated
        ("8.039", "bfloat16", []),
        ("6.468", "bfloat16", [6.46875]),
        ("6.5", "bfloat16", [6.46875, 6.5, 6.53125, 6.5625, 6.59375]),
        ("790", "float16", [789.5, 790.0, 790.5]),
        ("790", "bfloat16", []),
        ("3452", "float16", [3452.0]),
        ("3452", "exp-float16", []),
        ("3824", "exp-bfloat16", [3824.0]),
        ("165687.93", "float16", []),
    ],
)
def test_a_printed_number_has_the_right_candidates(text: str, name: str, numbers: list[float]) -> None:
    assert sources(text, name) == numbers
    assert lies_on(text, name) == bool(numbers)


@pytest.mark.parametrize("name", ["bfloat16", "exp-bfloat16", "exp-float16"])
@pytest.mark.parametrize(("low", "digits"), [(1024, 0), (16, 1), (2, 2)])
def test_the_share_on_a_grid_agrees_with_counting(name: str, low: int, digits: int) -> None:
    texts = [f"{number / 10**digits:.{digits}f}" for number in range(low * 10**digits, 2 * low * 10**digits)]
    on = sum(lies_on(text, name) for text in texts)
    assert share_on(texts[0], name) == share_on(texts[-1], name) == pytest.approx(on / len(texts))


def test_the_probability_of_at_least_n_events() -> None:
    for count in range(9):
        assert at_least(count, [0.3] * 8) == pytest.approx(binom.sf(count - 1, 8, 0.3))
    assert at_least(2, [0.5, 0.1, 1.0]) == pytest.approx(1 - 0.5 * 0.9)


def test_only_numbers_of_a_grid_agree_with_it_rounded_or_truncated() -> None:
    draw = random.Random(5)
    numbers = [number for number in grid("float16").tolist() if 8 <= number < 16]
    cut = [f"{int(number * 1000) / 1000:.3f}" for number in draw.sample(numbers, 7)]
    rounded = [f"{number:.3f}" for number in draw.sample(numbers, 7)]
    for texts in (cut, rounded):
        found = agreement(texts, "float16")
        assert (found.found, found.of) == (7, 7)
        assert found.chance < 1e-4
    others = [agreement([f"{draw.uniform(8, 16):.3f}" for _ in range(7)], "float16") for _ in range(40)]
    assert sum(one.chance < 0.05 for one in others) <= 5
    assert all(one.found < 7 for one in others)


def printed_perplexities(model: str) -> list[str]:
    return [
        each.text
        for each in read_perplexities(ROOT / "paper" / "published")
        if each.model == model and each.optimizer != BASE
    ]


def test_all_gpt_neox_perplexities_but_one_are_exponentials_of_float16_losses() -> None:
    texts = printed_perplexities("gpt-neox-20b")
    assert len(texts) == 14
    assert [text for text in texts if not lies_on(text, "float16")] == []
    assert [text for text in texts if not lies_on(text, "exp-float16")] == ["3452"]
    assert agreement(texts, "float16").chance < 1e-7
    assert agreement(texts, "exp-float16").chance < 1e-13


def test_all_gpt_neoxt_chat_perplexities_but_one_are_exponentials_of_bfloat16_losses() -> None:
    texts = printed_perplexities("gpt-neoxt-chat-20b")
    assert len(texts) == 14
    for name, chance in (("bfloat16", 1e-15), ("exp-bfloat16", 1e-22)):
        assert [text for text in texts if not lies_on(text, name)] == ["14680"]
        assert agreement(texts, name).chance < chance
    assert lies_on("14680", "float16")
    assert lies_on("16.625", "exp-bfloat16"), "the base model of section IX"


def test_llama_perplexities_are_on_none_of_these_grids() -> None:
    for model in ("llama2-7b", "llama2-chat-7b"):
        texts = printed_perplexities(model)
        assert len(texts) == 14
        for name in ("float16", "bfloat16", "exp-float16", "exp-bfloat16"):
            assert agreement(texts, name).chance > 0.1
        assert max(map(float, texts)) > LARGEST["float16"]
