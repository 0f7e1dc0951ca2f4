"""Trials with made-up loss curves, and the texts of a figure."""

from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from qlora_repeat.results.trial_result import TrialResult


def trial(losses: list[float], **changes: Any) -> TrialResult:
    """Return a finished trial of three epochs with these losses and changes."""
    curve = [[3 * place / len(losses), loss] for place, loss in enumerate(losses, 1)]
    made = TrialResult(
        study="paper",
        task="text-generation",
        model="neox",
        model_title="NeoX",
        optimizer="adamw-8bit",
        trial=1,
        status="done",
        loss_curve=curve,
        device="NVIDIA A100",
    )
    return replace(made, **changes)


def texts(place: Figure | Axes) -> list[str]:
    return [text.get_text() for text in place.findobj(Text) if text.get_text()]
