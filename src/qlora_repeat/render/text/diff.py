"""The comparison of two trials as text and as JSON."""

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

from qlora_repeat.analysis.operations import Operations, Operator
from qlora_repeat.analysis.trial_diff import MEANINGS, Difference, Divergence, DivergenceKind, Side, TrialDiff
from qlora_repeat.render.text.layout import prose, table
from qlora_repeat.results.number_format import percent
from qlora_repeat.system.files import strict
from qlora_repeat.system.printable import one_line, printable, printable_json

if TYPE_CHECKING:
    from qlora_repeat.analysis.adapter_distance import Distance

_IN_WORDS: dict[DivergenceKind, str] = {
    "init": "the initial adapter",
    "data": "the examples",
    "learning rate": "the learning rate",
    "loss": "the loss",
    "gradient": "the gradient norm",
    "skipped": "whether the update was skipped",
    "update": "the updated adapter",
}
"""The first difference in words, by kind."""
_SOURCES = {
    "split": "split",
    "adapter_init": "initial adapter",
    "data_order": "data order",
    "dropout": "dropout",
    "kernels": "kernels",
    "packages": "packages",
}
"""Sources of randomness in words, by key of seeds, inputs or settings."""
_LONGEST = 36
"""Characters of a value that the text shows; JSON has the whole value."""


def diff_text(diff: TrialDiff, operations: Operations | None = None) -> str:
    """Return the comparison in a few short parts."""
    first, second = diff.first, diff.second
    parts = [
        f"first   {_side(first)}\nsecond  {_side(second)}",
        _verdict(diff),
        *([prose(operations_text(diff, operations))] if operations else []),
        table(["at the end", "first", "second", "second - first"], _ends(diff)),
    ]
    if diff.distances is not None:
        headings = ["values", "equal", "largest difference", "L2 norm of difference", "relative to the first"]
        rows = [
            [part, each.values, each.equal, *map(_number, (each.largest, each.l2, each.relative))]
            for part, each in diff.distances.items()
        ]
        parts.append(table(["adapter", *headings], rows))
        parts.append(prose(_distance(diff.distances["all"])))
    if diff.differences:
        rows = [[_what(each), shown(each.first), shown(each.second)] for each in diff.differences]
        parts.append(table(["differs", "first", "second"], rows))
    elif "finetune" in first.records and "finetune" in second.records:
        parts.append("Settings, seeds and fingerprints: no difference.")
    if diff.not_compared:
        parts.append("\n".join(["Not compared:", *(f"- {one_line(line)}" for line in diff.not_compared)]))
    return printable("\n\n".join(parts))


def _distance(found: "Distance") -> str:
    """Return what the distance of all values means, in sentences."""
    apart = "lora_A and lora_B are compared separately. Their product is not compared."
    if not found.l2 or found.relative is None:
        return apart
    size = f"The adapters are {percent(found.relative)} of the first adapter's size apart"
    return f"{size}; unrelated adapters of equal size are about 141 % apart. {apart}"


def operations_text(diff: TrialDiff, found: Operations) -> str:
    """Return sentences on the operator that made two trials differ, or on why it is not known."""
    if found.reason is not None:
        return f"Not compared, operators: {found.reason}."
    if (difference := found.found) is None:
        return f"All operators of step {found.step} give the same results here."
    first, second = map(_operator, (difference.first, difference.second))
    if difference.kind == "output":
        what = f"has equal inputs and unequal output: {first}"
    elif difference.kind == "input":
        what = f"has unequal inputs, which no logged operator made unequal: {first}"
    else:
        what = f"differs: the first runs {first}, the second {second}"
    return (
        f"In step {found.step}, operator {difference.place} of {found.numbers[0]} is the first that {what}. "
        f"{_settings(diff)}"
    )


def _operator(found: Operator | None) -> str:
    if found is None:
        return "none"
    where = f" in {found.module}" if found.module else ""
    return f"{found.name}{where}, {found.phase}"


def _settings(diff: TrialDiff) -> str:
    """Return which settings differ; without any, which seeds."""
    for what in ("setting", "seed"):
        found = [each for each in diff.differences if (each.what, each.stage) == (what, "finetune")]
        if found:
            values = (f"{each.key} ({shown(each.first)} and {shown(each.second)})" for each in found)
            return f"The {what}s differ in {', '.join(values)}."
    return "No recorded setting or seed differs."


def diff_json(diff: TrialDiff, operations: Operations | None = None) -> str:
    """Return the whole comparison; numbers that are not finite are strings, as in a trace."""
    found = diff.divergence
    distances = {part: dataclasses.asdict(each) for part, each in (diff.distances or {}).items()}
    content = {
        "verdict": diff.verdict,
        "first": _side_facts(diff.first),
        "second": _side_facts(diff.second),
        "compared_steps": diff.compared_steps,
        "divergence": found and dataclasses.asdict(found) | {"meaning": meaning(found)},
        "adapters": distances or None,
        "differences": [dataclasses.asdict(each) for each in diff.differences],
        "unlike": diff.unlike,
        "not_compared": diff.not_compared,
    }
    if operations:
        content["operations"] = dataclasses.asdict(operations) | {"text": operations_text(diff, operations)}
    return printable_json(json.dumps(strict(content), indent=2, allow_nan=False))


def meaning(found: Divergence) -> str:
    """Return what a divergence means, what it points to, and what missing digests leave open."""
    known = MEANINGS[found.kind]
    if found.kind in ("init", "data", "learning rate") or found.alike_after == found.step - 1:
        return known
    if found.kind == "update":
        since = "the first step" if found.alike_after is None else f"step {found.alike_after + 1}"
        return f"{known} Any update from {since} to {found.step} may be the first: no digests lie in between."
    if found.alike_after is None:
        return f"{known} Or the adapters differed already: no earlier step has digests of both."
    first, last = found.unwatched[0], found.unwatched[-1]
    unseen = f"step {first}" if first == last else f"one of steps {first} to {last}"
    return (
        f"{known} Or the adapters differed already after {unseen}, which has no digest. That would point to "
        "the optimizer."
    )


def first_difference(found: Divergence) -> str:
    """Return a sentence on where two trials first differ, and in what."""
    values = f"{shown(found.first)} and {shown(found.second)}"
    if found.kind == "init":
        return f"They differ before training starts, in the initial adapter: {values}."
    return f"They first differ at step {found.step}, in {_IN_WORDS[found.kind]}: {values}."


def _explanation(diff: TrialDiff, found: Divergence) -> str:
    """Return the seeds, if they explain the divergence; otherwise what it means."""
    source = {"init": "adapter_init", "data": "data_order"}.get(found.kind)
    for each in diff.differences:
        if each.what == "seed" and each.key == source:
            return f"Their seeds differ ({each.first}, {each.second}), which explains it.{_same(diff)}"
    return meaning(found)


def _same(diff: TrialDiff) -> str:
    """Return which other sources of randomness are the same in both records."""
    differing = {each.key.partition(".")[0] for each in diff.differences}
    recorded = [
        record.outputs.get("seeds", {}) | record.inputs | record.inputs.get("settings", {})
        for side in (diff.first, diff.second)
        if (record := side.records.get("finetune"))
    ]
    same = [
        name
        for key, name in _SOURCES.items()
        if key not in differing and len(recorded) == 2 and all(key in values for values in recorded)
    ]
    return f" Same in both: {', '.join(same)}." if same else ""


def _verdict(diff: TrialDiff) -> str:
    found, steps = diff.divergence, diff.compared_steps
    lines = [f"Different: {each}." for each in diff.unlike]
    if found:
        lines[:0] = [first_difference(found), _explanation(diff, found)]
        if found.kind not in ("init", "update") and found.apart_after is not None:
            lines.insert(2, f"The digests of the adapters first differ after step {found.apart_after}.")
    elif diff.verdict == "alike":
        lines.append(f"Identical bit for bit: {steps} steps and the adapter.")
    elif diff.verdict == "different":
        lines.insert(0, f"The {steps} common steps are identical bit for bit, but the trials differ.")
    else:
        lines.append(f"Identical bit for bit in what could be compared: {steps} steps.")
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
    """Return rows of final measurements, and of the loss at the last common step."""
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
    return one_line(f"{difference.what} {difference.key}{stage}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def shown(value: Any) -> str:
    """Return a value of a setting or fingerprint, short enough for a table."""
    text = one_line(value if isinstance(value, str) else "-" if value is None else json.dumps(value))
    if re.fullmatch(r"[0-9a-f]{40,}", text):
        return f"{text[:12]}…"  # a digest or commit
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
