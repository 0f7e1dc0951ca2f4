"""Apply the rules of claims to each arm or model; ``claims.toml`` has the rules in words.

An arm is inconclusive if fewer than `FEWEST` of its runs have the value, or if its runs are equal and share
all seeds of fine-tuning: then they are repetitions of one run. As in the paper, a *run* is one trial.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_repeat.results.arms import Arm, base_perplexities, by_model, distinct
from qlora_repeat.results.number_format import number
from qlora_repeat.results.statistical_methods import FEWEST, rank
from qlora_repeat.results.trial_result import Response, TrialResult

LOW = 0.1
"""The highest low temperature; the paper compares it with 1 (section IX)."""

RUN = "make all STUDY={study}"
"""The command if runs or their values are missing; `claims` inserts the name of the study."""
RUN_PAPER = "make all STUDY=paper"
_RUN_MORE = f"{RUN}, with trials = {FEWEST} or more in its file"
_RUN_FREE = "make all STUDY={unpinned} RANDOMNESS=as-published"
_RUN_SEEDED = "make all STUDY={unpinned} in a profile with one seed of "
_RUN_AGAIN = f"{RUN}, with responses = {FEWEST} or more under [ablation]"
_RUN_BASES = f"{RUN}, with base_tests = 2 or more under [ablation]"
_COLLECT = "qlora-repeat collect {study}"

_OF_TRAINING = {"adapter_init", "data_order", "dropout"}
"""The random sources of a fine-tuning, apart from the split."""

Value = float | str
ClaimRule = Callable[..., "list[ClaimFinding]"]
"""A function of arms, and of parameters by name."""


@dataclass(frozen=True)
class ClaimFinding:
    """Whether a claim holds in one arm, model or comparison."""

    of: str
    """The name of the arm, model or comparison."""
    holds: bool | None
    """None if it is inconclusive."""
    words: str
    """Its numbers, or why it is inconclusive."""
    remedy: str = ""
    """What to run to make it conclusive, with placeholders for names of studies."""


def is_8_bit(arm: Arm) -> bool:
    """Return whether the optimizer has 8-bit state, with any quantization map."""
    return arm.optimizer.bits == 8


def answering(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms of question-answering models."""
    return [arm for arm in arms if arm.task == "question-answering"]


def too_few(arm: Arm, values: Sequence[Value]) -> ClaimFinding | None:
    """Return an inconclusive finding if fewer than `FEWEST` runs have a value."""
    if len(values) >= FEWEST:
        return None
    remedy = RUN if len(arm.trials) >= FEWEST else _RUN_MORE
    return ClaimFinding(arm.name, None, f"{len(values)} runs with a value, of {FEWEST} needed", remedy)


def no_sample(
    arm: Arm, values: Sequence[Value], *, seeded: Sequence[str] = ("split",), each: bool = False
) -> ClaimFinding | None:
    """Return an inconclusive finding if an arm's runs are too few, or not independent fine-tunings.

    They are not independent if a source that should be `seeded` is not, which may be why they differ; or if
    values are equal, and the seeds are the same or unknown. Without `each`, all values must be equal; with
    `each`, two of them.
    """
    if (few := too_few(arm, values)) is not None:
        return few
    free, profile = arm.trials[0].free_sources, arm.trials[0].randomness
    unseeded = [source for source in seeded if free is not None and source in free]
    if unseeded:
        why = f"each run has its own seed of {unseeded[0]}, which may be why runs differ"
        return ClaimFinding(arm.name, None, why, _RUN_SEEDED + unseeded[0])
    if len(set(values)) > (len(values) - 1 if each else 1):
        return None
    alike = "all alike" if len(set(values)) == 1 else "some alike"
    if free is not None and not _OF_TRAINING & set(free):
        why = f"{len(values)} runs with the same seeds, {alike}"
        return ClaimFinding(arm.name, None, why, _RUN_FREE)
    if free is None and profile is not None:
        why = f"{len(values)} runs, {alike}, with no word on their seeds"
        return ClaimFinding(arm.name, None, why, _COLLECT)
    return None


def runs_differ(arms: Sequence[Arm], measure: str, noun: str, *, each: bool = False) -> list[ClaimFinding]:
    """Check in each arm that not all runs have the same value or, with `each`, that no two runs do.

    `measure` is a field of `TrialResult`. All numbers that are not finite count as equal.
    """
    found = []
    for arm in arms:
        measured = (getattr(trial, measure) for trial in arm.done)
        values: list[Value] = [
            value if isinstance(value, str) else rank(value) for value in measured if value is not None
        ]
        counts = Counter(values)
        words = f"{len(counts)} different {noun} in {len(values)} runs"
        if each:
            shared = [value for value in counts if counts[value] > 1 and not isinstance(value, str)]
            shown = [f"{number(value)} in {counts[value]}" for value in sorted(shared)]
            words += f" ({', '.join(shown)})" if shown else ""
        holds = len(counts) == len(values) if each else len(counts) > 1
        found.append(no_sample(arm, values, each=each) or ClaimFinding(arm.name, holds, words))
    return found


def accuracies_differ(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check in each question-answering arm that not all runs have the same accuracy.

    An arm with accuracy 0 in all runs, or 1, is inconclusive.
    """
    found = []
    for arm in answering(arms):
        (finding,) = runs_differ([arm], "accuracy", "accuracies")
        accuracies = set(arm.values(lambda trial: trial.accuracy))
        if finding.holds is False and accuracies <= {0.0, 1.0}:
            answered = "every" if accuracies == {1.0} else "no"
            why = f"{answered} question answered right in any run, which hides what differs"
            finding = ClaimFinding(arm.name, None, why, RUN_PAPER)
        found.append(finding)
    return found


def responses_differ(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check in each arm that not all runs give the same response, at a low and at a higher temperature."""
    return [_prompted(arm, (False, True), lambda response: response.text, "responses") for arm in arms]


def answers_differ(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check in each question-answering arm that not all runs give the same answer (Tables 8 and 9)."""
    return [_prompted(arm, (False,), answer, "answers") for arm in answering(arms)]


def answer(response: Response) -> str:
    """Return the letter that a response gives, or else its text."""
    return response.answer or response.text.strip()


def _prompted(
    arm: Arm, temperatures: tuple[bool, ...], read: Callable[[Response], str], noun: str
) -> ClaimFinding:
    """Check that runs differ in their response to each prompt, at temperatures that are low (True) or not."""
    tests, words = [], []
    for low in temperatures:
        prompts = distinct(
            each.prompt for trial in arm.done for each in trial.responses if is_low(each) == low
        )
        if not prompts:
            why = f"no {noun} at a temperature of {f'{LOW} or less' if low else f'more than {LOW}'}"
            tests.append(ClaimFinding(arm.name, None, why, RUN_PAPER))
        different, runs = [], []
        for prompt in prompts:
            found = [said(trial, prompt, low) for trial in arm.done]
            values = [read(response) for response in found if response is not None]
            differ = ClaimFinding(arm.name, len(set(values)) > 1, "")
            tests.append(no_sample(arm, values, seeded=("split", "generation")) or differ)
            different.append(str(len(set(values))))
            runs.append(str(len(values)))
        at = ", at a low temperature" if low else ""
        words.append(f"{' and '.join(different)} different {noun} in {' and '.join(distinct(runs))} runs{at}")
    cannot = next((test for test in tests if test.holds is None), None)
    if any(test.holds is False for test in tests):
        return ClaimFinding(arm.name, False, "; ".join(words))
    return cannot or ClaimFinding(arm.name, True, "; ".join(words))


def said(trial: TrialResult, prompt: str, low: bool) -> Response | None:
    """Return a run's response to a prompt at its highest low temperature, or its highest other one."""
    found = [each for each in trial.responses if each.prompt == prompt and is_low(each) == low]
    return max(found, key=lambda response: response.temperature, default=None)


def is_low(response: Response) -> bool:
    """Return whether the response was sampled at a low temperature."""
    return response.temperature <= LOW


def asked_again(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check in each arm that repeated responses are equal at a low temperature and differ at a higher one."""
    return [_asked_again(arm) for arm in arms]


def _asked_again(arm: Arm) -> ClaimFinding:
    texts: dict[tuple[bool, int, str], list[str]] = {}
    for trial in arm.done:
        for each in trial.repeated_responses:
            texts.setdefault((is_low(each), trial.trial, each.prompt), []).append(each.text)
    if {low for low, _, _ in texts} != {True, False}:
        why = "no model asked again, at a low temperature and at another"
        return ClaimFinding(arm.name, None, why, _RUN_AGAIN)
    if (least := min(map(len, texts.values()))) < FEWEST:
        return ClaimFinding(arm.name, None, f"asked {least} times, of {FEWEST} needed", _RUN_AGAIN)
    counts: dict[bool, list[str]] = {True: [], False: []}
    for (low, _, _), own in texts.items():
        counts[low].append(f"{len(set(own))} of {len(own)}")
    at_low, at_other = (" and ".join(counts[low]) for low in (True, False))
    return ClaimFinding(
        arm.name,
        all((len(set(own)) == 1) == low for (low, _, _), own in texts.items()),
        f"{at_low} responses different at a low temperature, {at_other} at another",
    )


def bases_repeat(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check for each model that all tests of the base model have the same perplexity."""
    return [_base_repeats(own) for own in by_model(arms).values()]


def _base_repeats(arms: list[Arm]) -> ClaimFinding:
    name, frees = arms[0].title, [arm.trials[0].free_sources for arm in arms]
    tests = [rank(value) for value in base_perplexities(arms)]
    if len(tests) < 2:
        return ClaimFinding(name, None, f"{len(tests)} tests, of 2 needed", _RUN_BASES)
    alike = len(set(tests)) == 1
    if alike and any(free is not None and "kernels" not in free for free in frees):
        why = f"{len(tests)} tests alike, on kernels that are made to repeat"
        return ClaimFinding(name, None, why, _RUN_FREE)
    span = " to ".join(distinct(number(value) or "" for value in (min(tests), max(tests))))
    words = f"{span} in {len(tests)} tests"
    return ClaimFinding(name, alike, words if alike else f"{words}, {len(set(tests))} of them different")


def worse_than_base(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check in each 8-bit arm that more than half of the runs have a perplexity above the base model's."""
    found = []
    for arm in filter(is_8_bit, arms):
        pairs = _beside_base(arm)
        count = sum(value > base for value, base in pairs)
        found.append(_counted(arm, pairs, 2 * count > len(pairs), f"{count} of {len(pairs)} runs worse"))
    return found


def better_than_base(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check in each 32-bit arm that all runs have a perplexity below the base model's."""
    found = []
    for arm in itertools.filterfalse(is_8_bit, arms):
        pairs = _beside_base(arm)
        count = sum(value < base for value, base in pairs)
        found.append(_counted(arm, pairs, count == len(pairs), f"{count} of {len(pairs)} runs better"))
    return found


def _counted(arm: Arm, pairs: list[tuple[float, float]], holds: bool, words: str) -> ClaimFinding:
    return no_sample(arm, [value for value, _ in pairs]) or ClaimFinding(arm.name, holds, words)


def _beside_base(arm: Arm) -> list[tuple[float, float]]:
    """Return the perplexities of each run and of its base model."""
    return [
        (rank(trial.perplexity), trial.base_perplexity)
        for trial in arm.done
        if trial.perplexity is not None and trial.base_perplexity is not None
    ]


ARM_RULES: tuple[ClaimRule, ...] = (
    runs_differ,
    accuracies_differ,
    responses_differ,
    answers_differ,
    asked_again,
    bases_repeat,
    worse_than_base,
    better_than_base,
)
"""The rules that claims name."""
