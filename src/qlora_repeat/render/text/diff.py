"""How two trials compare, for people and as JSON."""

import dataclasses
import json
import re
from typing import Any

from qlora_repeat.analysis.trial_diff import MEANINGS, Difference, Divergence, Side, TrialDiff
from qlora_repeat.render.text.layout import prose, table
from qlora_repeat.system.files import printable, strict

_LONGEST = 36
"""So many characters of a value are shown; JSON has all."""


def diff_text(diff: TrialDiff) -> str:
    """The comparison in a few short parts."""
    first, second = diff.first, diff.second
    parts = [
        "\n".join(f"{place:<8}{_side(side)}" for place, side in (("first", first), ("second", second))),
        _verdict(diff),
        table(["at the end", "first", "second", "second - first"], _ends(diff)),
    ]
    if diff.distances is not None:
        rows = [
            [part, each.values, each.equal, *map(_number, (each.largest, each.l2, each.relative))]
            for part, each in diff.distances.items()
        ]
        headings = [
            "adapter",
            "values",
            "equal",
            "largest difference",
            "L2 norm of difference",
            "relative to the first",
        ]
        parts.append(table(headings, rows))
        parts.append(prose("lora_A and lora_B are compared each by itself, not the product that they make."))
    if diff.differences:
        rows = [[_what(each), shown(each.first), shown(each.second)] for each in diff.differences]
        parts.append(table(["differs", "first", "second"], rows))
    elif "finetune" in first.records and "finetune" in second.records:
        parts.append("Settings, seeds and fingerprints: no difference.")
    if diff.not_compared:
        parts.append("\n".join(["Not compared:", *(f"- {line}" for line in diff.not_compared)]))
    return "\n\n".join(parts)


def diff_json(diff: TrialDiff) -> str:
    """All of the comparison; numbers that are not finite are texts, as in a trace."""
    found = diff.divergence
    return json.dumps(
        strict(
            {
                "verdict": diff.verdict,
                "first": _side_facts(diff.first),
                "second": _side_facts(diff.second),
                "compared_steps": diff.compared_steps,
                "divergence": None
                if found is None
                else dataclasses.asdict(found) | {"meaning": meaning(found)},
                "adapters": None
                if diff.distances is None
                else {part: dataclasses.asdict(each) for part, each in diff.distances.items()},
                "differences": [dataclasses.asdict(each) for each in diff.differences],
                "unlike": diff.unlike,
                "not_compared": diff.not_compared,
            }
        ),
        indent=2,
        allow_nan=False,
    )


def meaning(found: Divergence) -> str:
    """What a divergence means, what it points to, and what missing digests leave open."""
    known = MEANINGS[found.kind]
    if found.kind in ("init", "data", "learning rate") or found.alike_after == found.step - 1:
        return known
    if found.kind == "update":
        since = "the first step" if found.alike_after is None else f"step {found.alike_after + 1}"
        return f"{known} It was an update from {since} to {found.step}: there are no digests between."
    either = f"Either {known[0].lower()}{known[1:-1]}; or"
    if found.alike_after is None:
        return f"{either} the adapters were not the same before: no step there has digests of both."
    first, last = found.unwatched[0], found.unwatched[-1]
    unseen = f"the update of step {first}" if first == last else f"an update of steps {first} to {last}"
    return f"{either} {unseen}, without digests, had parted the adapters, which points to the optimizer."


def _verdict(diff: TrialDiff) -> str:
    found, steps = diff.divergence, diff.compared_steps
    lines = [f"Different: {each}." for each in diff.unlike]
    if found:
        values = f"{shown(found.first)} and {shown(found.second)}"
        lines.insert(0, f"They part at step {found.step}, in {found.kind}: {values}.")
        lines.insert(1, meaning(found))
        if found.kind not in ("init", "update") and found.apart_after is not None:
            lines.insert(2, f"The first digests of the adapters that differ are of step {found.apart_after}.")
    elif diff.verdict == "alike":
        lines.append(f"Alike, bit for bit: {steps} steps and the adapter.")
    elif diff.verdict == "different":
        lines.insert(0, f"The {steps} steps that both have are alike, bit for bit; the trials are not.")
    else:
        lines.append(f"Alike, bit for bit, as far as they can be compared: {steps} steps.")
    return "\n".join(map(prose, lines))


def _side(side: Side) -> str:
    state = "" if side.finished else ", not finished"
    diverged = "" if side.diverged_at is None else f", loss not finite from step {side.diverged_at}"
    skipped = f", updates skipped: {side.skipped_steps}" if side.skipped_steps else ""
    return f"{side.name}: {side.last_step} steps{state}{diverged}{skipped}"


def _side_facts(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "folder": str(side.folder),
        "steps": side.last_step,
        "finished": side.finished,
        "diverged_at": side.diverged_at,
        "skipped_steps": side.skipped_steps,
        "final_loss": side.final_loss,
        "perplexity": side.perplexity,
    }


def _ends(diff: TrialDiff) -> list[list[str]]:
    """Rows of what was measured at the end, and the loss of the last step that both have."""
    first, second, last = diff.first, diff.second, diff.compared_steps
    rows = [("final loss", first.final_loss, second.final_loss)]
    if not (first.finished and second.finished and first.last_step == second.last_step):
        rows.append((f"loss of step {last}", first.steps[last].loss, second.steps[last].loss))
    rows.append(("perplexity", first.perplexity, second.perplexity))
    return [
        [name, _number(one), _number(other), _number(None if one is None or other is None else other - one)]
        for name, one, other in rows
    ]


def _what(difference: Difference) -> str:
    stage = "" if difference.stage == "finetune" else f" ({difference.stage})"
    return f"{difference.what} {difference.key}{stage}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def shown(value: Any) -> str:
    """A value of a setting or fingerprint, short enough for a table."""
    text = printable(value if isinstance(value, str) else "-" if value is None else json.dumps(value))
    if re.fullmatch(r"[0-9a-f]{40,}", text):
        return f"{text[:12]}…"  # a digest or commit
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
