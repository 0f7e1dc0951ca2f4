"""Scores of generated answers: accuracy and macro-F1 of labels, ROUGE of texts.

They follow from texts alone, so that `verify` can compute them again from a record.
"""

import re
from collections.abc import Sequence
from statistics import fmean

from qlora_repeat.study.data_sources import Task
from qlora_repeat.study.scores import ScoreName

ROUGE: tuple[ScoreName, ...] = ("rouge1", "rouge2", "rougeL")
"""The names are those of the library rouge-score."""


def scores(
    task: Task, references: Sequence[str], texts: Sequence[str], labels: Sequence[str]
) -> dict[ScoreName, float]:
    """Return the scores of at least one text, each with its reference; for a classification, a label."""
    return label_scores(references, texts, labels) if task == "classification" else rouge(references, texts)


def label_scores(
    references: Sequence[str], texts: Sequence[str], labels: Sequence[str]
) -> dict[ScoreName, float]:
    """Return accuracy, the mean F1 of the labels that are a reference, and how many texts name no label."""
    from sklearn.metrics import accuracy_score, f1_score

    named = named_labels(texts, labels)
    chosen = [label or "" for label in named]  # no label is empty
    known = sorted(set(references))
    return {
        "accuracy": float(accuracy_score(references, chosen)),
        "macro_f1": float(f1_score(references, chosen, labels=known, average="macro", zero_division=0)),
        "without_label": named.count(None),
    }


def named_labels(texts: Sequence[str], labels: Sequence[str]) -> list[str | None]:
    """Return the label that each text names first, as whole words in any case; None if it names none.

    Of several that begin at the same place, it is the longest.
    """
    plain = {label.casefold(): label for label in labels}
    longest_first = sorted(plain, key=lambda label: (-len(label), label))
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
    found = (pattern.search(text.casefold()) for text in texts)
    return [plain[each[0]] if each else None for each in found]


def rouge(references: Sequence[str], texts: Sequence[str]) -> dict[ScoreName, float]:
    """Return the mean F measures of ROUGE-1, -2 and -L, with Porter's stemmer (``ROUGE-1.5.5.pl -m``)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    found = [scorer.score(target, text) for target, text in zip(references, texts, strict=True)]
    return {name: fmean(each[name].fmeasure for each in found) for name in ROUGE}
