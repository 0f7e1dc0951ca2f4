"""The option that a response gives."""

import pytest

from qlora_repeat.respond import answer_letter


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
    ],
)
def test_the_first_letter_that_stands_alone_is_the_answer(response: str, letter: str) -> None:
    assert answer_letter(response) == letter


@pytest.mark.parametrize(
    "response", ["", "27", "E", "b", "Because", "ABCD", "D'accord", "Don’t", "BC", "A's"]
)
def test_there_may_be_none(response: str) -> None:
    assert answer_letter(response) is None


@pytest.mark.parametrize(
    ("response", "letter"), [("It is 'B'.", "B"), ("3D", None), ("A4 paper", None), ("Aéro", None)]
)
def test_quotation_marks_do_not_hide_a_letter_and_digits_do(response: str, letter: str | None) -> None:
    assert answer_letter(response) == letter
