"""The optimizer of an arm, as a value. Studies, folders, records and results have its name."""

import re
from dataclasses import dataclass, replace
from typing import Literal, cast

OptimizerName = Literal[
    "adamw-8bit", "adamw-32bit", "lion-8bit", "lion-32bit", "adamw-8bit+bitsandbytes-0.41.0"
]
"""The optimizers that a study can name: bitsandbytes' paged ones."""


@dataclass(frozen=True)
class Optimizer:
    """A family of optimizers, the precision of its state, and the map of its 8-bit state."""

    family: str
    """``adamw`` or ``lion``."""
    bits: int | None
    """Of each value of its state; None where a name that comes from elsewhere has none."""
    legacy_qmap: str | None = None
    """The version whose map of 8-bit state it has, such as ``bitsandbytes-0.41.0``, if not today's
    (`qlora_repeat.stages.legacy_qmap`)."""

    @classmethod
    def parse(cls, name: str) -> "Optimizer":
        """Return the optimizer of this name, such as ``adamw-8bit+bitsandbytes-0.41.0``; any name has one."""
        plain, _, legacy_qmap = name.partition("+")
        found = re.fullmatch(r"(.+)-([1-9][0-9]*)bit", plain)
        family, bits = (found[1], int(found[2])) if found else (plain, None)
        return cls(family, bits, legacy_qmap or None)

    @property
    def name(self) -> OptimizerName:
        """Its name in studies, folders, records and results."""
        bits = "" if self.bits is None else f"-{self.bits}bit"
        legacy_qmap = f"+{self.legacy_qmap}" if self.legacy_qmap else ""
        return cast(OptimizerName, f"{self.family}{bits}{legacy_qmap}")

    @property
    def heading(self) -> str:
        """Its name in the paper's headings, ``8-bit``; there, all optimizers are AdamW."""
        name = self.with_todays_qmap.name
        heading = f"{self.bits}-bit" if self.family == "adamw" and self.bits else name
        return f"{heading}, map of {self.legacy_qmap.replace('-', ' ')}" if self.legacy_qmap else heading

    @property
    def in_transformers(self) -> str:
        """Its name in transformers' ``TrainingArguments``."""
        return f"paged_{self.family}_{self.bits}bit"

    @property
    def moments(self) -> int:
        """How many values of state it keeps for each parameter."""
        return 1 if self.family == "lion" else 2

    @property
    def with_todays_qmap(self) -> "Optimizer":
        """The same optimizer with today's map of 8-bit state."""
        return replace(self, legacy_qmap=None)

    @property
    def reference(self) -> "Optimizer":
        """The 32-bit optimizer that an 8-bit one is compared with; for any other, itself."""
        return replace(self, bits=32, legacy_qmap=None) if self.bits == 8 else self

    @property
    def other_precision(self) -> "Optimizer":
        """The optimizer of the same family whose state has the other precision."""
        return replace(self, bits=8 if self.bits == 32 else 32, legacy_qmap=None)
