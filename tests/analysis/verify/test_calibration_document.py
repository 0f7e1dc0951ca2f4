"""Verdicts say what they get wrong, as the calibration measured it."""

import re
from collections import defaultdict

from support.checkout import ROOT

from qlora_repeat.analysis.verify.verdict import MISSES

REPORTABLE = 0.01
"""The share of wrong verdicts from which the verdict itself must say so."""
RERUNS = 301


def test_verdicts_name_what_they_get_wrong_in_one_percent_of_re_runs_or_more() -> None:
    document = (ROOT / "docs" / "explanation" / "calibration.md").read_text()
    wrong = defaultdict(list)
    for count, kind in re.findall(r"(\d+) \*([a-z ]+)\*", document):
        if int(count) >= REPORTABLE * RERUNS and kind != "inconclusive":
            wrong[kind].append(f"{count} of {RERUNS}")
    named = {kind: re.findall(rf"\d+ of {RERUNS}", sentence) for kind, sentence in MISSES.items()}
    assert named.keys() == wrong.keys()
    for kind, counts in named.items():
        assert sorted(counts) == sorted(wrong[kind])
