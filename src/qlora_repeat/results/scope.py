"""What results may be judged as: of the paper's models or of others, complete or cut short."""

from collections.abc import Iterable, Sequence

from qlora_repeat.results.arms import Arm, by_model, distinct, trained
from qlora_repeat.results.published import MODELS
from qlora_repeat.study.finding import CUT, split_name

_ADVICE = "Take these numbers as a first look, not as results."


def of_paper(arms: Iterable[Arm]) -> list[Arm]:
    """Return the trained arms whose model is one of the paper's, or stands in for one."""
    return [arm for arm in trained(arms) if arm.counterpart in MODELS]


def whole_name(study: str) -> str:
    """Return a study's name without the limits after @."""
    name, parts = split_name(study)
    return "@".join([name, *(part for part in parts if not CUT.fullmatch(part))])


def cut_short(arms: Sequence[Arm]) -> str:
    """Return in what these arms have less than their study file asks for; an empty text if in nothing.

    That is a trial that is not done, or a limit after @ in the name of the study.
    """
    planned, done = sum(len(arm.trials) for arm in arms), sum(len(arm.done) for arm in arms)
    found = [f"{done} of {planned} trials done"] if done < planned else []
    studies = distinct(trial.study for arm in arms for trial in arm.trials)
    for part in (part for study in studies for part in split_name(study)[1]):
        if limit := CUT.fullmatch(part):
            steps, rows = limit[1], limit[2] or limit[3]
            found += [f"at most {steps} steps"] if steps else []
            found += [f"at most {rows} rows of each dataset"] if rows else []
    return ", ".join(distinct(found))


def banner(arms: Sequence[Arm]) -> str:
    """Return what to say above numbers that are cut short; an empty text for others."""
    found = cut_short(arms) if any(arm.done for arm in arms) else ""
    return f"Cut short: {found}. {_ADVICE}" if found else ""


def examples_tested(arms: Sequence[Arm]) -> str:
    """Return the number of test examples, with the models' titles if they have different numbers."""
    counts: dict[str, list[str]] = {}
    for own in by_model(arms).values():
        for count in distinct(
            f"{trial.test_examples:,}" for arm in own for trial in arm.done if trial.test_examples is not None
        ):
            counts.setdefault(count, []).append(own[0].title)
    if len(counts) < 2:
        return "".join(counts)
    return "; ".join(f"{count} ({', '.join(titles)})" for count, titles in counts.items())
