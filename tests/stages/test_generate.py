"""The option that a response chooses."""

import math

import pytest
import torch

from qlora_repeat.stages.generate import answer_letter, finite_scores


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        (" C</s>", "C"),
        ("D: 27", "D"),
        ("(A)", "A"),
        ("The answer is B.", "B"),
        ("Answer: C", "C"),
        ("B, not C", "B"),
        ("I think “D”", "D"),
        ("**A**", "A"),
        ("\nB\n", "B"),
        ("A", "A"),
        ("A.", "A"),
        ("A Polling data", "A"),
        ("A person says B", "B"),
    ],
)
def test_the_first_single_letter_is_the_answer(response: str, letter: str) -> None:
    assert answer_letter(response) == letter


@pytest.mark.parametrize(
    "response", ["", "27", "E", "b", "Because", "ABCD", "D'accord", "Don’t", "BC", "A's", "A person does"]
)
def test_a_response_may_have_no_answer(response: str) -> None:
    assert answer_letter(response) is None


@pytest.mark.parametrize(
    ("response", "letter"), [("It is 'B'.", "B"), ("3D", None), ("A4 paper", None), ("Aéro", None)]
)
def test_quotation_marks_do_not_hide_a_letter_and_digits_do(response: str, letter: str | None) -> None:
    assert answer_letter(response) == letter


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("worst", [math.inf, -math.inf, math.nan])
def test_scores_of_a_diverged_model_can_be_sampled(temperature: float, worst: float) -> None:
    scores = finite_scores(None, torch.tensor([[0.0, worst, 1.0]]))
    chances = torch.softmax(scores / temperature, dim=-1)
    assert torch.multinomial(chances, 1).item() in (0, 1, 2)
    assert chances.sum().item() == pytest.approx(1.0)
