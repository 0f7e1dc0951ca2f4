"""Captions and notes for tables of the paper's own numbers; they state only what the paper states."""

from dataclasses import replace

from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm
from qlora_repeat.results.number_format import DEVIATION_NOTE
from qlora_repeat.study.study import PUBLISHED

_COMPUTED = f"Statistics are computed here from the paper's values. {DEVIATION_NOTE}"
_BASE = "base: the model before fine-tuning, as printed in section IX."
_KINDS = (
    "A letter is the chosen option. Other responses are not copied: (words) is an intelligible response "
    "without a letter, (degenerate) is repetition or fragments, (blank) is no response."
)

_PERPLEXITY = "Perplexity of the fine-tuned {} models on the test split, by run and optimizer."
_SECONDS = "Seconds to fine-tune (train) and to test, {} models, by run."
_ANSWERS = "Answers of {} to the two instructions, by run and optimizer."
_WORDS: dict[str, tuple[str, list[str]]] = {
    "1": (_PERPLEXITY.format("text-generation"), [_COMPUTED, _BASE]),
    "2": (_PERPLEXITY.format("question-answering"), [_COMPUTED, _BASE]),
    "3": (
        "GPU memory allocated, in percent, by model and optimizer.",
        ["The paper has one value for each model and optimizer."],
    ),
    "8": (_ANSWERS.format("GPT-NeoXT-chat-20B"), [_KINDS]),
    "9": (
        _ANSWERS.format("Llama2-chat-7B"),
        [_KINDS, "The paper's caption names GPT-NeoXT-chat-20B, which is Table 8's model."],
    ),
    "10": (
        _SECONDS.format("text-generation"),
        [_COMPUTED, "The paper does not say what the test time covers."],
    ),
    "11": (
        _SECONDS.format("question-answering"),
        [_COMPUTED, "The paper does not say what the test time covers."],
    ),
    "S0": ("Perplexity of the models before fine-tuning, in repeated tests (section IX).", []),
}
"""Caption and notes of each table of the paper's numbers."""
_STATISTICS = {
    "S1": [
        "Statistics are computed here from the paper's values.",
        "The paper prints no losses: a run that diverged is one whose perplexity is not finite.",
    ],
    "S1b": ["Statistics are computed here from the paper's values."],
    "S4": [
        "Verdicts are computed here from the paper's values, as printed. What the paper does not "
        "print as numbers (losses, weights, the sentences of Tables 4 to 7) is untested."
    ],
}
"""Additional notes for tables that the paper does not have."""


def in_the_papers_words(table: Table, arms: list[Arm]) -> Table:
    """Return the table, with its own caption and notes if it shows the paper's numbers."""
    if any(trial.study != PUBLISHED for arm in arms for trial in arm.trials):
        return table
    if table.number in _STATISTICS:
        return replace(table, notes=[*_STATISTICS[table.number], *table.notes])
    if table.number not in _WORDS:
        return table
    caption, notes = _WORDS[table.number]
    return replace(table, caption=caption, notes=notes)
