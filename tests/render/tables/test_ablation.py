"""Table S0: the same model tested again and again (section IX)."""

from dataclasses import replace

from support.checkout import ROOT
from support.made_results import QUOTES, table, trial

from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.published import read_published
from qlora_repeat.results.trial_result import Response, TrialResult

HOT, COLD = (1.0, 1.0), (0.1, 0.1)


def asked(texts: dict[tuple[str, tuple[float, float]], list[str]]) -> list[Response]:
    return [
        Response(prompt, *sampling, text, seed=seed)
        for (prompt, sampling), answers in texts.items()
        for seed, text in enumerate(answers)
    ]


def arm(optimizer: str, repeated: list[Response], **changes: object) -> list[TrialResult]:
    """Return two trials; the first got its prompts repeatedly."""
    first = trial(optimizer=optimizer, base_perplexity=7.0, base_perplexities=[7.0, 7.0, 7.0], **changes)
    return [replace(first, repeated_responses=repeated), replace(first, trial=2)]


def test_distinct_responses_are_counted_by_arm_sampling_and_prompt() -> None:
    first = asked(
        {
            (QUOTES[0], HOT): ["a", "b", "b", "c"],
            (QUOTES[1], HOT): ["a", "b", "c", "d"],
            (QUOTES[0], COLD): ["a", "a", "a", "a"],
            (QUOTES[1], COLD): ["b", "b", "b", "b"],
        }
    )
    second = asked({(QUOTES[0], HOT): ["a", "a"]})
    made = table([*arm("adamw-8bit", first), *arm("adamw-32bit", second)], "S0")
    found = dict(zip(made.columns, made.rows[0][1:], strict=True))
    assert [row[0] for row in made.rows] == ["GPT-NeoX-20B"]
    assert found == {
        ("before fine-tuning", "perplexity", "mean"): "7",
        ("before fine-tuning", "perplexity", "SD"): "0",
        ("before fine-tuning", "perplexity", "tests"): "3",
        ("distinct responses, 8-bit", "T 1, top-p 1", "prompt 1"): "3 of 4",
        ("distinct responses, 8-bit", "T 1, top-p 1", "prompt 2"): "4 of 4",
        ("distinct responses, 8-bit", "T 0.1, top-p 0.1", "prompt 1"): "1 of 4",
        ("distinct responses, 8-bit", "T 0.1, top-p 0.1", "prompt 2"): "1 of 4",
        ("distinct responses, 32-bit", "T 1, top-p 1", "prompt 1"): "1 of 2",
        ("distinct responses, 32-bit", "T 1, top-p 1", "prompt 2"): "—",
    }
    assert any("run 1 of each arm" in note for note in made.notes)
    assert any(note.startswith("—: not measured") for note in made.notes)


def test_stale_trials_and_bases_in_the_table_have_a_footnote() -> None:
    first, second = arm("adamw-8bit", asked({(QUOTES[0], HOT): ["a", "b"]}), stale_base_inputs=["lock"])
    stale = {"status": "stale", "stale_inputs": ["code"]}
    made = table([replace(first, **stale), replace(second, **stale)], "S0")
    assert [note for note in made.notes if "Stale (" in note] == [
        "Stale (changed since: lock): GPT-NeoX-20B before fine-tuning.",
        "Stale (changed since: code): GPT-NeoX-20B 8-bit run 1.",
    ]


def test_each_model_has_a_row_and_its_own_prompts() -> None:
    quoting = arm("adamw-8bit", asked({(QUOTES[0], HOT): ["a", "b"]}))
    chatting = arm(
        "adamw-8bit", asked({("other", HOT): ["a", "a"]}), model="chat", model_title="Chat",
        task="question-answering",
    )  # fmt: skip
    chatting = [replace(row, base_perplexities=[2.0, 3.0]) for row in chatting]
    rows = table([*quoting, *chatting], "S0").rows
    assert rows == [["GPT-NeoX-20B", "7", "0", "3", "2 of 2"], ["Chat", "2.5", "0.707", "2", "1 of 2"]]


def test_a_study_without_repeated_tests_has_none() -> None:
    once = [trial(base_perplexities=[7.0]), trial(trial=2, base_perplexities=[7.0])]
    assert "S0" not in [made.number for made in make_tables(group_arms(once))]
    assert "S0" not in [made.number for made in make_tables(group_arms([trial()]))]


def test_an_unfinished_trial_adds_no_responses() -> None:
    rows = arm("adamw-8bit", asked({(QUOTES[0], HOT): ["a", "b"]}))
    made = table([replace(rows[0], status="stale"), rows[1]], "S0")
    assert made.rows == [["GPT-NeoX-20B", "7", "0", "3"]]


def test_the_papers_base_perplexities_are_shown_as_printed() -> None:
    made = make_tables(group_arms(read_published(ROOT / "paper" / "published")))
    assert [one.number for one in made] == [*map(str, range(1, 12)), "S0", "S1", "S1b", "S4", "S4b"]
    assert made[11].name == "table-S0"
    assert made[11].rows == [
        ["GPT-NeoX-20B", "14.35", "0", "7"],
        ["Llama2-7B", "7.04", "0", "7"],
        ["GPT-NeoXT-chat-20B", "16.625", "0", "7"],
        ["Llama2-chat-7B", "17.68", "0", "7"],
    ]
