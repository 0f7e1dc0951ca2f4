"""Apply the rules of claims to an arm, or to the arms of a model; ``claims.toml`` has the rules in words.

An arm is inconclusive if fewer than `FEWEST` of its runs have the value, or if its runs are equal and share
all seeds of fine-tuning: then they are repetitions of one run. As in the paper, a *run* is one trial.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qlora_repeat.results.arms import Arm, base_perplexities, distinct
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
_RUN_PINNED = "make all STUDY={unpinned} RANDOMNESS=bitwise"
_COLLECT = "qlora-repeat collect {study}"

_OF_TRAINING = {"adapter_init", "data_order", "dropout"}
"""The random sources of a fine-tuning, apart from the split."""

Value = float | str


@dataclass(frozen=True)
class ClaimFinding:
    """Whether a claim holds in one arm, model or comparison."""

    of: str
    """The name of the arm, model or comparison."""
    holds: bool | None
    """None if the results cannot test it."""
    words: str
    """Its numbers, or why it cannot be tested."""
    remedy: str = ""
    """What to run so that it can, with placeholders for names of studies."""
    is_open: bool = False
    """Whether it does not hold only because no difference was found, which proves none."""


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
    equal = "all equal" if len(set(values)) == 1 else "some equal"
    if free is not None and not _OF_TRAINING & set(free):
        why = f"{len(values)} runs with the same seeds, {equal}"
        return ClaimFinding(arm.name, None, why, _RUN_FREE)
    if free is None and profile is not None:
        return ClaimFinding(arm.name, None, f"{len(values)} runs with unknown seeds, {equal}", _COLLECT)
    return None


def on_one_machine(arm: Arm) -> Arm:
    """Return the arm with the runs of the one machine and software that most have, as others may differ."""
    places = Counter((trial.device, trial.software) for trial in arm.done)
    if len(places) < 2:
        return arm
    ((most, _),) = places.most_common(1)
    return replace(arm, trials=[each for each in arm.trials if (each.device, each.software) == most])


def runs_differ(arm: Arm, *, measure: str, noun: str, each: bool = False) -> ClaimFinding:
    """Check that not all runs have the same value or, with `each`, that no two runs do.

    `measure` is a field of `TrialResult`. All numbers that are not finite count as equal. Printed numbers
    that agree may differ in the digits that are not printed.
    """
    measured = (getattr(trial, measure) for trial in on_one_machine(arm).done)
    values: list[Value] = [
        value if isinstance(value, str) else rank(value) for value in measured if value is not None
    ]
    counts = Counter(values)
    if each and arm.is_published and FEWEST <= len(values) != len(counts):
        why = f"{len(counts)} different {noun} in {len(values)} runs, in the digits that are printed"
        return ClaimFinding(arm.name, None, why, RUN_PAPER)
    words = f"{len(counts)} different {noun} in {len(values)} runs"
    if each:
        shared = [value for value in counts if counts[value] > 1 and not isinstance(value, str)]
        shown = [f"{number(value)} in {counts[value]}" for value in sorted(shared)]
        words += f" ({', '.join(shown)})" if shown else ""
    holds = len(counts) == len(values) if each else len(counts) > 1
    return no_sample(arm, values, each=each) or ClaimFinding(arm.name, holds, words)


def accuracies_differ(arm: Arm) -> ClaimFinding:
    """Check that not all runs have the same accuracy; inconclusive if it is 0 in all runs, or 1."""
    finding = runs_differ(arm, measure="accuracy", noun="accuracies")
    accuracies = set(arm.values(lambda trial: trial.accuracy))
    if finding.holds is False and accuracies <= {0.0, 1.0}:
        answered = "every" if accuracies == {1.0} else "no"
        why = f"{answered} question answered right in any run, which hides what differs"
        return ClaimFinding(arm.name, None, why, RUN_PAPER)
    return finding


def responses_differ(arm: Arm, *, answers: bool = False) -> ClaimFinding:
    """Check for each prompt that not all runs give the same response, at a low and at a higher temperature.

    With `answers`, check instead that not all give the same answer (Tables 8 and 9), at the higher one.
    """
    noun = "answers" if answers else "responses"
    arm = on_one_machine(arm)
    if arm.trials[0].free_sources is None and any(trial.responses for trial in arm.done):
        why = "whether runs had the same sampling seed is not known"
        return ClaimFinding(arm.name, None, why, RUN_PAPER if arm.is_published else _COLLECT)
    tests, words = [], []
    for low in (False,) if answers else (False, True):
        prompts = distinct(
            each.prompt for trial in arm.done for each in trial.responses if is_low(each) == low
        )
        if not prompts:
            why = f"no {noun} at a temperature of {f'{LOW} or less' if low else f'more than {LOW}'}"
            tests.append(ClaimFinding(arm.name, None, why, RUN_PAPER))
        different, runs = [], []
        for prompt in prompts:
            found = [response_to(trial, prompt, low) for trial in arm.done]
            values = [answer(each) if answers else each.text for each in found if each is not None]
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


def answer(response: Response) -> str:
    """Return the letter that a response gives, or else its text."""
    return response.answer or response.text.strip()


def response_to(trial: TrialResult, prompt: str, low: bool) -> Response | None:
    """Return a run's response to a prompt at its highest low temperature, or its highest other one."""
    found = [each for each in trial.responses if each.prompt == prompt and is_low(each) == low]
    return max(found, key=lambda response: response.temperature, default=None)


def is_low(response: Response) -> bool:
    """Return whether the response was sampled at a low temperature."""
    return response.temperature <= LOW


def asked_again(arm: Arm) -> ClaimFinding:
    """Check that repeated responses of a model are equal at a low temperature and differ at a higher one."""
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


def bases_repeat(arms: list[Arm]) -> ClaimFinding:
    """Check that all tests of a model's base have the same perplexity."""
    name, frees = arms[0].title, [arm.trials[0].free_sources for arm in arms]
    tests = [rank(value) for value in base_perplexities(arms)]
    if all(arm.is_published for arm in arms):
        return ClaimFinding(name, None, "a mean and an SD of 0.0 are printed, but no single tests", RUN_PAPER)
    if len(tests) < 2:
        return ClaimFinding(name, None, f"{len(tests)} tests, of 2 needed", _RUN_BASES)
    equal = len(set(tests)) == 1
    if equal and any(free is not None and "kernels" not in free for free in frees):
        return ClaimFinding(name, None, f"{len(tests)} equal tests with deterministic kernels", _RUN_FREE)
    span = " to ".join(distinct(number(value) or "" for value in (min(tests), max(tests))))
    words = f"{span} in {len(tests)} tests"
    return ClaimFinding(name, equal, words if equal else f"{words}, {len(set(tests))} of them different")


def compared_with_base(arm: Arm, *, worse: bool) -> ClaimFinding:
    """Check that more than half of the runs are worse than the base model; without `worse`, all better."""
    pairs = [
        (rank(trial.perplexity), trial.base_perplexity)
        for trial in arm.done
        if trial.perplexity is not None and trial.base_perplexity is not None
    ]
    count = sum(value > base if worse else value < base for value, base in pairs)
    holds = 2 * count > len(pairs) if worse else count == len(pairs)
    words = f"{count} of {len(pairs)} runs {'worse' if worse else 'better'}"
    return no_sample(arm, [value for value, _ in pairs]) or ClaimFinding(arm.name, holds, words)


def precision_matters(arm: Arm) -> ClaimFinding:
    """Check that runs differ that have all seeds, the machine and deterministic kernels in common.

    If low precision by itself made runs differ, as section IX says, these would differ too.
    """
    own = on_one_machine(arm)
    digests = [trial.adapter_digest for trial in own.done if trial.adapter_digest]
    if (free := arm.trials[0].free_sources) is None or free:
        why = f"{' and '.join(free)} may make runs differ" if free else "unknown what is free to differ"
        return ClaimFinding(arm.name, None, why, _RUN_PINNED)
    if (few := too_few(arm, digests)) is not None:
        return few
    return ClaimFinding(
        arm.name, len(set(digests)) > 1, f"{len(set(digests))} adapters in {len(digests)} runs"
    )
