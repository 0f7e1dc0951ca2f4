"""Some of a study's trials, by model, arm and number."""

import pytest
from support.places import NO_RUNS, at

from qlora_repeat.errors import UsageError
from qlora_repeat.study.selection import select
from qlora_repeat.study.study import Study


def names(study: Study, *only: str, trials: int | None = None) -> list[str]:
    return [trial.name for trial in select(at(study, NO_RUNS), only, trials).trials]


def test_models_arms_and_numbers_choose_trials(study: Study) -> None:
    workspace = at(study, NO_RUNS)
    assert select(workspace).trials == workspace.trials()
    assert select(workspace).base_tests == workspace.base_tests()
    assert names(study, "tiny-neox/adamw-8bit", trials=1) == ["tiny-neox/adamw-8bit/1"]
    both = names(study, "tiny-neox", "tiny-llama-chat/adamw-32bit", "tiny-neox/adamw-8bit/")
    assert [name.rpartition("/")[0] for name in both[::2]] == [
        "tiny-neox/adamw-8bit",
        "tiny-neox/adamw-32bit",
        "tiny-llama-chat/adamw-32bit",
    ]
    chosen = select(workspace, ["tiny-neox"], 1)
    assert [test.name for test in chosen.base_tests] == ["tiny-neox/base/1"]
    assert (chosen.models, chosen.left_out) == (["tiny-neox"], 6)


@pytest.mark.parametrize("wrong", ["neox", "tiny-neox/adamw", "tiny-neox/adamw-8bit/1", "", "/"])
def test_a_wrong_name_gives_one_line_with_what_there_is(study: Study, wrong: str) -> None:
    with pytest.raises(UsageError) as error:
        names(study, "tiny-neox", wrong)
    there = "study tiny has the models tiny-neox, tiny-llama-chat and the optimizers adamw-8bit, adamw-32bit"
    assert str(error.value) == f"--only {wrong}: expected MODEL or MODEL/OPTIMIZER; {there}"


@pytest.mark.parametrize("wrong", [0, -1, 3])
def test_a_wrong_number_names_the_study_s_trials(study: Study, wrong: int) -> None:
    with pytest.raises(UsageError, match=f"--trials {wrong}: study tiny has 2 trials of each arm"):
        names(study, trials=wrong)
