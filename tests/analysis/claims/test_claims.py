"""The paper's claims: made-up results support, do not support, or do not test each one."""

import itertools
import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkout import ROOT
from support.made_results import table

from qlora_repeat.analysis.claims.claims import CLAIMS, JudgedClaim, judge_claims
from qlora_repeat.render.tables.write import panels
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.published import read_published
from qlora_repeat.results.statistical_methods import FEWEST
from qlora_repeat.results.trial_result import Response, TrialResult

PUBLISHED = read_published(ROOT / "paper" / "published")
KEYS = [claim.key for claim in CLAIMS]
FREELY = [key for key in KEYS if key != "low-precision"]
"""The claims that runs with seeds of their own can test."""
MODELS = {"text-generation": "Quoting", "question-answering": "Chatting"}
WIDE = [21024.0, 3452.0, 3028.0, 5440.0, 1105.0, 790.0, 1780.0]
NARROW = [8.039, 8.179, 8.257, 8.101, 8.391, 8.226, 8.703]
LOW, HIGH = 0.1, 1.0
FREE = ["adapter_init", "kernels"]

Change = Callable[[TrialResult], dict[str, Any]]


def trial(task: str, optimizer: str, number: int) -> TrialResult:
    """Return a trial as the paper describes it: the values that should differ do differ."""
    narrow = optimizer == "adamw-8bit"
    name = f"{optimizer} {number}"
    answer = None if narrow or task == "text-generation" else "ABCD"[number % 4]
    return TrialResult(
        study="pocket",
        task=task,
        model=MODELS[task].lower(),
        model_title=MODELS[task],
        counterpart={"text-generation": "llama2-7b", "question-answering": "llama2-chat-7b"}[task],
        optimizer=optimizer,
        trial=number,
        status="done",
        randomness="as-published",
        free_sources=FREE,
        perplexity=(WIDE if narrow else NARROW)[number - 1],
        base_perplexity=14.35,
        base_perplexities=[14.35] * 7,
        accuracy=number / 100 if task == "question-answering" else None,
        final_loss=number + (9.0 if narrow else 0.5),
        train_seconds=number + (1000.0 if narrow else 1020.0),
        test_seconds=1.4 + number / 1000 + (0.0 if narrow else 0.05),
        peak_memory_bytes=2**30,
        peak_memory_share=0.7627 if narrow else 0.7638,
        adapter_digest=f"digest of {name}",
        responses=[
            Response(prompt, heat, heat, f"{prompt} {heat} {name}", answer)
            for prompt in ("first", "second")
            for heat in (HIGH, LOW)
        ],
        repeated_responses=[
            Response(prompt, heat, heat, f"{prompt} {heat} {again if heat == HIGH else ''}", seed=again)
            for prompt in ("first", "second")
            for heat in (HIGH, LOW)
            for again in range(FEWEST)
            if number == 1
        ],
        device="NVIDIA A100",
    )


def lifelike(trials: int = 7) -> list[TrialResult]:
    """Return results that support all claims of the paper."""
    return [
        trial(task, optimizer, number)
        for task in MODELS
        for optimizer in ("adamw-8bit", "adamw-32bit")
        for number in range(1, trials + 1)
    ]


def changed(change: Change, optimizer: str = "", task: str = "") -> list[TrialResult]:
    """Return those results with a change in all trials, or in trials of an optimizer or a task."""
    return [
        replace(row, **change(row)) if optimizer in row.optimizer and task in row.task else row
        for row in lifelike()
    ]


def swapped(*names: str) -> list[TrialResult]:
    """Return those results with these values of 8-bit and 32-bit trials exchanged."""
    rows = {(row.task, row.optimizer, row.trial): row for row in lifelike()}
    others = {"adamw-8bit": "adamw-32bit", "adamw-32bit": "adamw-8bit"}
    return [
        replace(row, **{name: getattr(rows[task, others[optimizer], number], name) for name in names})
        for (task, optimizer, number), row in rows.items()
    ]


def said(row: TrialResult, heat: float, text: str) -> list[Response]:
    """Return a trial's responses, with this text at one temperature."""
    return [
        replace(response, text=text, answer=None) if response.temperature == heat else response
        for response in row.responses
    ]


def again(row: TrialResult, text: Callable[[Response], str]) -> list[Response]:
    """Return a trial's repeated responses with this text."""
    return [replace(response, text=text(response)) for response in row.repeated_responses]


def verdicts(results: list[TrialResult]) -> dict[str, str]:
    return {judged.claim.key: judged.verdict for judged in judge_claims(group_arms(results))}


def found(results: list[TrialResult], key: str) -> JudgedClaim:
    (judged,) = [judged for judged in judge_claims(group_arms(results)) if judged.claim.key == key]
    return judged


def test_results_like_the_papers_support_all_of_its_claims() -> None:
    assert len(set(KEYS)) == len(KEYS)
    assert verdicts(lifelike()) == dict.fromkeys(FREELY, "supported") | {"low-precision": "untested"}


OPEN = [
    ("8-bit-higher", changed(lambda row: {"perplexity": NARROW[row.trial - 1]})),
    ("8-bit-wider", changed(lambda row: {"perplexity": NARROW[row.trial - 1]})),
    ("8-bit-losses-higher", changed(lambda row: {"final_loss": float(row.trial)})),
    ("32-bit-answers", changed(lambda row: {"responses": said(row, HIGH, f"{row.trial}")})),
    ("slower-training", changed(lambda row: {"train_seconds": 1000.0 + row.trial})),
    ("slower-test", changed(lambda row: {"test_seconds": 1.46 + row.trial / 1000})),
]


@pytest.mark.parametrize(("key", "results"), OPEN, ids=[key for key, _ in OPEN])
def test_a_difference_that_is_not_found_leaves_a_claim_open(key: str, results: list[TrialResult]) -> None:
    judged = found(results, key)
    assert judged.verdict == "not shown"
    assert re.match(r"No difference was found in \d of \d comparisons?: ", judged.evidence)


AGAINST: list[tuple[str, list[TrialResult]]] = [
    ("runs-differ", changed(lambda row: {"perplexity": 9.0}, "32bit", "text-generation")),
    ("no-two-agree", changed(lambda row: {"perplexity": 9.0 + row.trial // 2}, "32bit")),
    ("weights-differ", changed(lambda row: {"adapter_digest": "abc"[row.trial % 3]}, "8bit")),
    ("8-bit-higher", swapped("perplexity")),
    ("8-bit-wider", swapped("perplexity")),
    ("8-bit-collapse", changed(lambda row: {"perplexity": 13.95 + row.trial / 10}, "8bit")),
    ("32-bit-improve", changed(lambda row: {"perplexity": row.trial + 7.35}, "32bit")),
    ("bases-repeat", changed(lambda row: {"base_perplexities": [14.35] * 6 + [14.351]}, task="answering")),
    ("losses-differ", changed(lambda row: {"final_loss": 2.5}, "32bit", "answering")),
    ("8-bit-losses-higher", swapped("final_loss")),
    ("responses-differ", changed(lambda row: {"responses": said(row, LOW, "same")}, "8bit", "generation")),
    ("responses-differ", changed(lambda row: {"responses": said(row, HIGH, "same")}, "8bit", "generation")),
    ("answers-differ", changed(lambda row: {"responses": said(row, HIGH, " same ")}, "8bit", "answering")),
    ("accuracy-differs", changed(lambda row: {"accuracy": 0.25}, "32bit", "answering")),
    ("32-bit-answers", swapped("responses")),
    (
        "asked-again",
        changed(lambda row: {"repeated_responses": again(row, lambda each: f"{each.seed}")}),
    ),
    (
        "asked-again",
        changed(lambda row: {"repeated_responses": again(row, lambda each: "same")}),
    ),
    ("slower-training", swapped("train_seconds")),
    ("slower-training", changed(lambda row: {"train_seconds": 1300.0 + row.trial}, "32bit", "answering")),
    ("slower-test", swapped("test_seconds")),
    ("more-memory", swapped("peak_memory_share")),
    ("more-memory", changed(lambda row: {"peak_memory_share": 0.84}, "32bit", "answering")),
    ("low-precision", changed(lambda row: {"free_sources": [], "adapter_digest": row.optimizer})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "results"), AGAINST, ids=[f"{key}-{n}" for n, (key, _) in enumerate(AGAINST)]
)
def test_contrary_results_do_not_support_a_claim(key: str, results: list[TrialResult]) -> None:
    judged = found(results, key)
    assert judged.verdict == "contradicted"
    assert re.match(r"Not in \d of \d (arm|model|comparison)s?: ", judged.evidence)


def test_each_claim_has_contrary_results() -> None:
    assert {key for key, _ in AGAINST} == set(KEYS)


NEEDS = {
    "runs-differ": "perplexity",
    "no-two-agree": "perplexity",
    "weights-differ": "adapter_digest",
    "8-bit-higher": "perplexity",
    "8-bit-wider": "perplexity",
    "8-bit-collapse": "base_perplexity",
    "32-bit-improve": "base_perplexity",
    "bases-repeat": "base_perplexities",
    "losses-differ": "final_loss",
    "8-bit-losses-higher": "final_loss",
    "responses-differ": "responses",
    "answers-differ": "responses",
    "accuracy-differs": "accuracy",
    "32-bit-answers": "responses",
    "asked-again": "repeated_responses",
    "slower-training": "train_seconds",
    "slower-test": "test_seconds",
    "more-memory": "peak_memory_share",
}
"""The values that each claim needs, apart from that on low precision."""


@pytest.mark.parametrize("key", FREELY)
def test_without_its_values_in_one_arm_a_claim_is_untested(key: str) -> None:
    nothing = [] if NEEDS[key] in ("responses", "repeated_responses") else None
    if key == "bases-repeat":  # all arms of a model have its values
        results = changed(lambda row: {"base_perplexities": [14.35]}, task="answering")
    else:
        lacking = "8bit" if key == "8-bit-collapse" else "32bit"
        results = changed(lambda row: {NEEDS[key]: nothing}, lacking, "answering")
    judged = found(results, key)
    assert judged.verdict == "untested"
    assert re.fullmatch(
        r"1 of \d (arm|model|comparison)s? cannot tell: .*; to test it: make all STUDY=.*\.", judged.evidence
    )
    assert found(lifelike(), key).verdict == "supported"


@pytest.mark.parametrize("status", ["missing", "done"])
def test_without_any_values_everything_is_untested(status: str) -> None:
    bare = [
        TrialResult("pocket", row.task, row.model, row.model_title, row.optimizer, row.trial, status)
        for row in lifelike()
    ]
    assert verdicts(bare) == dict.fromkeys(KEYS, "untested")
    assert all(
        "; to test it: make all STUDY=" in judged.evidence for judged in judge_claims(group_arms(bare))
    )
    assert verdicts([]) == dict.fromkeys(KEYS, "untested")


@pytest.mark.parametrize("trials", [FEWEST - 1, FEWEST])
def test_too_few_trials_leave_claims_untested(trials: int) -> None:
    untested = {key for key, verdict in verdicts(lifelike(trials)).items() if verdict == "untested"}
    assert untested == (set(KEYS) - {"bases-repeat", "asked-again"} if trials < FEWEST else {"low-precision"})
    assert ("trials = 5 or more" in found(lifelike(trials), "runs-differ").evidence) == (trials < FEWEST)


def test_missing_trials_are_named_with_the_command_that_runs_them() -> None:
    results = [replace(row, status="failed") if row.trial > 4 else row for row in lifelike()]
    evidence = found(results, "runs-differ").evidence
    assert evidence == "4 of 4 arms cannot tell: 4 of 7 trials done; to test it: make all STUDY=pocket."
    stale = [
        replace(row, status="stale", stale_inputs=["code"]) if row.trial > 4 else row for row in lifelike()
    ]
    assert verdicts(stale) == verdicts(lifelike())


def test_a_study_that_is_cut_short_tests_no_claim() -> None:
    short = [replace(row, study="pocket@5-steps-8-rows") for row in lifelike()]
    assert verdicts(short) == dict.fromkeys(KEYS, "untested")
    evidence = found(short, "8-bit-wider").evidence
    assert "at most 5 steps, at most 8 rows of each dataset" in evidence
    assert evidence.endswith("to test it: make all STUDY=pocket.")


def like_the_first(rows: list[TrialResult], **changes: Any) -> list[TrialResult]:
    """Make all trials of an arm like the first."""
    first = {(row.model, row.optimizer): row for row in rows if row.trial == 1}
    return [replace(first[row.model, row.optimizer], trial=row.trial, **changes) for row in rows]


DIFFERING = {key for key in KEYS if "differ" in key} | {"no-two-agree", "8-bit-wider"}


@pytest.mark.parametrize("free", [None, FREE, ["kernels"], [], ["adapter_init"], ["split"]], ids=str)
@pytest.mark.parametrize("profile", [None, "bitwise"])
def test_identical_trials_never_support_that_trials_differ(
    free: list[str] | None, profile: str | None
) -> None:
    alike = verdicts(like_the_first(lifelike(), free_sources=free, randomness=profile))
    assert {key for key in DIFFERING if alike[key] == "supported"} == set()
    tested = (free is None and profile is None) or (free is not None and "adapter_init" in free)
    of_responses = {"responses-differ", "answers-differ"} if free is None else set()
    assert {alike[key] for key in of_responses} <= {"untested"}
    expected = {"contradicted" if tested else "untested"}
    assert {alike[key] for key in DIFFERING - of_responses - {"8-bit-wider"}} == expected
    assert alike["8-bit-wider"] == ("not shown" if tested else "untested")


OF_SAMPLES = DIFFERING | {
    "8-bit-higher", "8-bit-collapse", "32-bit-improve", "8-bit-losses-higher", "32-bit-answers",
}  # fmt: skip


def test_identical_trials_with_the_same_seeds_count_once() -> None:
    pinned = {"free_sources": [], "randomness": "bitwise", "study": "pocket@bitwise@materialized"}
    results = like_the_first(lifelike(), **pinned)
    # Each trial still has its own measured times.
    results = [
        replace(row, train_seconds=own.train_seconds, test_seconds=own.test_seconds)
        for row, own in zip(results, lifelike(), strict=True)
    ]
    untested = {key for key, verdict in verdicts(results).items() if verdict == "untested"}
    assert untested == OF_SAMPLES | {"bases-repeat"}
    evidence = found(results, "runs-differ").evidence
    assert "7 runs with the same seeds, all equal" in evidence
    assert evidence.endswith("to test it: make all STUDY=pocket@materialized RANDOMNESS=as-published.")
    assert found(results, "runs-differ").command.startswith("make all STUDY=pocket@bitwise@materialized")


def test_different_trials_with_the_same_seeds_all_count() -> None:
    results = [replace(row, free_sources=["kernels"], randomness="seeded") for row in lifelike()]
    assert verdicts(results) == verdicts(lifelike())
    two = [replace(row, perplexity=NARROW[max(row.trial, 2) - 1]) for row in results]
    assert found(two, "runs-differ").verdict == "supported"
    assert "7 runs with the same seeds, some equal" in found(two, "no-two-agree").evidence


def test_results_without_seeds_must_be_collected_again() -> None:
    alike = like_the_first(lifelike(), free_sources=None, randomness="bitwise")
    assert found(alike, "runs-differ").evidence.endswith("to test it: qlora-repeat collect pocket.")


@pytest.mark.parametrize(
    ("source", "untested"),
    [("split", OF_SAMPLES), ("generation", {"responses-differ", "answers-differ"})],
)
def test_trials_that_differ_in_other_sources_leave_claims_untested(source: str, untested: set[str]) -> None:
    found_verdicts = verdicts([replace(row, free_sources=[*FREE, source]) for row in lifelike()])
    assert {key for key, verdict in found_verdicts.items() if verdict == "untested"} == {
        *untested,
        "low-precision",
    }


def test_runs_of_other_machines_do_not_count() -> None:
    """One run on another machine differs from the others, which are all the same."""
    alike = like_the_first(lifelike())
    results = [replace(row, perplexity=9.9, device="another") if row.trial == 7 else row for row in alike]
    judged = found(results, "runs-differ")
    assert judged.verdict == "contradicted"
    assert "1 different perplexities in 6 runs" in judged.evidence


def test_unknown_sampling_seeds_leave_claims_on_responses_untested() -> None:
    of = verdicts([replace(row, free_sources=None) for row in lifelike()])
    assert (of["responses-differ"], of["answers-differ"]) == ("untested", "untested")


def test_five_trials_can_support_a_claim_on_several_models() -> None:
    assert found(lifelike(FEWEST), "8-bit-wider").verdict == "supported"


def test_low_precision_is_not_why_runs_differ_if_pinned_runs_are_equal() -> None:
    pinned = changed(lambda row: {"free_sources": [], "randomness": "bitwise"})
    assert found(pinned, "low-precision").verdict == "supported", "they differ"
    equal = [replace(row, adapter_digest=row.optimizer) for row in pinned]
    assert found(equal, "low-precision").verdict == "contradicted"
    assert "kernels may make runs differ" in found(lifelike(), "low-precision").evidence


def test_diverged_trials_are_equal_and_worse_than_all_others() -> None:
    results = [
        replace(row, perplexity=(math.nan, math.inf)[row.trial % 2], final_loss=math.nan)
        if row.optimizer == "adamw-8bit"
        else row
        for row in lifelike()
    ]
    of = verdicts(results)
    assert (of["8-bit-collapse"], of["8-bit-higher"], of["8-bit-losses-higher"]) == ("supported",) * 3
    assert (of["runs-differ"], of["losses-differ"]) == ("contradicted",) * 2
    assert of["8-bit-wider"] == "untested"
    assert "an arm has no finite perplexity" in found(results, "8-bit-wider").evidence


@pytest.mark.parametrize(("accuracy", "answered"), [(0.0, "no"), (1.0, "every")])
def test_accuracies_of_zero_or_one_leave_the_claim_untested(accuracy: float, answered: str) -> None:
    judged = found(changed(lambda row: {"accuracy": accuracy}, "32bit", "answering"), "accuracy-differs")
    assert judged.verdict == "untested"
    assert f"Chatting 32-bit, {answered} question answered right in any run" in judged.evidence


def test_memory_without_a_gpu_leaves_the_claim_untested() -> None:
    judged = found(changed(lambda row: {"peak_memory_share": None}), "more-memory")
    assert judged.verdict == "untested"
    assert judged.evidence.endswith(
        "no GPU, whose memory the claim is about; to test it: make all STUDY=paper, on a GPU."
    )


def test_one_optimizer_or_one_task_leaves_its_claims_untested() -> None:
    plain = [row for row in lifelike() if row.optimizer == "adamw-32bit"]
    of = verdicts(plain)
    assert {key for key in KEYS if of[key] == "untested"} == {
        *(key for key in KEYS if key.startswith("8-bit")),
        *("32-bit-answers", "slower-training", "slower-test", "more-memory", "low-precision"),
    }
    assert "no runs with an 8-bit optimizer" in found(plain, "8-bit-higher").evidence
    quoting = [row for row in lifelike() if row.task == "text-generation"]
    assert {key for key in KEYS if verdicts(quoting)[key] == "untested"} == {
        "answers-differ", "accuracy-differs", "32-bit-answers", "low-precision",
    }  # fmt: skip
    assert found(quoting, "answers-differ").evidence == (
        "No such arm in the results; to test it: make all STUDY=paper."
    )


def test_8_bit_state_is_compared_with_32_bit_state_of_the_same_optimizer() -> None:
    """Lion is listed first, and with 32-bit state it would be the better one."""
    lion = [
        replace(row, optimizer=row.optimizer.replace("adamw", "lion"), perplexity=1e9)
        for row in lifelike()
        if row.optimizer == "adamw-32bit"
    ]
    of = verdicts([*lion, *lifelike()])
    assert (of["8-bit-higher"], of["8-bit-wider"]) == ("supported", "supported")
    without = [*lion, *(row for row in lifelike() if row.optimizer == "adamw-8bit")]
    judged = found(without, "8-bit-higher")
    assert judged.verdict == "untested"
    assert "no runs with adamw-32bit to compare adamw-8bit with" in judged.evidence


def test_an_old_state_map_is_a_separate_arm_compared_with_32_bit_state() -> None:
    old = [
        replace(row, optimizer="adamw-8bit+bitsandbytes-0.41.0", perplexity=NARROW[row.trial - 1])
        for row in lifelike()
        if row.optimizer == "adamw-8bit"
    ]
    judged = found([*lifelike(), *old], "8-bit-higher")
    assert judged.verdict == "not shown"
    assert judged.evidence == (
        "No difference was found in 2 of 4 comparisons: Quoting 8-bit, map of bitsandbytes 0.41.0 and "
        "Chatting 8-bit, map of bitsandbytes 0.41.0, median 8.226 with 8 bits, 8.226 with 32, p 1; it holds "
        "in 2."
    )


VALUES = st.none() | st.sampled_from([0.0, 1.0, 2.5, 14.35, math.inf, math.nan]) | st.floats(0, 1e6)
ROWS = st.builds(
    lambda row, perplexity, final_loss, train_seconds, accuracy, free, status: replace(
        row,
        perplexity=perplexity,
        final_loss=final_loss,
        train_seconds=train_seconds,
        accuracy=accuracy,
        free_sources=free,
        status=status,
    ),
    row=st.sampled_from(lifelike()),
    perplexity=VALUES,
    final_loss=VALUES,
    train_seconds=VALUES,
    accuracy=VALUES,
    free=st.sampled_from([None, FREE, []]),
    status=st.sampled_from(["done", "done", "done", "missing"]),
)
SOME = st.lists(ROWS, max_size=28, unique_by=lambda row: (row.model, row.optimizer, row.trial))


@settings(deadline=None, max_examples=60)
@given(SOME)
def test_any_results_give_each_claim_a_verdict_and_a_sentence(results: list[TrialResult]) -> None:
    judged = judge_claims(group_arms(results))
    assert [each.claim.key for each in judged] == KEYS
    for each in judged:
        assert each.verdict in ("supported", "contradicted", "not shown", "untested")
        assert each.evidence.endswith(".")
        assert ("to test it: " in each.evidence) == (each.verdict == "untested")
        assert "{" not in each.evidence + each.command


@settings(deadline=None, max_examples=40)
@given(st.randoms(use_true_random=False))
def test_verdicts_do_not_depend_on_the_order_of_trials(chance: random.Random) -> None:
    pools = {
        "perplexity": [7.0, 8.5, 14.35, 14.4, math.nan, chance.uniform(5, 50)],
        "final_loss": [1.0, 2.0, chance.uniform(1, 2)],
        "train_seconds": [1000.0, chance.uniform(1000, 1200)],
        "accuracy": [0.0, chance.choice([0.0, 0.5])],
        "adapter_digest": ["a", "b", f"{chance.random()}"],
    }
    mixed = {name: pool for name, pool in pools.items() if chance.random() < 0.7}
    mixed |= {
        "status": ["failed", *["done"] * 9],
        "free_sources": [chance.choice([None, FREE, ["kernels"], []])],
    }
    results = [
        replace(row, **{name: chance.choice(pool) for name, pool in mixed.items()}) for row in lifelike()
    ]
    shuffled = results.copy()
    chance.shuffle(shuffled)
    counts = {(row.model, row.optimizer): itertools.count(1) for row in results}
    renumbered = [replace(row, trial=next(counts[row.model, row.optimizer])) for row in shuffled]
    assert verdicts(renumbered) == verdicts(results)


def test_the_papers_numbers_give_the_expected_verdicts() -> None:
    of = verdicts(PUBLISHED)
    assert {key for key in KEYS if of[key] == "contradicted"} == set()
    assert {key for key in KEYS if of[key] == "not shown"} == {"slower-training", "slower-test"}
    assert {key for key in KEYS if of[key] == "untested"} == {
        "no-two-agree", "weights-differ", "bases-repeat", "losses-differ", "8-bit-losses-higher",
        "responses-differ", "answers-differ", "accuracy-differs", "asked-again", "more-memory",
        "low-precision",
    }  # fmt: skip
    evidence = found(PUBLISHED, "no-two-agree").evidence
    assert "Llama2-7B 32-bit, 6 different perplexities in 7 runs, in the digits that are printed" in evidence
    for judged in judge_claims(group_arms(PUBLISHED)):
        assert judged.command.startswith("make all STUDY=paper")
        assert judged.verdict != "untested" or judged.evidence.endswith("; to test it: make all STUDY=paper.")


def test_table_s4_has_a_row_for_each_claim_side_by_side() -> None:
    made = table(lifelike(), "S4")
    assert [row[0] for row in made.rows] == [str(number) for number in range(1, len(CLAIMS) + 1)]
    for row, judged in zip(made.rows, judge_claims(group_arms(lifelike())), strict=True):
        assert row[1:] == [f"{judged.claim.words} ({judged.claim.where})", judged.verdict, judged.line]
    assert made.prose
    assert len(panels(made)) == 1
    assert "Models: Quoting, Chatting." in made.notes
    stale = [
        replace(row, status="stale", stale_inputs=["code"]) if row.trial == 2 else row for row in lifelike()
    ]
    notes = table([*stale[:-1], replace(stale[-1], status="failed")], "S4").notes
    assert any("changed since: code" in note for note in notes)
    assert "Not in these verdicts: 1 of 28 trials: 1 failed." in notes


def test_the_document_has_the_verdicts_on_the_papers_numbers() -> None:
    """Check that each claim has its verdict there, and only numbers from its evidence."""
    text = " ".join((ROOT / "docs/explanation/claims.md").read_text(encoding="utf-8").split())
    items = re.findall(
        r" (\d+)\. `([\w-]+)`: (.+?)\*\*(\w[\w ]+)\*\*(.*?)(?= \d+\. `| Untested claims)", text
    )
    assert [(number, key) for number, key, *_ in items] == [
        (str(number), claim.key) for number, claim in enumerate(CLAIMS, 1)
    ]
    for (*_, words, verdict, evidence), judged in zip(
        items, judge_claims(group_arms(PUBLISHED)), strict=True
    ):
        assert words.strip() and verdict.lower() == judged.verdict
        if verdict != "Untested":
            assert numbers(evidence) <= numbers(judged.evidence), judged.claim.key


def numbers(text: str) -> set[str]:
    """Return the numbers in a text, without those in names."""
    return set(re.findall(r"(?<![\w.,-])\d[\d,.]*\d|(?<![\w.,-])\d(?![\w])", text))
