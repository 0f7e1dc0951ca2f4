"""The optimizer of an arm, and its name in studies, folders, records and results.

After ``~``, the name says what the arm's trials average, if they are averages: ``adamw-8bit~mean-of-3`` or
``adamw-8bit~last-8-steps``.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, cast

OptimizerName = Literal[
    "adamw-8bit", "adamw-32bit", "lion-8bit", "lion-32bit", "adamw-8bit+bitsandbytes-0.41.0"
]
"""The paged optimizers of bitsandbytes that a study can use.

They page the state of tensors with at least 100,000 elements; other state stays on the GPU.
"""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer: its family, the precision of its state, and the quantization map of 8-bit state."""

    family: str
    """``adamw`` or ``lion``."""
    bits: int | None
    """Bits of each value of its state; None if an unknown name has none."""
    legacy_qmap: str | None = None
    """The version of an older quantization map, such as ``bitsandbytes-0.41.0``
    (`qlora_repeat.stages.legacy_qmap`)."""
    average: str | None = None
    """What a trial averages: ``mean-of-3`` trials, ``last-8-steps``; None for a trial that is trained."""

    @classmethod
    def parse(cls, name: str) -> "Optimizer":
        """Return the optimizer of a name such as ``adamw-8bit+bitsandbytes-0.41.0``; accept any name."""
        trained, _, average = name.partition("~")
        plain, _, legacy_qmap = trained.partition("+")
        found = re.fullmatch(r"(.+)-([1-9][0-9]{0,3})bit", plain)
        family, bits = (found[1], int(found[2])) if found else (plain, None)
        return cls(family, bits, legacy_qmap or None, average or None)

    @property
    def name(self) -> OptimizerName:
        """The name in studies, folders, records and results."""
        bits = "" if self.bits is None else f"-{self.bits}bit"
        legacy_qmap = f"+{self.legacy_qmap}" if self.legacy_qmap else ""
        average = f"~{self.average}" if self.average else ""
        return cast(OptimizerName, f"{self.family}{bits}{legacy_qmap}{average}")

    @property
    def heading(self) -> str:
        """The name in the style of the paper's headings (``8-bit``), where all optimizers are AdamW."""
        name = replace(self.with_todays_qmap, average=None).name
        heading = f"{self.bits}-bit" if self.family == "adamw" and self.bits else name
        older = f", map of {self.legacy_qmap.replace('-', ' ')}" if self.legacy_qmap else ""
        return heading + older + (f", {self.average.replace('-', ' ')}" if self.average else "")

    @property
    def in_transformers(self) -> str:
        """The name in transformers' ``TrainingArguments``."""
        return f"paged_{self.family}_{self.bits}bit"

    @property
    def moments(self) -> int:
        """The number of state values for each parameter."""
        return 1 if self.family == "lion" else 2

    @property
    def with_todays_qmap(self) -> "Optimizer":
        """The same optimizer with today's quantization map."""
        return replace(self, legacy_qmap=None)

    @property
    def in_32_bits(self) -> "Optimizer":
        """The same optimizer with 32-bit state."""
        return replace(self, bits=32, legacy_qmap=None)

    @property
    def reference(self) -> "Optimizer":
        """The optimizer to compare this one with, which has one change less; itself if it has no change.

        The changes are averages, an old quantization map, and 8-bit state.
        """
        if self.average:
            return replace(self, average=None)
        if self.legacy_qmap:
            return self.with_todays_qmap
        return self.in_32_bits if self.bits == 8 else self

    @property
    def other_precision(self) -> "Optimizer":
        """The optimizer of the same family with the other precision of state."""
        return replace(self, bits=8 if self.bits == 32 else 32, legacy_qmap=None)
