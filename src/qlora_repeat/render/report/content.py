"""The content of a report before layout: verdict, arms and trials, responses, commands."""

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from qlora_repeat.analysis.trial_diff import MEANINGS, Divergence
from qlora_repeat.render.report.trial_files import TrialFiles
from qlora_repeat.results.arms import Arm, distinct
from qlora_repeat.results.number_format import number, percent
from qlora_repeat.results.study_statistics import ArmStatistics, arm_statistics
from qlora_repeat.results.trial_result import Response, TrialResult
from qlora_repeat.study.study import PUBLISHED

COLORS = 8
"""Number of colors for the distinct adapters of an arm; further adapters share the last color."""
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_MOST_WORDS = 2000
"""Longer texts are only compared at both ends, since the time grows with the square of the length."""


@dataclass(frozen=True)
class Cell:
    """A trial in the grid of arms and trials."""

    trial: TrialResult
    adapter: str | None
    """A letter for each different adapter of the arm, A for the most frequent."""
    color: int
    """Of the letter, from 0."""
    parting: Divergence | None
    command: str
    """Command that verifies the trial; or runs it, if it has no values."""

    @property
    def parts(self) -> str | None:
        """Return where it first differs from the first trial, in words."""
        return None if self.parting is None else f"step {self.parting.step}, in {self.parting.kind}"

    @property
    def perplexity(self) -> str | None:
        return number(self.trial.perplexity)

    @property
    def digest(self) -> str | None:
        return self.trial.adapter_digest[:8] if self.trial.adapter_digest else None


@dataclass(frozen=True)
class ArmRow:
    """An arm with its trials."""

    arm: Arm
    cells: list[Cell]
    adapters: int
    """Number of distinct adapters."""

    @property
    def name(self) -> str:
        return f"{self.arm.title}, {self.arm.heading}"

    @property
    def says(self) -> str:
        """Return how far the trials agree."""
        known = sum(cell.adapter is not None for cell in self.cells)
        if known == 0:
            return "no adapter yet"
        if known == 1:
            return "one adapter: nothing to compare it with"
        if self.adapters == 1:
            return f"all {known} alike in every bit"
        return f"{self.adapters} different adapters in {known} trials"


@dataclass(frozen=True)
class Span:
    """A part of a response."""

    text: str
    differs: bool
    """Whether it differs from the first run's response."""


@dataclass(frozen=True)
class Answer:
    """The response of one run."""

    run: int
    spans: list[Span]
    same: bool
    """Whether it is the same as the first run's response."""


@dataclass(frozen=True)
class Question:
    """The responses of an arm's runs to one prompt at one sampling setting, side by side."""

    arm: str
    prompt: str
    sampling: str
    answers: list[Answer]

    @property
    def texts(self) -> int:
        """Return the number of distinct responses."""
        return len({"".join(span.text for span in answer.spans) for answer in self.answers})


def arm_rows(arms: Sequence[Arm], files: TrialFiles, study_name: str) -> list[ArmRow]:
    """Return each arm with its trials, in their order; `study_name` is what commands call the study."""
    rows = []
    for arm in arms:
        counted = Counter(trial.adapter_digest for trial in arm.done if trial.adapter_digest)
        places = {digest: place for place, (digest, _) in enumerate(counted.most_common())}
        cells = []
        for trial in arm.trials:
            place = places.get(trial.adapter_digest or "")
            cells.append(
                Cell(
                    trial=trial,
                    adapter=None if place is None else _letter(place),
                    color=min(place or 0, COLORS - 1),
                    parting=files.parting(arm, trial),
                    command=_command(trial, study_name),
                )
            )
        rows.append(ArmRow(arm, cells, len(counted)))
    return rows


def verdict(rows: Sequence[ArmRow]) -> list[str]:
    """Return sentences: whether trials repeat, how much they spread, and how many ended badly."""
    trials = sum(len(row.arm.trials) for row in rows)
    lacking = trials - sum(len(row.arm.done) for row in rows)
    compared = [row for row in rows if sum(cell.adapter is not None for cell in row.cells) > 1]
    repeat = [row for row in compared if row.adapters == 1]
    only = "The only arm with trials to compare"
    if not compared:
        sentence = _by_perplexity(rows)
    elif len(repeat) == len(compared):
        every = f"Each of the {len(compared)} arms" if len(compared) > 1 else only
        sentence = f"{every} repeated: its trials gave one adapter, alike in every bit."
    elif not repeat:
        none = f"None of the {len(compared)} arms" if len(compared) > 1 else f"{only} has not"
        sentence = f"{none} repeated: {_apart(compared)}."
    else:
        others = [row for row in compared if row not in repeat]
        sentence = (
            f"{len(repeat)} of {len(compared)} arms repeated, alike in every bit "
            f"({'; '.join(row.name for row in repeat)}); in the others {_apart(others)}."
        )
    found = arm_statistics([row.arm for row in rows])
    not_done = [f"{lacking} of {trials} trials have no values yet."] if lacking else []
    return [sentence, *_spread(found), *_ended_badly(found), *not_done]


def _by_perplexity(rows: Sequence[ArmRow]) -> str:
    """Return a sentence for trials without adapters: equal numbers do not prove equal models."""
    found = [values for row in rows if len(values := row.arm.perplexities) > 1]
    if not found:
        return "Nothing can be said yet about repeatability: no arm has two trials to compare."
    apart = sum(len(set(values)) == len(values) for values in found)
    return (
        f"In {apart} of {len(found)} arms no two runs have the same perplexity; "
        "whether any gave the same adapter is not known."
    )


def _apart(rows: Sequence[ArmRow]) -> str:
    different = sum(row.adapters for row in rows)
    adapters = sum(cell.adapter is not None for row in rows for cell in row.cells)
    if different == adapters:
        return f"all {adapters} adapters differ from the others of their arm"
    return f"{adapters} trials gave {different} different adapters"


def _spread(arms: Sequence[ArmStatistics]) -> list[str]:
    """Return a sentence on the standard deviations of perplexity, relative to the mean."""
    summaries = [arm.measures.get("perplexity") for arm in arms]
    shares = [each.cv for each in summaries if each is not None and each.cv is not None]
    if not shares:
        return []
    low, high = (percent(share) for share in (min(shares), max(shares)))
    span = low if low == high else f"{low} to {high}"
    return [f"Perplexities of an arm spread by {span} (standard deviation relative to the mean)."]


def _ended_badly(arms: Sequence[ArmStatistics]) -> list[str]:
    worse = [arm.worse_than_base for arm in arms if arm.worse_than_base]
    if not worse:
        return []
    count, of = sum(each.count for each in worse), sum(each.of for each in worse)
    return [f"{count or 'None'} of {of} trials ended worse than their base model was before fine-tuning."]


def meanings(rows: Sequence[ArmRow]) -> list[str]:
    """Return the meaning of each kind of first difference that occurs."""
    kinds = distinct(cell.parting.kind for row in rows for cell in row.cells if cell.parting)
    return [f"{kind}: {meaning}" for kind, meaning in MEANINGS.items() if kind in kinds]


def questions(rows: Sequence[ArmRow]) -> list[Question]:
    """Return the responses of each arm, by prompt and sampling setting, compared with the first run."""
    found = []
    for row in rows:
        asked: dict[tuple[str, float, float], list[tuple[int, Response]]] = {}
        for trial in row.arm.done:
            for response in trial.responses:
                key = (response.prompt, response.temperature, response.top_p)
                asked.setdefault(key, []).append((trial.trial, response))
        for (prompt, temperature, top_p), given in asked.items():
            first = given[0][1].text
            answers = [
                Answer(run, differences(first, response.text), response.text == first)
                for run, response in given
            ]
            sampling = f"temperature {temperature:g}, top-p {top_p:g}"
            found.append(Question(row.name, prompt, sampling, answers))
    return found


def differences(first: str, other: str) -> list[Span]:
    """Split `other` into spans that are equal to `first` or differ from it."""
    words, reference = _WORDS.findall(other), _WORDS.findall(first)
    if max(len(words), len(reference)) > _MOST_WORDS:
        return _ends_in_common(first, other)
    matcher = difflib.SequenceMatcher(None, reference, words, autojunk=False)
    spans = [
        Span("".join(words[start:end]), operation != "equal")
        for operation, _, _, start, end in matcher.get_opcodes()
    ]
    return [span for span in spans if span.text]


def _ends_in_common(first: str, other: str) -> list[Span]:
    shortest = min(len(first), len(other))
    start = next((place for place in range(shortest) if first[place] != other[place]), shortest)
    end = next((n for n in range(shortest - start) if first[-1 - n] != other[-1 - n]), shortest - start)
    parts = (
        (other[:start], False),
        (other[start : len(other) - end], True),
        (other[len(other) - end :], False),
    )
    return [Span(text, differs) for text, differs in parts if text]


def _command(trial: TrialResult, study_name: str) -> str:
    if trial.study == PUBLISHED:
        return ""
    verb = "verify" if trial.measured else "trial"
    return f"qlora-repeat {verb} {shlex.quote(trial.name)} --study {shlex.quote(study_name)}"


def _letter(place: int) -> str:
    """A to Z, then AA, AB."""
    rounds, letter = divmod(place, len(ascii_uppercase))
    return (ascii_uppercase[rounds - 1] if rounds else "") + ascii_uppercase[letter]
