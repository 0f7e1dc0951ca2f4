"""Find the operator that made two runs differ, from the logs of one step that `operator_log` writes."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Phase = Literal["forward", "backward", "update"]
Kind = Literal["output", "input", "operator"]


@dataclass(frozen=True)
class Operator:
    """An operator that ran: what it read, and what it returned or changed."""

    name: str
    """As in ``aten::mm``."""
    phase: Phase
    module: str
    """The module that called it, or whose backward pass this is; in an update, the trained parameter."""
    inputs: tuple[str, ...]
    """Digests of tensors, and other arguments as text; the state of a random generator if it uses one."""
    outputs: tuple[str, ...]
    reads: tuple[int, ...] = ()
    """Numbers of the memory of each tensor; they mean nothing in another log."""
    writes: tuple[int, ...] = ()

    @property
    def call(self) -> tuple[str, Phase, str, tuple[str, ...]]:
        """Return the operator, its place and its inputs, without its results."""
        return self.name, self.phase, self.module, self.inputs


@dataclass(frozen=True)
class OperatorDifference:
    """The first place where the operators of two runs give different results."""

    kind: Kind
    """``output``: equal inputs, unequal output. ``operator``: other operators ran, and gave other results.
    ``input``: the same operator has unequal inputs, which no logged operator has made unequal."""
    place: int
    """The number of the operator in the first run, from 1."""
    first: Operator | None
    """None where the first run has no operator there."""
    second: Operator | None


@dataclass(frozen=True)
class Operations:
    """The operator that made two runs differ, or the reason why it cannot be known."""

    step: int | None = None
    found: OperatorDifference | None = None
    numbers: tuple[int, int] = (0, 0)
    """How many operators each run logged."""
    reason: str | None = None


def first_difference(first: Sequence[Operator], second: Sequence[Operator]) -> OperatorDifference | None:
    """Return the first operator with equal inputs and unequal output, or None if all results agree.

    Where the runs call different operators, align the logs by operators and inputs. A part that only one log
    has is the difference only if an operator outside of it reads one of its results and so differs too.
    """
    same = 0
    for one, other in zip(first, second, strict=False):
        if one.call != other.call:
            break
        if one.outputs != other.outputs:
            return OperatorDifference("output", same + 1, one, other)
        same += 1
    ours, theirs = first[same:], second[same:]
    matcher = difflib.SequenceMatcher(
        None, [each.call for each in ours], [each.call for each in theirs], autojunk=False
    )
    blocks = matcher.get_matching_blocks()
    shared = {block.a + place for block in blocks for place in range(block.size)}
    also = {block.b + place for block in blocks for place in range(block.size)}
    for kind, start, end, begin, stop in matcher.get_opcodes():
        if kind == "equal":
            for place, (one, other) in enumerate(zip(ours[start:end], theirs[begin:stop], strict=True)):
                if one.outputs != other.outputs:
                    return OperatorDifference("output", same + start + place + 1, one, other)
        elif _matters(ours, start, end, shared, second) or _matters(theirs, begin, stop, also, first):
            mine = ours[start] if start < end else None
            yours = theirs[begin] if begin < stop else None
            alike = mine and yours and mine.call[:3] == yours.call[:3]
            return OperatorDifference("input" if alike else "operator", same + start + 1, mine, yours)
    return None


def _matters(
    log: Sequence[Operator], start: int, end: int, shared: set[int], other: Sequence[Operator]
) -> bool:
    """Return whether results of operators `start` to `end` change later ones.

    Args:
        shared: the places of operators that the other log has with equal inputs.
        other: the whole log of the other run.
    """
    known = {digest for each in other for digest in each.outputs}
    changed = set[int]()
    for each in log[start:end]:
        if not known.issuperset(each.outputs):
            if each.phase == "update":
                return True
            changed.update(each.writes)
    for place in range(end, len(log)):
        each = log[place]
        if place in shared:
            changed.difference_update(each.writes)
        elif changed.intersection(each.reads):
            return True
    return False
