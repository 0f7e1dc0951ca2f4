"""Digests and numbers of rows that a study does not give are locked at the first fetch, and then checked."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.checkout import copy_folder, kit
from support.tiny import write_model

from qlora_repeat.archive.zip_file import CRATE
from qlora_repeat.assets.base_models import base_source
from qlora_repeat.assets.datasets import data_source, read_rows, study_prompts
from qlora_repeat.assets.fetch import fetch
from qlora_repeat.assets.hub_lock import lock_file
from qlora_repeat.assets.pins import locked_values
from qlora_repeat.cli.main import cli
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.records.stage_inputs import shared_inputs
from qlora_repeat.study.loading import load_study, open_workspace
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.hashing import file_digest

STUDY = """
[bases.model]
folder = "model"
[data.rows]
task = "question-answering"
file = "rows.jsonl"
[models.mine]
target_modules = ["q_proj"]
"""
ROWS = [{"instruction": f"What is {each} plus {each}?", "answer": f"It is {2 * each}."} for each in range(20)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model."""
    folder = tmp_path_factory.mktemp("models") / "model"
    write_model(folder)
    return folder


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """Return a folder with a study, the folder of its model, and its rows."""
    folder = tmp_path / "own"
    folder.mkdir()
    copy_folder(model, folder / "model")
    write_rows(folder, ROWS)
    (folder / "mine.toml").write_text(STUDY)
    return folder


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def opened(own: Path) -> Workspace:
    return open_workspace(str(own / "mine.toml"), runs=own / "runs", cache=own / "cache")


def fetched(own: Path) -> list[str]:
    lines = list[str]()
    fetch(opened(own), lines.append)
    return lines


def was_verified(lines: list[str]) -> bool:
    """Return whether base and data were in the cache; other lines are about the rows."""
    return sum("in the cache, verified" in line for line in lines) == 2


def test_the_first_fetch_locks_what_the_study_leaves_out(own: Path) -> None:
    before = shared_inputs(opened(own), "mine")
    assert (before["base_source"], before["data_source"]) == ("model-not-locked", "rows-not-locked")
    assert before["base"] is before["data"] is None
    fetched(own)
    locked = json.loads((own / "mine.lock").read_text())
    assert sorted(locked) == ["bases.model", "data.rows"]
    assert locked["data.rows"]["rows"] == 20
    assert locked["data.rows"]["files"]["file"]["digest"] == file_digest(own / "rows.jsonl")
    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert files <= locked["bases.model"]["files"].keys()
    assert str(own) not in (own / "mine.lock").read_text()
    assert was_verified(fetched(own))
    assert lock_file(opened(own)).current.read_text() == (own / "mine.lock").read_text()


def test_given_digests_are_the_same_as_locked_ones(own: Path) -> None:
    fetched(own)
    inputs = shared_inputs(opened(own), "mine")
    shown = CliRunner().invoke(cli, ["show", str(own / "mine.toml")]).output
    assert shown.count("mine.lock") == 3
    (own / "mine.toml").write_text(shown)
    (own / "mine.lock").unlink()
    assert locked_values(opened(own)) == {}
    assert shared_inputs(opened(own), "mine") == inputs
    assert was_verified(fetched(own))
    (own / "mine.toml").write_text(shown.replace("rows = 20", "rows = 21"))
    with pytest.raises(MissingError, match="expects 21 rows, found 20"):
        fetched(own)


def test_paths_do_not_count(own: Path) -> None:
    fetched(own)
    inputs = shared_inputs(opened(own), "mine")
    (own / "model").rename(own / "moved")
    (own / "rows.jsonl").rename(own / "moved.jsonl")
    text = (own / "mine.toml").read_text().replace('"model"', '"moved"').replace("rows.jsonl", "moved.jsonl")
    (own / "mine.toml").write_text(text)
    assert shared_inputs(opened(own), "mine") == inputs
    fetched(own)
    assert (opened(own).cache / "bases").is_dir() and shared_inputs(opened(own), "mine") == inputs


def test_other_bytes_than_locked_are_refused_until_the_entry_is_deleted(own: Path) -> None:
    fetched(own)
    write_rows(own, [*ROWS, ROWS[0]])
    with pytest.raises(MissingError, match=r"rows\.jsonl: SHA-256 is .* delete the entry data\.rows there"):
        fetched(own)
    locked = json.loads((own / "mine.lock").read_text())
    del locked["data.rows"]
    (own / "mine.lock").write_text(json.dumps(locked))
    fetched(own)
    assert len(read_rows(opened(own), "rows")) == 21
    (own / "model/config.json").write_text((own / "model/config.json").read_text() + " ")
    with pytest.raises(MissingError, match=r"config\.json"):
        fetched(own)


def test_a_study_that_asks_for_other_columns_is_locked_again(own: Path) -> None:
    fetched(own)
    text = STUDY + '[data.rows.columns]\ninstruction = "answer"\nanswer = "instruction"\n'
    (own / "mine.toml").write_text(text)
    fetched(own)
    assert read_rows(opened(own), "rows")[0] == {"instruction": "It is 0.", "answer": "What is 0 plus 0?"}


FOLDERS = {
    "no folder": (None, "there is no such folder"),
    "no weights": ("model.safetensors", "it has no weights"),
    "no tokenizer": ("tokenizer.json", "it has no tokenizer"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_no_model_is_refused(case: str, own: Path) -> None:
    file, words = FOLDERS[case]
    path = own / "model" / file if file else own / "model"
    path.rename(own / "elsewhere")
    with pytest.raises(MissingError, match=words):
        fetched(own)
    assert not (own / "mine.lock").exists() or "bases.model" not in (own / "mine.lock").read_text()


def test_a_folder_with_pickles_or_code_is_refused(own: Path) -> None:
    (own / "model/model.safetensors").rename(own / "model/pytorch_model.bin")
    with pytest.raises(MissingError, match=r"pytorch_model\.bin is a pickle, which could run code"):
        fetched(own)
    (own / "model/pytorch_model.bin").rename(own / "model/model.safetensors")
    config = json.loads((own / "model/config.json").read_text())
    (own / "model/config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(MissingError, match="auto_map names Python code"):
        fetched(own)


def test_prompts_that_are_left_out_are_the_first_rows_of_the_test_part(own: Path) -> None:
    fetched(own)
    prompts = study_prompts(opened(own), "mine", 42)
    assert len(prompts) == 2 and {prompt.shown for prompt in prompts} < {row["instruction"] for row in ROWS}
    text = STUDY.replace("question-answering", "text-generation")
    (own / "mine.toml").write_text(f'{text}[data.rows.columns]\nquote = "instruction"\n')
    fetched(own)
    assert all(
        prompt.fed.startswith("What is ") and len(prompt.fed.split()) == 4
        for prompt in study_prompts(opened(own), "mine", 42)
    )


def test_a_trial_of_a_short_study_runs(own: Path) -> None:
    (own / "mine.toml").write_text(STUDY + "[training]\nsteps = 2\n[precision]\ncompute = 'float32'\n")
    where = ["--study", own / "mine.toml", "--runs", own / "runs", "--cache", own / "cache"]
    done = kit("trial", "mine/adamw-8bit/1", *where)
    assert done.returncode == 0, done.stderr
    done = kit("status", own / "mine.toml", "--runs", own / "runs", "--cache", own / "cache")
    assert "14 trials: 1 done" in done.stdout, done.stdout
    done = kit("plan", own / "mine.toml", "--gpu", "t4-16gb", "--cache", own / "cache")
    assert done.returncode == 0, done.stderr


def test_rows_from_a_package_are_locked_too(tmp_path: Path) -> None:
    tiny = load_study("pocket").data["quotes"]
    text = STUDY.replace('task = "question-answering"\nfile = "rows.jsonl"', 'task = "text-generation"\n')
    (tmp_path / "mine.toml").write_text(
        text.replace("[models.mine]", 'source = "fortunes"\nseed = 1\nrows = 2508\n[models.mine]')
    )
    write_model(tmp_path / "model")
    fetched(tmp_path)
    assert locked_values(opened(tmp_path))["data", "rows", "sha256"] == tiny.sha256
    locked = json.loads((tmp_path / "mine.lock").read_text())
    locked["data.rows"]["sha256"] = "0" * 64
    (tmp_path / "mine.lock").write_text(json.dumps(locked))
    with pytest.raises(MissingError, match=f"SHA-256 is {tiny.sha256}, the lock file expects 0000"):
        fetched(tmp_path)


def test_a_file_without_digest_from_a_package_is_locked(tmp_path: Path) -> None:
    pocket = load_study("pocket").bases["smollm2-135m"].gguf
    assert pocket is not None
    text = STUDY.replace(
        'folder = "model"', f'gguf = {{ package = "{pocket.package}", file = "{pocket.file}" }}'
    )
    (tmp_path / "mine.toml").write_text(text)
    from qlora_repeat.assets.fetch import _lock_base

    _lock_base(opened(tmp_path), "model")
    assert locked_values(opened(tmp_path)) == {("bases", "model", "gguf", "sha256"): pocket.sha256}
    given = text.replace(f'"{pocket.file}"', f'"{pocket.file}", sha256 = "{pocket.sha256}"')
    name = base_source(opened(tmp_path), "model")
    (tmp_path / "mine.toml").write_text(given)
    assert base_source(opened(tmp_path), "model") == name


@pytest.mark.parametrize("outside", ["rows.jsonl", "model"])
def test_a_strangers_study_reads_no_file_of_this_machine_whose_bytes_it_does_not_know(
    outside: str, own: Path
) -> None:
    archive = own / "archive"
    (archive / "studies").mkdir(parents=True)
    (archive / CRATE).write_text("{}")
    copy_folder(own / "model", archive / "model")
    write_rows(archive, ROWS)
    inside = STUDY.replace('"rows.jsonl"', '"../rows.jsonl"').replace('"model"', '"../model"')

    def fetch_theirs(text: str) -> None:
        (archive / "studies/theirs.toml").write_text(text)
        fetch(open_workspace(str(archive / "studies/theirs.toml"), cache=own / "cache"), lambda line: None)

    with pytest.raises(UsageError, match=f"{outside}: .* outside of the archive"):
        fetch_theirs(inside.replace(f'"../{outside}"', f'"../../{outside}"'))
    (archive / outside).rename(archive / "kept")
    (archive / outside).symlink_to(own / outside)
    with pytest.raises(UsageError, match=f"{outside}: .* outside of the archive"):
        fetch_theirs(inside)
    (archive / outside).unlink()
    (archive / "kept").rename(archive / outside)
    fetch_theirs(inside)


LOCKS = {
    "a pin under a key": ('{"data.rows": {"kind": "model"}}', "key data.rows.revision is missing"),
    "what was found under a repository": ('{"a/b": {"asked": "%s"}}' % ("0" * 64), "a/b: expected commit"),
    "another key": ('{"models.x": {"asked": "0"}}', "or a key such as data.quotes"),
    "a digest": ('{"data.x": {"asked": "0"}}', "64 hexadecimal digits"),
}


@pytest.mark.parametrize("case", LOCKS)
def test_a_wrong_entry_of_the_lock_file_ends_in_one_line(case: str, own: Path) -> None:
    text, words = LOCKS[case]
    (own / "mine.lock").write_text(text)
    with pytest.raises(UsageError) as caught:
        fetched(own)
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_data_source_is_known_before_the_base(own: Path) -> None:
    fetched(own)
    assert data_source(opened(own), "rows").startswith("rows-")
