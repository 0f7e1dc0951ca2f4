"""Pins: what a study takes of a repository, and caches whose content is not what the lock file names."""

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.hub_study import MODEL, PICKLED, QUOTES, User, write_hub_study
from support.laboratory import failure, run
from support.made_cache import SHARDS, make_user, opened, put_on_hub
from support.places import NO_RUNS, at

from qlora_repeat.analysis.integrity import check
from qlora_repeat.assets.base_models import base_digest, base_folder, base_source, check_base
from qlora_repeat.assets.configuration import code_key, refuse_code
from qlora_repeat.assets.datasets import data_folder, data_source, read_rows
from qlora_repeat.assets.fetch import fetch, needed
from qlora_repeat.assets.pins import needed_files, pin_of
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.records.stage_inputs import shared_inputs
from qlora_repeat.study.data_sources import Hub
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.workspace import ARCHIVE_MARK, Workspace
from qlora_repeat.system.files import write_json
from qlora_repeat.system.hashing import MANIFEST, folder_digests

PLAIN = ["config.json", "tokenizer.json", "model.safetensors"]


def taken(*names: str, kind: Any = "model", files: str = "*") -> tuple[set[str], list[str]]:
    found, absent = needed_files(Hub("a/b", "main", files), kind, dict.fromkeys(names))
    return {*found}, absent


def test_a_model_is_an_exact_list_of_files() -> None:
    code = [
        "tokenizer.py",
        "tokenizer_config.py",
        "modeling.py",
        "config.json.py",
        "custom_generate/generate.py",
    ]
    weights = ["model-x.safetensors", "model-0001-of-0002.safetensors", "adapter_model.safetensors"]
    weights += ["pytorch_model.bin", "model-\u0661\u0661\u0661\u0661\u0661-of-00002.safetensors"]
    more = [
        "tokenizer",
        "adapter_config.json",
        "x/config.json",
        "x/chat_template.jinja",
        "tokenizer_checklist.chk",
    ]
    chat = "chat_template.jinja"
    assert taken(*PLAIN, *code, *weights, *more, chat) == ({*PLAIN, chat}, [])


def test_two_sets_of_weights_are_refused() -> None:
    """Do not choose one of them; and do not list the shards of each of many sets."""
    sets = [f"model-00001-of-{count:05}.safetensors" for count in range(90_000, 90_500)]
    assert taken(*PLAIN, *sets)[1][0].startswith(
        "single set of weights, but model-*-of-90000.safetensors and"
    )


@pytest.mark.parametrize("name", ["b::http:/evil/a.jsonl", "a\n.jsonl", "a\\b.jsonl"])
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    assert taken(name, "c.jsonl", kind="dataset") == (set(), [f"plain file name, but {name!r}"])


@pytest.mark.parametrize("name", ["exp [v2]/a*.jsonl", "{a}?.jsonl"])
@pytest.mark.parametrize("asked", [None, "*.jsonl"])
def test_names_with_brackets_are_data(name: str, asked: str | None) -> None:
    assert taken(name, kind="dataset", files=asked or name) == ({name}, [])


def test_only_files_with_rows_are_data() -> None:
    assert taken("a.jsonl", "a.py", "README.md", "b/c.parquet", kind="dataset") == (
        {"a.jsonl", "b/c.parquet"},
        [],
    )
    assert taken("a.py", kind="dataset", files="a*")[1][0].startswith(
        "file that matches 'a*' and ends in .jsonl,"
    )


@pytest.mark.parametrize(
    ("value", "is_vocabulary", "key"),
    [
        ({"auto_map": {}}, False, "auto_map"),
        ({"a": [{"b": {"auto_map": "x--y.Z"}}]}, True, "auto_map"),
        ({"auto_map": 7}, False, "auto_map"),
        ({"auto_map": 7}, True, None),
        ({"attn_implementation": "evil/kernel"}, False, "attn_implementation"),
        ({"_attn_implementation": {"text": "evil/kernel@main:f"}}, False, "_attn_implementation"),
        ({"attn_implementation": "sdpa", "a": None, "b": [1, "auto_map"]}, False, None),
    ],
)  # fmt: skip
def test_code_is_found_at_any_depth(value: Any, is_vocabulary: bool, key: str | None) -> None:
    assert code_key(value, is_vocabulary=is_vocabulary) == key


def test_a_tokenizer_without_a_limit_of_length_is_read(tmp_path: Path) -> None:
    """Read the integer that transformers writes for it, which needs more than 64 bits, but none above it."""
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"model_max_length": int(1e30)}))
    refuse_code(tmp_path, [path.name], "model m")
    path.write_text(json.dumps({"model_max_length": int(1e30) + 1}))
    with pytest.raises(
        MissingError, match=r"tokenizer_config\.json: cannot be read \(integer 1\d+ needs more"
    ):
        refuse_code(tmp_path, [path.name], "model m")


def test_the_largest_tokenizers_in_use_are_read(tmp_path: Path) -> None:
    vocabulary = {f"token {number:06}": number for number in range(262_144)}
    merges = [[f"{number:06}", "b"] for number in range(514_906)]
    content = {"model": {"vocab": vocabulary, "merges": merges}}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content, indent=2))
    assert 30_000_000 < path.stat().st_size < 40_000_000
    refuse_code(tmp_path, [path.name], "model m")


def test_transformers_is_never_allowed_to_run_code_of_a_repository() -> None:
    calls = 0
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.unparse(node) if isinstance(node, ast.Call) else ""
            if re.match(r"Auto\w+\.from_\w+\(", text):
                calls += 1
                assert "trust_remote_code=False" in text, f"{path}: {text}"
    assert calls >= 8


# Caches whose manifest agrees with its files, but not with the lock file.


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    """Return a user whose caches have everything, and whose hub cannot be reached."""
    from huggingface_hub import constants

    made = make_user(tmp_path / "user")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(made.home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("QLORA_REPEAT_LOCK", raising=False)
    return made


def problems(user: User) -> list[str]:
    return check(opened(user), lambda done, total: None).problems


def test_caches_that_agree_with_the_lock_are_accepted(user: User) -> None:
    assert [item.present for item in needed(opened(user))] == [True] * 4
    check_base(opened(user), "llama")
    check_base(opened(user), "neox")
    assert problems(user) == []


def forged(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and make the manifest agree."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    (folder / MANIFEST).unlink()
    write_json(folder / MANIFEST, folder_digests(folder))


def a_shard(user: User) -> Path:
    forged(user.base(), SHARDS[1], (user.base() / SHARDS[0]).read_bytes())
    return user.base() / SHARDS[1]


def the_configuration(user: User) -> Path:
    forged(user.base(), "config.json", (user.base() / "config.json").read_bytes() + b" ")
    return user.base() / "config.json"


def the_source(user: User) -> Path:
    forged(user.base(), "source.json", (user.base() / "source.json").read_bytes().replace(b"main", b"mine"))
    return user.base() / "source.json"


def more_files(user: User) -> Path:
    forged(user.base(), "adapter_config.json", b"{}")
    return user.base() / "adapter_config.json"


def fewer_files(user: User) -> Path:
    (user.base() / "tokenizer.json").unlink()
    forged(user.base(), "tokenizer_config.json", (user.base() / "tokenizer_config.json").read_bytes())
    return user.base() / "tokenizer.json"


def a_conversion(user: User) -> Path:
    shard = user.base("neox") / SHARDS[1]
    forged(shard.parent, shard.name, shard.read_bytes()[:-2] + b"\0\0")
    return shard


def the_index_of_conversions(user: User) -> Path:
    index = user.base("neox") / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = min(content["weight_map"])
    del content["weight_map"][first]
    forged(index.parent, index.name, json.dumps(content).encode())
    return index


def rows(user: User) -> Path:
    folder = next((user.cache / "data").glob("quotes-*"))
    forged(folder, "rows.jsonl", (folder / "rows.jsonl").read_bytes().replace(b"q", b"Q"))
    return folder / "rows.jsonl"


FORGERIES: list[Callable[[User], Path]] = [
    a_shard, the_configuration, the_source, more_files, fewer_files, a_conversion, the_index_of_conversions,
    rows,
]  # fmt: skip


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_forged_file_with_a_new_manifest_is_refused(forge: Callable[[User], Path], user: User) -> None:
    path = forge(user)
    workspace = opened(user)
    repository = PICKLED if "neox" in str(path) else QUOTES if path.name == "rows.jsonl" else MODEL
    text = (
        f"{path}: not made from the files that {user.lock} pins for {repository}; "
        f"delete the folder and run `{workspace.command('fetch')}`"
    )
    uses: list[Callable[[], object]] = [
        lambda: needed(workspace),
        lambda: fetch(workspace, print),
        lambda: read_rows(workspace, "quotes") if repository == QUOTES else None,
        lambda: check_base(workspace, path.parent.name.partition("-")[0]) if repository != QUOTES else None,
    ]
    for use in uses[:2] + uses[2:3] * (repository == QUOTES) + uses[3:] * (repository != QUOTES):
        with pytest.raises(MissingError) as caught:
            use()
        assert str(caught.value) == text
    assert problems(user) == [text]


@pytest.mark.parametrize(
    "command",
    [
        ["run"], ["trial", "quoter/adamw-8bit/1"], ["finetune", "quoter/adamw-8bit/1"], ["attribute"],
        ["submit", "--time", "1", "--memory", "1"], ["fetch"],
    ],
)  # fmt: skip
def test_every_command_that_uses_a_base_compares_it_with_the_lock(command: list[str], user: User) -> None:
    path = a_shard(user)
    name, *options = command
    takes_study = name in ("run", "attribute", "submit", "fetch")
    given = [name, user.study, *options] if takes_study else [name, *options, "--study", user.study]
    places = [] if name == "fetch" else ["--runs", user.folder / "runs"]
    error = failure(run(*given, *places, "--cache", user.cache))
    assert str(error).startswith(f"{path}: not made from the files that {user.lock} pins for {MODEL}; ")


@pytest.mark.parametrize("name", ["custom_generate", "adapter_config.json", "modeling.py"])
def test_an_added_file_is_refused(name: str, user: User, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (user.base() / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match=f"{name} was added; delete the folder and run"):
        check_base(opened(user), "llama")


def test_rows_of_a_package_are_compared_with_the_study(cache: Path, study_file: Path, tmp_path: Path) -> None:
    shutil.copytree(cache / "data", tmp_path / "cache" / "data")
    workspace = at(study_file, NO_RUNS, tmp_path / "cache")
    folder = data_folder(workspace, "quotes")
    forged(folder, "rows.jsonl", (folder / "rows.jsonl").read_bytes() * 2)
    with pytest.raises(MissingError, match="not the rows of study tiny; delete the folder and run"):
        read_rows(workspace, "quotes")


# What others put into the cache does not decide what is pinned.


def moved(user: User, **files: bytes) -> str:
    """Add a commit to the model's branch, with these files in place of those of its last one; return it."""
    folder = next(iter((user.home / "hub").glob("models--acme--*/snapshots/*")))
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return put_on_hub(user, MODEL, found | {name.replace("__", "."): body for name, body in files.items()})


def commit(user: User) -> str:
    found: str = user.locked()[MODEL]["commit"]
    return found


def without(user: User, repository: str) -> None:
    """Remove an entry of the lock file."""
    write_json(user.lock, {name: pin for name, pin in user.locked().items() if name != repository})


def fetch_quoter(workspace: Workspace, tell: Callable[[str], None] = print) -> None:
    """Fetch; then the layers are checked, which models that are not real lack."""
    with pytest.raises(UsageError, match=r"models\.quoter\.target_modules"):
        fetch(workspace, tell, ["quoter"])


def test_a_folder_in_the_cache_does_not_choose_the_pin(user: User) -> None:
    """Fetch with a cache that has the folders of an earlier commit, in the old and the new naming."""
    first = commit(user)
    shutil.copytree(user.base(), user.base().with_name(base_source(opened(user), "llama")))
    main = moved(user, generation_config__json=b"{}")
    without(user, MODEL)
    fetch_quoter(opened(user))
    assert commit(user) == main != first


def test_without_the_hub_nothing_is_pinned(user: User) -> None:
    shutil.rmtree(user.home)
    without(user, MODEL)
    before = user.lock.read_bytes()
    with pytest.raises(MissingError, match=f"{MODEL}: main is not in "):
        fetch(opened(user), print, ["quoter"])
    assert user.lock.read_bytes() == before


def test_a_file_of_another_model_is_not_linked_but_refused(user: User) -> None:
    """Refuse bytes in the hub's cache that are not those of the lock file."""
    shutil.rmtree(user.base())
    path = user.snapshot(MODEL) / SHARDS[0]
    path.write_bytes((user.snapshot(MODEL) / SHARDS[1]).read_bytes())
    with pytest.raises(MissingError, match=f"{path}: not the bytes of {MODEL} at "):
        fetch(opened(user), print, ["quoter"])


def test_folders_of_an_earlier_version_are_named_and_not_used(user: User) -> None:
    workspace = opened(user)
    base = user.base().with_name(base_source(workspace, "llama"))
    data = data_folder(workspace, "quotes").with_name(data_source(workspace, "quotes"))
    user.base().rename(base)
    data.mkdir()
    text = ": not used, because its name lacks the commit (earlier version); fetch again and delete it"
    assert check(workspace, lambda done, total: None).notes == [f"{base}{text}", f"{data}{text}"]
    assert base_digest(workspace, "llama") is None
    lines: list[str] = []
    fetch_quoter(workspace, lines.append)
    assert lines[:2] == [f"{base}{text}", f"{data}{text}"]
    assert lines[-1] == "base llama: fetched, verified"


def test_records_name_the_source_without_the_commit(user: User) -> None:
    workspace = opened(user)
    found = shared_inputs(workspace, "quoter")
    source = base_source(workspace, "llama")
    assert (found["base_source"], user.base().name) == (source, f"{source}-{commit(user)}")
    assert found["data_source"] == data_source(workspace, "quotes")
    assert None not in (found["base"], found["data"])


CODE = [
    ("config.json", b'{"auto_map": {"AutoConfig": "configuration.Evil"}}'),
    ("config.json", b'{"text_config": [{"auto_map": "evil/repository--modeling.Evil"}]}'),
    ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["tokenizer.Evil", null]}}'),
    ("generation_config.json", b'{"auto_map": 1}'),
    ("special_tokens_map.json", b'{"auto_map": {}}'),
    ("tokenizer.json", b'{"auto_map": {"AutoTokenizer": "tokenizer.Evil"}}'),
]


@pytest.mark.parametrize(("name", "content"), CODE)
def test_a_configuration_that_names_code_is_refused(name: str, content: bytes, user: User) -> None:
    moved(user, **{name.replace(".", "__"): content, "configuration__py": b"boom"})
    without(user, MODEL)
    with pytest.raises(MissingError) as caught:
        fetch(opened(user), print, ["quoter"])
    assert str(caught.value) == (
        f"{MODEL}: {name}: auto_map names Python code, which the kit never runs; "
        "the study file must name another revision of its model"
    )
    assert MODEL not in user.locked()
    assert len([*(user.cache / "bases").glob("llama-*")]) == 1


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"a": 1, "a": 2}', b"[" * 100_000, b"\xff"])
def test_a_configuration_that_is_none_is_refused(content: bytes, user: User) -> None:
    moved(user, config__json=content)
    without(user, MODEL)
    with pytest.raises(
        MissingError, match=r"config\.json: .*the study file must name another revision"
    ) as caught:
        fetch(opened(user), print, ["quoter"])
    assert "\n" not in str(caught.value)


def test_no_code_is_fetched(user: User) -> None:
    moved(user, tokenizer__py=b"boom", modeling_llama__py=b"boom", adapter_config__json=b"{}")
    without(user, MODEL)
    fetch_quoter(opened(user))
    names = {path.name for path in base_folder(opened(user), "llama").iterdir()}
    assert (
        names
        == {path.name for path in user.base().iterdir()}
        == {*user.locked()[MODEL]["files"], MANIFEST, "source.json"}
    )


@pytest.fixture
def theirs(user: User, tmp_path: Path) -> User:
    """Return an archive's folder of studies, whose lock file pins a commit that its author chose."""
    folder = tmp_path / "theirs" / "studies"
    folder.mkdir(parents=True)
    write_hub_study(folder)
    (folder.parent / ARCHIVE_MARK).write_text("{}")
    return User(folder, user.hub)


def test_what_a_stranger_asks_for_is_kept_apart(
    user: User, theirs: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, lock = sorted((user.cache / "bases").iterdir()), user.lock.read_bytes()
    theirs.lock.write_bytes(lock)
    without(theirs, MODEL)
    chosen = moved(user, generation_config__json=b'{"max_length": 1}')
    monkeypatch.setenv("QLORA_REPEAT_LOCK", str(user.lock))
    workspace = open_workspace(str(theirs.study), cache=user.cache)
    fetch_quoter(workspace)
    assert user.lock.read_bytes() == lock
    assert sorted((user.cache / "bases").iterdir()) == before
    assert [path.name[-40:] for path in (user.cache / "strangers" / "bases").iterdir()] == [chosen]
    assert commit(theirs) == chosen
    check_base(workspace, "llama")
    main = moved(user, generation_config__json=b"{}")
    without(user, MODEL)
    fetch_quoter(opened(user))
    assert commit(user) == main != chosen


def test_a_stranger_may_read_what_the_user_has_fetched(user: User, theirs: User) -> None:
    theirs.lock.write_bytes(user.lock.read_bytes())
    workspace = open_workspace(str(theirs.study), cache=user.cache)
    assert [item.present for item in needed(workspace)] == [True] * 4
    assert base_folder(workspace, "llama") == user.base()
    assert data_folder(workspace, "quotes").is_relative_to(user.cache / "data")
    entries = theirs.locked()
    entries[MODEL]["files"]["config.json"]["digest"] = "0" * 64
    write_json(theirs.lock, entries)
    assert base_folder(workspace, "llama").is_relative_to(user.cache / "strangers"), "the user's stays"
    with pytest.raises(MissingError, match=f"config.json: not the bytes of {MODEL}"):
        fetch(workspace, print, ["quoter"])


def test_what_one_stranger_left_does_not_hide_what_the_user_has_fetched(user: User, theirs: User) -> None:
    theirs.lock.write_bytes(user.lock.read_bytes())
    other = user.cache / "strangers" / "bases" / user.base().name
    shutil.copytree(user.base(), other)
    (other / "generation_config.json").unlink()
    write_json(other / MANIFEST, folder_digests(other))
    workspace = open_workspace(str(theirs.study), cache=user.cache)
    assert base_folder(workspace, "llama") == user.base()
    check_base(workspace, "llama")


# Lock files of strangers.


def with_code(entry: dict[str, Any]) -> None:
    entry["files"]["tokenizer.py"] = entry["files"]["config.json"]


def without_configuration(entry: dict[str, Any]) -> None:
    del entry["files"]["config.json"]


def of_data(entry: dict[str, Any]) -> None:
    entry["kind"] = "dataset"


def with_a_path(entry: dict[str, Any]) -> None:
    entry["converted"] = {"../../model.safetensors": "0" * 64}


def with_a_pattern(entry: dict[str, Any]) -> None:
    entry["files"]["*"] = entry["files"]["config.json"]


def with_an_empty_name(entry: dict[str, Any]) -> None:
    entry["files"][""] = entry["files"]["config.json"]


def with_nul(entry: dict[str, Any]) -> None:
    entry["files"]["a\0b"] = entry["files"]["config.json"]


def of_no_size(entry: dict[str, Any]) -> None:
    entry["files"]["config.json"]["size"] = 10**400


@pytest.mark.parametrize(
    "change",
    [
        with_code,
        without_configuration,
        of_data,
        with_a_path,
        with_a_pattern,
        with_an_empty_name,
        with_nul,
        of_no_size,
    ],
)
def test_a_lock_that_pins_something_else_than_a_model_is_refused(
    change: Callable[[dict[str, Any]], None], user: User
) -> None:
    lock = user.locked()
    change(lock[MODEL])
    user.lock.write_text(json.dumps(lock))
    workspace = opened(user)
    source = workspace.study.bases["llama"].hub
    assert source is not None
    uses: list[Callable[[], object]] = [
        lambda: pin_of(workspace, source, "model"),
        lambda: needed(workspace),
        lambda: check_base(workspace, "llama"),
    ]
    for use in uses:
        with pytest.raises(UsageError) as caught:
            use()
        assert str(caught.value).startswith(f"{user.lock}: ")
        assert str(caught.value).endswith(("; delete that entry to lock again", "; delete it to lock again"))
        assert "\n" not in str(caught.value)


def test_a_lock_of_an_earlier_version_lacks_the_rows(user: User) -> None:
    """Make the rows again from the hub's cache, rather than trust those in the cache."""
    entries = user.locked()
    entries[QUOTES]["converted"] = {}
    write_json(user.lock, entries)
    assert [item.name for item in needed(opened(user)) if not item.present] == ["quotes"]
    with pytest.raises(MissingError, match="data quotes are missing; run `qlora-repeat fetch "):
        read_rows(opened(user), "quotes")
