"""The scores of answers that a model generates: which task has which, and how much is scored."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from qlora_repeat.study.data_sources import STRICT, Task

ScoreName = Literal["accuracy", "macro_f1", "without_label", "rouge1", "rouge2", "rougeL"]
SCORES: dict[Task, tuple[ScoreName, ...]] = {
    "classification": ("accuracy", "macro_f1", "without_label"),
    "summarization": ("rouge1", "rouge2", "rougeL"),
}
"""The scores of each task whose answers are labels or references; other tasks have none."""
MOST_ANSWERS = 1000
"""The most answers of a model that are scored."""
MOST_CHARACTERS = 5000
"""The longest answer or reference: a longer answer is cut, a longer reference is left out."""
MOST_LABELS = 1000
Score = Annotated[float, Field(ge=0, le=MOST_ANSWERS, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Answers:
    """How answers to test rows are generated for a classification or summarization, without sampling.

    The shape of the batches is part of the study, because another one changes the last digits, and so words.
    """

    examples: Annotated[int, Field(gt=0, le=MOST_ANSWERS)] = 200
    """Answer only the first N test rows."""
    batch_size: Annotated[int, Field(gt=0, le=1000)] = 8
    """The last batch repeats its last prompt to have this size too."""
    prompt_length: Annotated[int, Field(gt=0, le=10**6)] = 256
    """In tokens: prompts are padded on the left to this length; rows with a longer prompt are left out."""
