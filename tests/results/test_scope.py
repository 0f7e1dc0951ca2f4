"""Whether results are of the paper's models, and whether they are cut short."""

from support.made_results import missing, trial

from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.scope import banner, cut_short, examples_tested, of_paper, whole_name


def test_a_complete_study_is_not_cut_short() -> None:
    arms = group_arms([trial(), trial(trial=2, study="pocket@bitwise@materialized")])
    assert (cut_short(arms), banner(arms), banner([])) == ("", "", "")
    assert banner(group_arms([missing()])) == "", "there are no numbers yet"


def test_missing_trials_and_limits_cut_a_study_short() -> None:
    assert cut_short(group_arms([trial(), missing(trial=2)])) == "1 of 2 trials done"
    assert cut_short(group_arms([trial(study="pocket@bitwise@5-steps-8-rows")])) == (
        "at most 5 steps, at most 8 rows of each dataset"
    )
    arms = group_arms([trial(study="a@9-rows"), missing(study="a@9-rows", trial=2)])
    assert banner(arms).startswith("Cut short: 1 of 2 trials done, at most 9 rows of each dataset. ")


def test_the_whole_study_has_the_same_profile() -> None:
    assert whole_name("pocket@bitwise@5-steps@adamw-8bit") == "pocket@bitwise@adamw-8bit"


def test_models_with_different_numbers_of_test_examples_are_named() -> None:
    one, other = trial(test_examples=48), trial(model="b", model_title="B", test_examples=1024)
    assert examples_tested(group_arms([one, trial(trial=2, test_examples=48)])) == "48"
    assert examples_tested(group_arms([one, other])) == "48 (GPT-NeoX-20B); 1,024 (B)"
    assert examples_tested(group_arms([missing()])) == ""


def test_a_model_is_of_the_paper_by_its_name_or_its_counterpart() -> None:
    own, stand_in = trial(model="mine"), trial(model="small", counterpart="llama2-7b")
    assert [arm.model for arm in of_paper(group_arms([trial(), own, stand_in]))] == ["gpt-neox-20b", "small"]
