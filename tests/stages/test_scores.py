"""The scores of generated answers equal those computed by hand."""

import pytest

from qlora_repeat.stages.scores import label_scores, named_labels, rouge

COLORS = ["dark green", "green", "red"]


def test_accuracy_and_macro_f1_are_those_by_hand() -> None:
    references = ["red", "red", "green", "green"]
    texts = ["Red.", "green", "it is green", "none of them"]
    # red: precision 1/1, recall 1/2, F1 2/3; green: precision 1/2, recall 1/2, F1 1/2.
    assert label_scores(references, texts, COLORS) == {
        "accuracy": 0.5,
        "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 2),
        "without_label": 1,
    }


def test_a_label_that_no_reference_has_does_not_count_in_the_mean() -> None:
    assert label_scores(["red"], ["red"], COLORS)["macro_f1"] == 1


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" green", "green"),
        ("Dark Green, not red", "dark green"),
        ("not red but green", "red"),
        ("greenish or reddish", None),
        ("", None),
    ],
)
def test_the_label_that_is_named_first_counts_and_the_longest_of_several(text: str, label: str) -> None:
    assert named_labels([text], COLORS) == [label]


def test_labels_may_have_any_characters() -> None:
    assert named_labels(["It is C++ (old)", "-1", "x"], ["C++", "-1", "1", "(old)"]) == ["C++", "-1", None]


def test_rouge_is_that_by_hand() -> None:
    # Five of six words are in both texts, and two of five pairs; the longest common sequence has five words.
    found = rouge(["the cat sat on the mat"], ["the cat lay on the rug mat"])
    assert found["rouge1"] == pytest.approx(2 * 5 / (6 + 7))
    assert found["rouge2"] == pytest.approx(2 * 2 / (5 + 6))
    assert found["rougeL"] == pytest.approx(2 * 5 / (6 + 7))


def test_rouge_is_the_mean_over_answers_and_zero_without_words() -> None:
    assert rouge(["a dog", "a cat"], ["a dog", ""]) == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}
