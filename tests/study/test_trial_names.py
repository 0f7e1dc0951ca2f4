"""The names of trials and their paths."""

from pathlib import Path

import pytest
from support.places import at

from qlora_repeat.errors import UsageError
from qlora_repeat.study.loading import cache_folder
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import STAGES

RUNS = Path("runs")


def test_trials_are_in_the_order_of_the_study(study: Study) -> None:
    assert [trial.name for trial in at(study, RUNS).trials()] == [
        "tiny-neox/adamw-8bit/1",
        "tiny-neox/adamw-8bit/2",
        "tiny-neox/adamw-32bit/1",
        "tiny-neox/adamw-32bit/2",
        "tiny-llama-chat/adamw-8bit/1",
        "tiny-llama-chat/adamw-8bit/2",
        "tiny-llama-chat/adamw-32bit/1",
        "tiny-llama-chat/adamw-32bit/2",
    ]


def test_every_trial_is_found_by_its_name(study: Study) -> None:
    assert [at(study, RUNS).trial(trial.name) for trial in at(study, RUNS).trials()] == at(
        study, RUNS
    ).trials()


def test_no_two_trials_share_a_path(study: Study) -> None:
    trials = at(study, RUNS).trials()
    paths = [
        path
        for trial in trials
        for path in (trial.adapter, trial.merged, trial.trace, trial.log, trial.failure)
    ]
    paths += [path for trial in trials for path in (trial.lock, *map(trial.record, STAGES))]
    paths += {at(study, RUNS).base_tests(trial.model_name)[0].record for trial in trials}
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "named model/optimizer/number, such as tiny-neox/adamw-8bit/1"),
        ("tiny-neox", "named model/optimizer/number"),
        ("tiny-neox/adamw-8bit/1/2", "named model/optimizer/number"),
        ("neox/adamw-8bit/1", "has the models tiny-neox, tiny-llama-chat"),
        ("tiny-neox/sgd/1", "has the optimizers adamw-8bit, adamw-32bit"),
        ("tiny-neox/adamw-8bit/0", "numbers its trials 1 to 2"),
        ("tiny-neox/adamw-8bit/3", "numbers its trials 1 to 2"),
        ("tiny-neox/adamw-8bit/-1", "numbers its trials 1 to 2"),
        ("tiny-neox/adamw-8bit/one", "numbers its trials 1 to 2"),
        ("tiny-neox/adamw-8bit/1.0", "numbers its trials 1 to 2"),
        ("tiny-neox/adamw-8bit/²", "numbers its trials 1 to 2"),
        ("tiny-neox/adamw-8bit/trial-1", "numbers its trials 1 to 2"),
    ],
)
def test_the_error_for_a_wrong_name_says_which_part_and_lists_the_alternatives(
    study: Study, name: str, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        at(study, RUNS).trial(name)
    assert str(caught.value).startswith(f"trial {name!r}: ")
    assert words in str(caught.value)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QLORA_REPEAT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / "home/.cache/qlora-repeat"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/qlora-repeat"
    monkeypatch.setenv("QLORA_REPEAT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
