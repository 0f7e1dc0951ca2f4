"""A verdict as a few lines of text and as JSON."""

import dataclasses
import json
from collections.abc import Collection

from tabulate import tabulate

from qlora_repeat.analysis.verify.verdict import Verdict, VerdictKind
from qlora_repeat.render.text.diff import first_difference, meaning, shown
from qlora_repeat.render.text.layout import prose, table
from qlora_repeat.system.files import strict
from qlora_repeat.system.printable import one_line, printable, printable_json

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
    """Return 0 if the verdict is at least as strong as `weakest`; otherwise the exit code of the verdict."""
    accepted = _LADDER[: _LADDER.index(weakest) + 1]
    return 0 if verdict.kind in accepted else EXIT_CODES[verdict.kind]


def worst_exit_code(kinds: Collection[VerdictKind], weakest: str) -> int:
    """Return the exit code of several verdicts: of the worst, where *different* is worse than any other."""
    ladder = (*_LADDER, "inconclusive", "different")
    worst = max((ladder.index(kind) for kind in kinds), default=0)
    return 0 if worst <= ladder.index(weakest) else EXIT_CODES[ladder[worst]]


def verdict_text(name: str, verdict: Verdict) -> str:
    """Return the verdict, its reasons and the measurements."""
    parts = [
        f"{name}: {verdict.kind}{', by weak evidence' if verdict.weak else ''}",
        prose(" ".join([*verdict.why, verdict.expectation, *verdict.notes])),
    ]
    if rows := measured_rows(verdict):
        parts.append(table(["", "re-run", "allowed"], rows))
    if sentence := divergence_sentence(verdict):
        parts.append(prose(sentence))
    if verdict.explanations and verdict.kind != "bitwise":
        cells = [[one_line(each.key), shown(each.first), shown(each.second)] for each in verdict.explanations]
        parts.append(tabulate(cells, ["may explain it", "recorded", "re-run"], disable_numparse=True))
    listed = {
        "Not checked": verdict.cannot_tell,
        "To settle it": verdict.settle,
        "Machines": verdict.self_tests,
    }
    for title, lines in listed.items():
        if lines:
            parts.append(prose(f"{title}: {'; '.join(lines)}."))
    return printable("\n\n".join(parts))


def measured_rows(verdict: Verdict) -> list[list[str]]:
    """Return the measured and the allowed differences, relative to the recorded values."""
    found, allowed = verdict.measured, verdict.tolerance
    rows = [
        ["the loss of step 1", found.first_loss, allowed.first_loss],
        [f"the loss, mean of {verdict.steps} steps", found.loss, allowed.loss],
        ["the adapter", found.adapter, allowed.adapter],
        ["the perplexity", found.perplexity, allowed.perplexity],
    ]
    return [
        [f"relative difference of {name}", f"{difference:.1e}", f"{most:.1e}"]
        for name, difference, most in rows
        if isinstance(difference, float)
    ]


def divergence_sentence(verdict: Verdict) -> str | None:
    """Return where the re-run first differs from the record, and what that points to."""
    if verdict.divergence is None or verdict.kind == "bitwise":
        return None
    return f"{first_difference(verdict.divergence)} {meaning(verdict.divergence)}"


def verdict_json(name: str, verdict: Verdict, left_out: list[str]) -> str:
    """Return the verdict as JSON; numbers that are not finite are strings. `left_out`: trials of the arm."""
    content = {"trial": name, "verdict": verdict.kind, **dataclasses.asdict(verdict)}
    del content["kind"]
    content |= {"left_out": left_out}
    return printable_json(json.dumps(strict(content), indent=2, allow_nan=False))
