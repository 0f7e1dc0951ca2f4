"""The sources of randomness and their random streams.

A stream depends only on the seed and name of its source and on a position in it (such as the step). It does
not depend on what ran before in the process, or on other streams. So a fine-tuning can resume at any step,
and another library, import or evaluation changes nothing.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from typing import Literal, get_args

from pydantic.dataclasses import dataclass

from qlora_repeat.study.data_sources import STRICT, Seed
from qlora_repeat.system.determinism import Kernels

Source = Literal["split", "adapter_init", "data_order", "dropout", "generation"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, config=STRICT)
class PerTrial:
    """A seed from which each trial derives its own, by its number: trials differ, and each is repeatable."""

    per_trial: Seed


Setting = Seed | Literal["fresh"] | PerTrial
"""The setting of a source: one seed for all trials, one for each trial, or "fresh" entropy."""


@dataclass(frozen=True, config=STRICT)
class Randomness:
    """A profile: the setting of each source of randomness, by default one seed, and the kernels."""

    split: Setting = 42
    adapter_init: Setting = 42
    data_order: Setting = 42
    dropout: Setting = 42
    generation: Setting = 42
    kernels: Kernels = "default"
    """``deterministic`` allows only operations that give the same bits each time
    (`qlora_repeat.system.determinism`)."""
    nudge: bool = False
    """Whether to change one initial adapter weight by one unit in the last place, the smallest change."""


PROFILES = {
    "as-published": Randomness(adapter_init="fresh"),
    "seeded": Randomness(),
    "bitwise": Randomness(kernels="deterministic"),
}
"""The profiles of a study that gives none. The first is that of the paper's likely pipeline; the second has a
seed for every source; the third has what identical bits need."""


def draw_seed(setting: Setting, source: Source, trial: int) -> int:
    """Return the seed of a source for one trial. It is recorded, so that the trial can be repeated.

    "fresh" reads 32 bits of entropy from the operating system, because processes forked from one server share
    the state of every generator.
    """
    if setting == "fresh":
        return secrets.randbits(32)
    if isinstance(setting, PerTrial):
        return stream_seed(setting.per_trial, source, "trial", trial)
    return setting


def draw_seeds(profile: Randomness, trial: int) -> dict[str, int]:
    """Return the seeds of a trial's sources; "fresh" seeds are new each time."""
    return {source: draw_seed(getattr(profile, source), source, trial) for source in SOURCES}


def recorded_or_drawn(setting: Setting, source: Source, trial: int, recorded: dict[str, int]) -> int:
    """Return the seed of a source for a trial that has started: for "fresh", the recorded seed."""
    return recorded[source] if setting == "fresh" else draw_seed(setting, source, trial)


def stream_seed(seed: int, source: Source, *position: int | float | str) -> int:
    """Return the seed of a source's stream at a position; every library accepts its 32 bits."""
    name = ":".join(["qlora-repeat", source, str(seed), *map(str, position)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


@contextlib.contextmanager
def torch_stream(seed: int) -> Iterator[None]:
    """Seed torch's generators (CPU, and CUDA if in use) for the block, and restore them after it."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
