"""The sources of randomness, each with streams of its own.

A stream is told by its source's seed, the source's name and a position within the source (such as the
step), and by nothing else: not by what ran before in the process, nor by draws from any other stream. So a
fine-tuning can be taken up at any step, and another library, another import or an evaluation in between
changes nothing.
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
    """A seed from which each trial gets one of its own, by its number: trials differ, and each repeats."""

    per_trial: Seed


Setting = Seed | Literal["fresh"] | PerTrial
"""What a study says of a source: a seed for all trials, one for each, or entropy drawn anew ("fresh")."""


@dataclass(frozen=True, config=STRICT)
class Randomness:
    """A profile: how each source of randomness is set, and with which kernels the arithmetic is done."""

    split: Setting
    adapter_init: Setting
    data_order: Setting
    dropout: Setting
    generation: Setting
    kernels: Kernels
    """``deterministic``: only operations that give the same bits each time; see
    `qlora_repeat.system.determinism`."""
    nudge: bool = False
    """Moves one weight of the initial adapter by one unit in the last place: the smallest disturbance."""


def draw_seed(setting: Setting, source: Source, trial: int) -> int:
    """The seed of a source for one trial, to be recorded: with it for the setting, the trial repeats.

    "fresh" draws 32 bits of entropy from the operating system: processes forked from one server share the
    state of every generator, but not that.
    """
    if setting == "fresh":
        return secrets.randbits(32)
    if isinstance(setting, PerTrial):
        return stream_seed(setting.per_trial, source, "trial", trial)
    return setting


def draw_seeds(profile: Randomness, trial: int) -> dict[str, int]:
    """Return the seeds of a trial's sources; those that are "fresh" are new each time."""
    return {source: draw_seed(getattr(profile, source), source, trial) for source in SOURCES}


def recorded_or_drawn(setting: Setting, source: Source, trial: int, recorded: dict[str, int]) -> int:
    """The seed of a source for a trial that has begun: that of its record, where it is "fresh"."""
    return recorded[source] if setting == "fresh" else draw_seed(setting, source, trial)


def stream_seed(seed: int, source: Source, *position: int | float | str) -> int:
    """The 32-bit seed of the stream at a position of a source.

    32 bits, since that is what every library's seeding accepts.
    """
    name = ":".join(["qlora-repeat", source, str(seed), *map(str, position)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


@contextlib.contextmanager
def torch_stream(seed: int) -> Iterator[None]:
    """Seeds torch's generators (CPU, and CUDA where used) for the block, and restores them after it."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
