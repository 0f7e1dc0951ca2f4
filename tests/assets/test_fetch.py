"""Fetching from a hub for the first time and later: locks and interruptions."""

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hub_server import Hub
from support.hub_study import MODEL, PICKLED, QUESTIONS, QUOTER, QUOTES, SHARD, User, write_hub_study

from qlora_repeat.system.hashing import file_digest

OFFLINE = {"HF_HUB_OFFLINE": "1"}


def test_the_first_fetch_locks_commit_sizes_and_sha256_of_every_file(fetched: User) -> None:
    lock = fetched.locked()
    assert set(lock) == {MODEL, QUOTES, PICKLED, QUESTIONS}
    for name, kind in ((MODEL, "models"), (PICKLED, "models"), (QUOTES, "datasets"), (QUESTIONS, "datasets")):
        snapshot = fetched.snapshot(name, kind)
        assert lock[name]["commit"] == snapshot.name
        assert lock[name]["files"] == {
            path.relative_to(snapshot).as_posix(): {"size": path.stat().st_size, "digest": file_digest(path)}
            for path in snapshot.rglob("*")
            if path.is_file()
        }
    assert {"config.json", "tokenizer.json", SHARD} <= set(lock[MODEL]["files"])


def test_a_hub_cache_filled_by_hand_is_locked_too(fetched: User, hub_home: Path, user: User) -> None:
    user.fetch(HF_HOME=str(hub_home), **OFFLINE)
    assert user.locked() == fetched.locked()


def test_a_second_fetch_needs_no_hub(copied: User) -> None:
    before = copied.lock.read_bytes()
    assert [line.partition(" (")[0] for line in copied.fetch()] == [
        "data quotes: in the cache, verified",
        "data questions: in the cache, verified",
        "base llama: in the cache, verified",
        "base neox: in the cache, verified",
        "model quoter: 32 training and 6 test rows of 8 to 8 tokens",
        "model solver: 32 training and 6 test rows of 36 to 52 tokens",
    ]
    assert copied.lock.read_bytes() == before


def test_the_locked_commit_is_fetched_after_the_branch_has_moved(
    reader: User, hub: Hub, fetched: User
) -> None:
    model = hub.repositories[f"models/{MODEL}"]
    first = model.branches["main"]
    second = model.commit({"generation_config.json": b"{}"})
    shutil.copy(fetched.lock, reader.lock)
    reader.fetch(*QUOTER)
    assert reader.commit() == first != second
    assert reader.lock.read_bytes() == fetched.lock.read_bytes()


def test_without_a_lock_the_branch_is_followed(reader: User, hub: Hub) -> None:
    second = hub.repositories[f"models/{MODEL}"].commit({"generation_config.json": b"{}"})
    reader.fetch(*QUOTER)
    assert reader.commit() == reader.locked()[MODEL]["commit"] == second
    assert (reader.base() / "generation_config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (SHARD, pickle.dumps({"weight": 1}), "not a safetensors file (it is a pickle, which could run code)"),
        (
            SHARD,
            b"\xff" * 8,
            "not a safetensors file (",
        ),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"lm_head.weight": "../../../../secret.safetensors"}}',
            "it names '../../../../secret.safetensors', which is no safetensors file",
        ),
    ],
    ids=["pickle", "header", "index"],
)
def test_invalid_weights_are_refused(file: str, content: bytes, reason: str, reader: User, hub: Hub) -> None:
    hub.repositories[f"models/{MODEL}"].commit({file: content})
    error = reader.refused(*QUOTER)
    assert error.startswith(f"{MODEL}: {file}: {reason}")
    assert error.endswith("; the study file must name another revision of it")
    assert not list((reader.cache / "bases").iterdir())


def test_a_lost_lock_is_written_again_from_the_hub(copied: User, fetched: User, hub: Hub) -> None:
    copied.lock.unlink()
    assert ": main is not in " in copied.refused(), "the kit's own cache must not choose the pin"
    assert not copied.lock.exists()
    copied.fetch(HF_ENDPOINT=hub.url)
    assert copied.locked() == fetched.locked()


def test_each_commit_has_its_own_folder(copied: User, hub: Hub) -> None:
    lock, first = copied.locked(), copied.base()
    lock[MODEL]["commit"] = other = hub.repositories[f"models/{MODEL}"].commit({"README.md": b"new"})
    copied.lock.write_text(json.dumps(lock))
    copied.fetch(*QUOTER, HF_ENDPOINT=hub.url)
    folders = (copied.cache / "bases").glob("llama-*")
    assert {path.name[-40:] for path in folders} == {first.name[-40:], other}


def test_only_known_files_of_a_model_are_fetched(reader: User, hub: Hub) -> None:
    code = {"tokenizer.py": b"boom", "tokenizer_custom.py": b"boom", "modeling_llama.py": b"boom"}
    more = {
        "adapter_config.json": b"{}",
        "model-extra.safetensors": b"boom",
        "custom_generate/generate.py": b"",
    }
    hub.repositories[f"models/{MODEL}"].commit(code | more)
    reader.fetch(*QUOTER)
    assert not {*code, *more} & {*reader.locked()[MODEL]["files"]}
    found = [path for path in (reader.home / "hub").rglob("*") if path.name in {*code, *more}]
    assert (found, [name for name in code | more if hub.asked_for(name)]) == ([], [])


def test_a_configuration_with_code_is_refused_before_weights_are_fetched(reader: User, hub: Hub) -> None:
    code = b'{"auto_map": {"AutoConfig": "configuration.Evil"}}'
    hub.repositories[f"models/{MODEL}"].commit({"config.json": code, "configuration.py": b"boom"})
    assert reader.refused(*QUOTER).startswith(f"{MODEL}: config.json: auto_map names Python code, which the")
    assert hub.asked_for(SHARD) == hub.asked_for("configuration.py") == 0
    assert not (reader.cache / "bases").exists()


def test_a_lock_of_an_earlier_version_is_completed(copied: User, fetched: User) -> None:
    """Add the digests of rows, which are made again from the hub's cache."""
    lock = copied.locked()
    lock[QUOTES]["converted"] = {}
    copied.lock.write_text(json.dumps(lock))
    assert "data quotes: fetched, verified" in copied.fetch(*QUOTER)
    assert copied.locked() == fetched.locked()


# Locks that do not match, cannot be read, or cannot be written.


def test_a_lock_at_another_revision_is_refused_before_the_hub_is_asked(
    user: User, hub: Hub, fetched: User
) -> None:
    shutil.copy(fetched.lock, user.lock)
    write_hub_study(user.folder, (f'"{MODEL}", revision = "main"', f'"{MODEL}", revision = "v2"'))
    assert user.refused(*QUOTER, code=2) == (
        f"{user.lock}: {MODEL} is locked at revision main, the study asks for v2; "
        "delete that entry if the study is right"
    )
    assert hub.requests == []


def test_an_unreadable_lock_is_refused(user: User, hub: Hub) -> None:
    user.lock.write_text("{")
    error = user.refused(code=2)
    assert error.startswith(f"{user.lock}: not a readable lock file (")
    assert error.endswith("; delete it to lock again")
    assert hub.requests == []


def test_an_unwritable_lock_is_refused_before_a_download(user: User, hub: Hub) -> None:
    path = user.study / "small.lock"  # below a file, where not even root can write
    error = user.refused(*QUOTER, QLORA_REPEAT_LOCK=str(path))
    assert error == f"{path}: cannot be written (its folder is a file); set QLORA_REPEAT_LOCK to another path"
    assert hub.requests == []


def test_a_complete_lock_need_not_be_writable(copied: User, hub: Hub) -> None:
    shutil.rmtree(copied.base())
    folder = copied.folder / "read-only"
    folder.mkdir()
    copied.lock.rename(folder / "small.lock")
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write into read-only folders")
    copied.fetch(*QUOTER, HF_ENDPOINT=hub.url, QLORA_REPEAT_LOCK=str(folder / "small.lock"))


# Interruptions, full disks, and other processes.


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def others(hub: Hub) -> list[str]:
    """Return the model's files without the held shard."""
    repository = hub.repositories[f"models/{MODEL}"]
    return [name for name in repository.commits[repository.branches["main"]] if name != SHARD]


def test_a_killed_fetch_is_resumed(reader: User, hub: Hub) -> None:
    hub.hold(SHARD)
    process = reader.start(*QUOTER)
    wait_until(lambda: len(list(reader.home.glob("hub/models--*/snapshots/*/*"))) == len(others(hub)))
    process.kill()
    process.communicate()
    hub.release(SHARD)
    reader.fetch(*QUOTER)
    assert {name: hub.asked_for(name) for name in others(hub)} == dict.fromkeys(others(hub), 1)
    assert hub.asked_for(SHARD) == 2


def test_partial_files_of_a_killed_fetch_are_removed(copied: User) -> None:
    left = copied.base().with_name(f".{copied.base().name}.x1y2z3")
    copied.base().rename(left)
    other = copied.cache / "bases" / ".mine"
    other.mkdir()
    copied.fetch(*QUOTER)
    assert copied.base().is_dir()
    assert not left.exists()
    assert other.is_dir()


def test_a_broken_connection_is_resumed(reader: User, hub: Hub, fetched: User) -> None:
    hub.broken.append(SHARD)
    reader.fetch(*QUOTER)
    assert hub.asked_for(SHARD) == 2
    assert reader.locked()[MODEL] == fetched.locked()[MODEL]


def test_the_rest_of_a_half_filled_cache_is_fetched_from_a_hub_that_lists_no_files(
    copied: User, hub: Hub, fetched: User
) -> None:
    """Refuse the list; huggingface_hub then returns an incomplete snapshot without an error."""
    hub.lists_files = False
    shutil.rmtree(copied.base())
    shutil.rmtree(copied.snapshot(MODEL).parents[1] / "trees")
    (copied.snapshot(MODEL) / SHARD).resolve().unlink()
    copied.fetch(*QUOTER, HF_ENDPOINT=hub.url)
    assert hub.asked_for(SHARD) == 1
    assert copied.locked() == fetched.locked()


def test_a_second_simultaneous_fetch_is_refused(reader: User, hub: Hub) -> None:
    hub.hold(SHARD)
    first = reader.start(*QUOTER)
    wait_until(lambda: hub.asked_for(SHARD) == 1)
    error = reader.refused(*QUOTER, code=5)
    assert error.startswith(f"the cache {reader.cache}: process {first.pid} on ")
    hub.release(SHARD)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    assert reader.fetch(*QUOTER)[-2].startswith("base llama: in the cache, verified")


@pytest.mark.parametrize(("file", "variable"), [(SHARD, "HF_HOME"), ("quotes.jsonl", "QLORA_REPEAT_CACHE")])
def test_a_too_small_disk_is_refused_before_a_download(
    file: str, variable: str, copied: User, hub: Hub
) -> None:
    lock = copied.locked()
    lock[MODEL if file == SHARD else QUOTES]["files"][file]["size"] = 10**18
    copied.lock.write_text(json.dumps(lock))
    shutil.rmtree(copied.cache)
    (copied.snapshot(MODEL) / SHARD).unlink()
    error = copied.refused(*QUOTER, HF_ENDPOINT=hub.url)
    folder = copied.home / "hub" if file == SHARD else copied.cache
    assert error.startswith(f"{folder}: 1,000,000,000,")
    assert error.endswith(f"; free some space, or set {variable} to a folder on a larger disk")
    assert hub.requests == []


# A part of a study.


def test_only_one_models_base_and_data_are_fetched(user: User) -> None:
    lines = user.fetch(*QUOTER)
    assert [line.partition(" (")[0].partition(";")[0] for line in lines] == [
        "data quotes: missing",
        "base llama: missing",
        "data quotes: fetched, verified",
        "base llama: fetched, verified",
        "model quoter: 32 training and 6 test rows of 8 to 8 tokens",
    ]
    assert set(user.locked()) == {MODEL, QUOTES}
    names = sorted(path.name for path in (user.home / "hub").glob("*--*"))
    assert names == ["datasets--acme--quotes", "models--acme--small-llama"]


def test_an_unknown_model_is_refused(user: User, hub: Hub) -> None:
    error = user.refused("--only", "quoter", "--only", "quotes", code=2)
    assert error == "model 'quotes': study small has quoter, solver"
    assert hub.requests == []


def test_data_that_do_not_fit_the_study_are_refused_and_not_locked(user: User, hub: Hub) -> None:
    write_hub_study(user.folder, ('quote = "quote"', 'quote = "text"'))
    assert user.refused(*QUOTER, code=2) == (
        f"{QUOTES}, quotes.jsonl: no column 'text'; it has quote, author, tags. Correct columns or template"
    )
    assert not user.lock.exists()
    write_hub_study(user.folder)
    user.fetch(*QUOTER)


def test_data_of_a_folder_with_brackets_are_fetched(user: User, hub: Hub) -> None:
    repository = hub.repositories[f"datasets/{QUOTES}"]
    rows = repository.commits[repository.branches["main"]]["quotes.jsonl"]
    repository.commit({"exp [v2]/rows*.jsonl": rows, "exp v/rows.jsonl": b"other"})
    write_hub_study(user.folder, ('files = "*.jsonl"', 'files = "exp [v2]/rows*.jsonl"'))
    user.fetch(*QUOTER)
    assert set(json.loads(user.lock.read_text())[QUOTES]["files"]) == {"exp [v2]/rows*.jsonl"}
