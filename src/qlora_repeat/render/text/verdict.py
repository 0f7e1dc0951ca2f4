"""A verdict for people, in a few lines, and as JSON."""

import dataclasses
import json

from tabulate import tabulate

from qlora_repeat.analysis.verify.verdict import LEVEL, Verdict
from qlora_repeat.render.text.diff import meaning, shown
from qlora_repeat.render.text.layout import prose, table
from qlora_repeat.system.files import printable, strict

EXIT_CODES = {
    "bitwise": 0,
    "different": 7,
    "within tolerance": 8,
    "statistically consistent": 9,
    "inconclusive": 10,
}
"""The exit code of `verify` for each verdict."""
_LADDER = ("bitwise", "within tolerance", "statistically consistent")


def exit_code(verdict: Verdict, weakest: str) -> int:
    """0 for a verdict that is no weaker than the weakest that is accepted; otherwise its own."""
    accepted = _LADDER[: _LADDER.index(weakest) + 1]
    return 0 if verdict.kind in accepted else EXIT_CODES[verdict.kind]


def verdict_text(name: str, verdict: Verdict) -> str:
    """The verdict, why, and what it was measured by."""
    parts = [f"{name}: {verdict.kind}", prose(" ".join([*verdict.why, verdict.expectation]))]
    if rows := measured_rows(verdict):
        parts.append(table(["", "re-run", "allowed"], rows))
    if verdict.divergence is not None and verdict.kind != "bitwise":
        parts.append(prose(divergence_sentence(verdict)))
    if verdict.explanations and verdict.kind != "bitwise":
        cells = [[each.key, shown(each.first), shown(each.second)] for each in verdict.explanations]
        parts.append(tabulate(cells, ["may explain it", "recorded", "re-run"], disable_numparse=True))
    for title, lines in (("Cannot tell", verdict.cannot_tell), ("What would settle it", verdict.settle)):
        if lines:
            parts.append(prose(f"{title}: {'; '.join(lines)}."))
    return printable("\n\n".join(parts))


def measured_rows(verdict: Verdict) -> list[list[str]]:
    """What was measured, beside what is allowed; relative to the recorded values."""
    found, allowed = verdict.measured, verdict.tolerance
    rows = [
        ["the loss of step 1", found.first_loss, allowed.first_loss],
        [f"the loss, mean of {verdict.steps} steps", found.loss, allowed.loss],
        ["the adapter", found.adapter, allowed.adapter],
        ["the perplexity", found.perplexity, allowed.perplexity],
    ]
    return [
        [f"relative difference of {name}", f"{apart:.1e}", f"{most:.1e}"]
        for name, apart, most in rows
        if isinstance(apart, float)
    ]


def divergence_sentence(verdict: Verdict) -> str:
    """Where the two part first, and what that points to."""
    found = verdict.divergence
    assert found is not None, "asked for only where there is one"
    return (
        f"They part first at step {found.step}, in {found.kind}: {shown(found.first)} and "
        f"{shown(found.second)}. {meaning(found)}"
    )


def verdict_json(name: str, verdict: Verdict, left_out: list[str]) -> str:
    """All of it; numbers that are not finite are texts, as in a trace. `left_out` are trials of the arm."""
    content = {"trial": name, "verdict": verdict.kind, **dataclasses.asdict(verdict)}
    del content["kind"]
    content |= {"level": LEVEL, "left_out": left_out}
    return json.dumps(strict(content), indent=2, allow_nan=False)
