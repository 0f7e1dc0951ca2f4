"""Printed commands name the study and its folders as they were given, and spare other people's results."""

import re
import shlex
from pathlib import Path

import pytest
from support.finished import finish_study
from support.laboratory import Lab, failure, run
from support.places import at
from support.tiny import write_study

from qlora_repeat.archive.unpack import Unpacked, unpack
from qlora_repeat.records.record import read_record
from qlora_repeat.study.finding import portable_name
from qlora_repeat.study.loading import load_study, open_workspace
from qlora_repeat.system.files import write_json

FIRST = "tiny-neox/adamw-8bit/1"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a study outside of ``studies/``, as typed from the current folder."""
    for name in ("QLORA_REPEAT_RUNS", "QLORA_REPEAT_CACHE", "STUDY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("my studies").mkdir()
    write_study(Path("my studies"))
    return "my studies/tiny.toml"


def commands(text: str) -> list[str]:
    return re.findall("`(qlora-repeat [^`]+)`", text)


def test_a_command_has_the_study_and_the_places_that_were_given(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_workspace(f"{elsewhere}@bitwise")
    assert plain.command("run") == "qlora-repeat run 'my studies/tiny.toml@bitwise'"
    moved = open_workspace(elsewhere, runs=Path("there"), cache=Path("c d"))
    study = "'my studies/tiny.toml'"
    assert moved.command("merge", "--force", trial=FIRST) == (
        f"qlora-repeat merge {FIRST} --study {study} --force --runs there --cache 'c d'"
    )
    assert moved.command("fetch") == f"qlora-repeat fetch {study} --cache 'c d'"  # it has no --runs
    monkeypatch.setenv("QLORA_REPEAT_RUNS", "there")
    assert open_workspace(elsewhere, runs=Path("there")).command("run") == f"qlora-repeat run {study}"


def test_names_for_others_keep_folders_but_no_absolute_path(elsewhere: str, tmp_path: Path) -> None:
    assert portable_name(f"{elsewhere}@bitwise") == "my studies/tiny.toml@bitwise"
    assert portable_name(str(tmp_path / elsewhere)) == "tiny.toml"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["tables"], ["qlora-repeat collect 'my studies/tiny.toml'"]),
        (["pack"], ["qlora-repeat status 'my studies/tiny.toml'"]),
        (["verify", FIRST, "--study"], [f"qlora-repeat trial {FIRST} --study 'my studies/tiny.toml'"]),
        (["status", FIRST, "--study"], ["qlora-repeat status 'my studies/tiny.toml'"]),
        (["submit", "--time", "1", "--memory", "1"], ["qlora-repeat fetch 'my studies/tiny.toml'"]),
    ],
)
def test_printed_commands_work_for_studies_elsewhere(
    arguments: list[str], wanted: list[str], elsewhere: str
) -> None:
    assert commands(str(failure(run(*arguments, elsewhere)))) == wanted
    # The study that the command names is found from the same folder.
    assert elsewhere in shlex.split(wanted[0])


def test_a_stopped_trial_says_where_what_remains_and_how_it_resumes(elsewhere: str) -> None:
    trial = open_workspace(elsewhere).trial(FIRST)
    for step in ("step-2", "step-10.old"):
        (trial.unfinished / step).mkdir(parents=True)
    shown = run("status", elsewhere).output
    assert "7 missing" in shown and "1 stopped" in shown
    assert (
        f"{FIRST} stopped at step 2 of 3; finetune, merge, evaluate, time remain; "
        f"`qlora-repeat trial {FIRST} --study 'my studies/tiny.toml'` resumes it\n"
    ) in shown
    error = str(failure(run("verify", FIRST, "--study", elsewhere)))
    assert error.startswith(
        f"{FIRST}: is not finished, so there is nothing to verify; run `qlora-repeat trial "
    )


def test_the_number_of_steps_of_a_stopped_trial_follows_from_the_rows(tmp_path: Path) -> None:
    study = write_study(tmp_path, ("steps = 3", "epochs = 2"))
    trial = at(study, tmp_path / "runs").trial(FIRST)
    (trial.unfinished / "step-2").mkdir(parents=True)
    rows = trial.data.rows
    assert rows is not None
    most = min(rows - -(-rows // 5), trial.data.max_rows or rows)  # a fifth, rounded up, is for testing
    assert f"stopped at step 2 of {2 * most};" in run("status", study, "--runs", tmp_path / "runs").output


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("runs/tiny/tiny-neox/adamw-8bit/trial-7", "no such folder or archive; give the folder of a trial"),
        ("./none", "no such folder or archive"),
        ("my studies/tiny.toml", "not a trial's folder; give the folder of a trial"),
        ("my studies", "has no finetune.json, so there is nothing to verify"),
        ("none.zip", "no such folder or archive"),
        (f"none.zip:{FIRST}", "none.zip: no such archive"),
        ("nonesuch/adamw-8bit/1", "study tiny has the models tiny-neox, tiny-llama-chat"),
    ],
)
def test_verify_says_what_is_not_there(given: str, words: str, elsewhere: str) -> None:
    error = str(failure(run("verify", given, "--study", elsewhere)))
    assert given.partition(":")[0] in error and words in error
    assert "finetune.json: " not in error


@pytest.fixture
def theirs(finished: Lab, tmp_path: Path) -> Unpacked:
    """Return an unpacked archive in which files are damaged or missing."""
    found = unpack(finished.archive, tmp_path / "theirs", lambda done, total: None)
    arm = found.runs / "tiny/tiny-neox/adamw-8bit"
    (arm / "trial-1/trace.jsonl").write_text("{}\n")
    (arm / "trial-2/time.json").unlink()
    other = found.runs / "tiny/tiny-neox/adamw-32bit"
    (other / "trial-1/finetune.json").write_text("{}")
    for left in (other / "trial-2").glob("*.json"):
        left.unlink()
    (other / "trial-2/trace.jsonl").unlink()
    (other / "trial-2/unfinished/step-2").mkdir(parents=True)
    write_json(found.runs / "tiny/tiny-neox/base/test-1.json", {})
    return found


@pytest.mark.parametrize("whose", ["theirs", "mine"])
def test_a_reviewer_is_not_told_to_run_anything_that_changes_evidence(
    whose: str, theirs: Unpacked, study_file: Path, finished: Lab
) -> None:
    """Also with a study of their own."""
    study = theirs.study_file if whose == "theirs" else study_file
    where = ["--runs", theirs.runs, "--cache", finished.cache]
    arm = theirs.runs / "tiny/tiny-neox"
    for arguments in (
        ["status", study, *where],
        ["check", study, *where],
        ["collect", study, *where],
        ["pack", study, *where, "--out", theirs.folder.parent / "a.zip"],
        ["verify", FIRST, "--study", study, *where],
        ["verify", "tiny-neox/adamw-32bit/1", "--study", study, *where],
        ["verify", "tiny-neox/adamw-32bit/2", "--study", study, *where],
        ["verify", arm / "adamw-8bit/trial-1"],
        ["verify", arm / "adamw-32bit/trial-1"],
        ["verify", arm / "adamw-32bit/trial-2"],
        ["diff", FIRST, "tiny-neox/adamw-32bit/1", "--study", study, *where],
    ):
        found = run(*arguments)
        text = f"{found.output}{found.exception}"
        assert not [each for each in commands(text) if not each.startswith("qlora-repeat status ")], text
        assert "Traceback" not in text


def test_results_of_an_archive_are_looked_for_there(finished: Lab, tmp_path: Path) -> None:
    found = unpack(finished.archive, tmp_path / "theirs", lambda done, total: None)
    given = ["--study", found.study_file, "--runs", tmp_path / "mine"]
    error = str(failure(run("verify", FIRST, *given)))
    assert f"{FIRST}: was not run yet in {tmp_path / 'mine'}, so there is nothing to verify" in error
    assert error.endswith(f"the results of whoever packed the study: --runs {found.runs}")


def test_attribute_says_how_long_it_takes_and_what_conditions_mean(elsewhere: str, cache: Path) -> None:
    arguments = ["attribute", elsewhere, "--cache", cache, "--jobs", 3, "--dry-run"]
    guessed = run(*arguments).output
    assert re.search(r"Time: more than \d+ seconds \(57 fine-tunings of \d+ seconds by the size", guessed)
    for name in ("baseline", "joint", "nudge"):
        assert re.search(rf"^{name}: \w.*", guessed, re.MULTILINE)
    finish_study(load_study(elsewhere), Path("runs"), cache)
    one = read_record(open_workspace(elsewhere).trial(FIRST).record("merge"))
    assert one is not None
    seconds = f"{3 * one.seconds:.0f}"
    assert f"(57 trials of {seconds} seconds, 3 at a time), as measured here." in run(*arguments).output
