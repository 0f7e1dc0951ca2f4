"""The content of a report before layout: verdict, arms and trials, responses, commands."""

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from string import ascii_uppercase

from qlora_repeat.analysis.trial_diff import MEANINGS, Divergence
from qlora_repeat.render.report.trial_files import TrialFiles
from qlora_repeat.results.arms import Arm, adapters_text
from qlora_repeat.results.number_format import number, percent
from qlora_repeat.results.power import Effect, smallest_found
from qlora_repeat.results.seeds_and_examples import of_log_perplexity
from qlora_repeat.results.statistical_methods import Summary
from qlora_repeat.results.study_statistics import ArmStatistics, arm_statistics
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.study import PUBLISHED

COLORS = 8
"""Number of colors for the distinct adapters of an arm; further adapters share the last color."""
_LIMIT = 2.8
"""Two values differ by more than this many standard deviations in one of twenty cases (ISO 5725-6, 4.1)."""
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_MOST_WORDS = 2000
"""Longer texts are not compared word by word, since the time grows with the square of the length."""


@dataclass(frozen=True)
class Cell:
    """A trial in the grid of arms and trials."""

    trial: TrialResult
    adapter: str | None
    """A letter for each different adapter of the arm, A for the most frequent."""
    color: int
    """Of the letter, from 0."""
    perplexity: str | None
    """With as many decimals as in the other trials of the arm."""
    divergence: Divergence | None
    """Where it first differs from the first trial that has a trace."""
    command: str
    """Command that verifies the trial; or runs it, if it has no values."""

    @property
    def first_difference(self) -> str | None:
        """Return the step and the value that differs first."""
        return None if self.divergence is None else f"step {self.divergence.step}: {self.divergence.kind}"

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
    def known(self) -> int:
        """Return the number of trials whose adapter is known."""
        return sum(cell.adapter is not None for cell in self.cells)

    @property
    def says(self) -> str:
        """Return how far the trials agree."""
        return adapters_text(self.arm)


Span = tuple[str, bool]
"""A part of a response, and whether it differs from the first run's response."""


@dataclass(frozen=True)
class Question:
    """The responses of an arm's runs to one prompt at one sampling setting, side by side."""

    arm: str
    prompt: str
    sampling: str
    answers: dict[int, list[Span]]
    """The response of each run; all spans of the first are the same."""

    @property
    def texts(self) -> int:
        """Return the number of distinct responses."""
        return len({"".join(text for text, _ in spans) for spans in self.answers.values()})


def arm_rows(arms: Sequence[Arm], files: TrialFiles, study_name: str) -> list[ArmRow]:
    """Return each arm with its trials, in their order; `study_name` is what commands call the study."""
    rows = []
    for arm in arms:
        counted = Counter(trial.adapter_digest for trial in arm.done if trial.adapter_digest)
        places = {digest: place for place, (digest, _) in enumerate(counted.most_common())}
        cells, decimals = [], arm.decimals(lambda trial: trial.perplexity)
        for trial in arm.trials:
            place = places.get(trial.adapter_digest or "")
            letter = None if place is None else _letter(place)
            color = min(place or 0, COLORS - 1)
            divergence = files.divergence(arm, trial)
            perplexity = number(trial.perplexity, decimals)
            cells.append(Cell(trial, letter, color, perplexity, divergence, _command(trial, study_name)))
        rows.append(ArmRow(arm, cells, len(counted)))
    return rows


def verdict(rows: Sequence[ArmRow]) -> list[str]:
    """Return sentences: whether trials repeat, how much they spread, and how many ended badly."""
    trials = sum(len(row.arm.trials) for row in rows)
    lacking = trials - sum(len(row.arm.done) for row in rows)
    not_done = [f"{lacking} of {trials} trials have no values yet."] if lacking else []
    found = arm_statistics([row.arm for row in rows])
    sentences = [*_spread(found), *_decides(rows), *_seeds_and_examples(rows), *_ended_badly(found)]
    return [_repeatability(rows), *sentences, *not_done]


def _repeatability(rows: Sequence[ArmRow]) -> str:
    compared = [row for row in rows if row.known > 1]
    same = [row for row in compared if row.adapters == 1]
    others = [row for row in compared if row.adapters > 1]
    if not compared:
        return _by_perplexity(rows)
    identical = "all trials gave the same adapter, bit for bit"
    if same and others:
        names = "; ".join(row.arm.name for row in same)
        begin = f"In {len(same)} of {len(compared)} arms, {identical} ({names})"
        return f"{begin}; elsewhere, {_count(others)}."
    arms = f"In each of the {len(compared)} arms" if len(compared) > 1 else "In the only arm"
    return f"{arms} with trials to compare, {_count(others) if others else identical}."


def _by_perplexity(rows: Sequence[ArmRow]) -> str:
    """Return a sentence for trials without adapters: equal numbers do not prove equal models."""
    found = [values for row in rows if len(values := row.arm.perplexities) > 1]
    if not found:
        return "Repeatability is not known yet: no arm has two trials to compare."
    different = sum(len(set(values)) == len(values) for values in found)
    return (
        f"In {different} of {len(found)} arms no two runs have the same perplexity; "
        "whether any gave the same adapter is not known."
    )


def _count(rows: Sequence[ArmRow]) -> str:
    different, adapters = sum(row.adapters for row in rows), sum(row.known for row in rows)
    if different == adapters:
        return "no two trials gave the same adapter"
    return f"{adapters} trials gave {different} different adapters"


def _spread(arms: Sequence[ArmStatistics]) -> list[str]:
    """Return sentences on the standard deviations of perplexity, relative to the mean, and on two runs."""
    summaries = [each for arm in arms if (each := arm.measures.get("perplexity")) is not None]
    shares = [each.cv for each in summaries if each.cv is not None]
    if not shares:
        return []
    sentences = [
        f"Perplexities of an arm spread by {_span(shares)} (standard deviation relative to the mean)."
    ]
    near = [each.cv for each in summaries if each.cv is not None and not _spans_a_decade(each)]
    if any(near):
        far = len(shares) - len(near)
        named = f"{far} arm{'' if far == 1 else 's'}"
        others = f", apart from {named} whose runs are further apart than a factor of ten" if far else ""
        sentences.append(
            f"Two single runs of an arm differ by more than {_span([_LIMIT * share for share in near])} in "
            f"about one of twenty cases (the repeatability limit of ISO 5725-6){others}."
        )
    return sentences


def _span(shares: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(percent(share) for share in (min(shares), max(shares))))


def _spans_a_decade(summary: Summary) -> bool:
    return summary.low is not None and summary.high is not None and summary.high > 10 * summary.low


def _decides(rows: Sequence[ArmRow]) -> list[str]:
    """Return a sentence on what this number of trials can decide."""
    counts = [len(row.arm.perplexities) for row in rows if len(row.arm.perplexities) > 1]
    if not counts:
        return []
    n = round(median(counts))
    if (smallest := smallest_found(Effect("mean", 0), n)) is None:
        return []
    return [
        f"With {n} trials in each arm, a difference of {smallest:.1f} standard deviations between two arms "
        "is found in four of five cases; qlora-repeat power says how many trials a smaller one needs."
    ]


def _seeds_and_examples(rows: Sequence[ArmRow]) -> list[str]:
    """Return a sentence on what makes the mean perplexity of an arm uncertain, and what would help."""
    found = [each for row in rows if (each := of_log_perplexity(row.arm)) is not None]
    shares = [share for each in found if (share := each.share_of_seeds) is not None]
    if not shares:
        return []
    examples = sum(each.more_of == "examples" for each in found)
    more, than = ("test examples", "trials") if examples else ("trials", "test examples")
    arms = f", in {examples} of {len(found)} arms" if 0 < examples < len(found) else ""
    return [
        f"Of the uncertainty of an arm's mean perplexity, {_span(shares)} comes from the seeds, and the rest "
        f"from the test examples: more {more} would help more than more {than}{arms}."
    ]


def _ended_badly(arms: Sequence[ArmStatistics]) -> list[str]:
    worse = [arm.worse_than_base for arm in arms if arm.worse_than_base]
    if not worse:
        return []
    count, of = sum(each.count for each in worse), sum(each.of for each in worse)
    return [f"{count or 'None'} of {of} trials ended worse than their base model was before fine-tuning."]


def meanings(rows: Sequence[ArmRow]) -> dict[str, str]:
    """Return the meaning of each kind of first difference that occurs."""
    kinds = {cell.divergence.kind for row in rows for cell in row.cells if cell.divergence}
    return {kind: meaning for kind, meaning in MEANINGS.items() if kind in kinds}


def questions(rows: Sequence[ArmRow]) -> list[Question]:
    """Return the responses of each arm, by prompt and sampling setting, compared with the first run."""
    found = []
    for row in rows:
        asked: dict[tuple[str, str], dict[int, str]] = {}
        for trial in row.arm.done:
            for response in trial.responses:
                sampling = f"temperature {response.temperature:g}, top-p {response.top_p:g}"
                asked.setdefault((response.prompt, sampling), {})[trial.trial] = response.text
        for (prompt, sampling), texts in asked.items():
            first = next(iter(texts.values()))
            answers = {run: differences(first, text) for run, text in texts.items()}
            found.append(Question(row.arm.name, prompt, sampling, answers))
    return found


def differences(first: str, other: str) -> list[Span]:
    """Split `other` into spans that are in `first` or differ from it; a span without text differs, too."""
    words, reference = _WORDS.findall(other), _WORDS.findall(first)
    if max(len(words), len(reference)) > _MOST_WORDS:
        return [(other, other != first)]
    matcher = difflib.SequenceMatcher(None, reference, words, autojunk=False)
    return [
        ("".join(words[start:end]), operation != "equal")
        for operation, _, _, start, end in matcher.get_opcodes()
    ]


def _command(trial: TrialResult, study_name: str) -> str:
    if trial.study == PUBLISHED:
        return ""
    verb = "verify" if trial.measured else "trial"
    return f"qlora-repeat {verb} {shlex.quote(trial.name)} --study {shlex.quote(study_name)}"


def _letter(place: int) -> str:
    """Return A to Z, then A1, B1."""
    rounds, letter = divmod(place, len(ascii_uppercase))
    return ascii_uppercase[letter] + (str(rounds) if rounds else "")
