"""A refusal of a hub, or a gap in its cache, gives one line with the repository and advice."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from support.hub_server import Hub
from support.hub_study import MODEL, NOBODY, QUOTER, QUOTES, SHARD, User, write_hub_study
from support.places import NO_RUNS, at

from qlora_repeat.assets.base_models import check_base
from qlora_repeat.errors import MissingError

OFFLINE = {"HF_HUB_OFFLINE": "1"}
TOKEN = {"HF_TOKEN": "hf_valid"}


def gated(hub: Hub) -> None:
    hub.gated[f"models/{MODEL}"] = "files"


def gated_altogether(hub: Hub) -> None:
    hub.gated[f"models/{MODEL}"] = "everything"


def gated_data(hub: Hub) -> None:
    hub.gated[f"datasets/{QUOTES}"] = "files"


def without_access(hub: Hub) -> None:
    gated(hub)
    hub.tokens["hf_valid"] = set()


def overloaded(hub: Hub) -> None:
    hub.status = 503


def forbidding(hub: Hub) -> None:
    hub.status = 403


def portal(hub: Hub) -> None:
    hub.portal = b"<html>Please accept our terms</html>"


def without_repository(hub: Hub) -> None:
    del hub.repositories[f"models/{MODEL}"]


def without_branch(hub: Hub) -> None:
    del hub.repositories[f"models/{MODEL}"].branches["main"]


def without_weights(hub: Hub) -> None:
    model = hub.repositories[f"models/{MODEL}"]
    files = model.commits[model.branches["main"]]
    model.commit({name: b"" for name in files if name.endswith(".safetensors")})


def without_a_shard(hub: Hub) -> None:
    hub.repositories[f"models/{MODEL}"].commit({SHARD: b""})


def without_tokenizer(hub: Hub) -> None:
    hub.repositories[f"models/{MODEL}"].commit({"tokenizer.json": b""})


def without_rows(hub: Hub) -> None:
    hub.repositories[f"datasets/{QUOTES}"].commit({"quotes.jsonl": b"", "README.md": b"none"})


def well(hub: Hub) -> None:
    pass


GATED = "MODEL: gated: ask for access at HUB/MODEL, set HF_TOKEN to a token of that account, and run AGAIN"
NO_CONNECTION = (
    "DATA: main is not in CACHE, and http://127.0.0.1:9 cannot be reached "
    "(ConnectError: [Errno 111] Connection refused); with a connection and without HF_HUB_OFFLINE, "
    "run AGAIN; or copy a filled cache here and set HF_HOME to it"
)
REFUSALS: dict[str, tuple[Callable[[Hub], None], dict[str, str], str]] = {
    "gated files": (gated, {}, GATED),
    "gated altogether": (gated_altogether, {}, GATED),
    "gated data": (gated_data, {}, "DATA: gated: ask for access at HUB/datasets/DATA, set HF_TOKEN to a"),
    "no access": (
        without_access, TOKEN,
        "MODEL: the account of HF_TOKEN has no access: ask for it at HUB/MODEL, and run AGAIN",
    ),
    "wrong token": (
        gated, {"HF_TOKEN": "hf_wrong"},
        "DATA: the hub does not accept the token: set HF_TOKEN to a valid one, and run AGAIN",
    ),
    "forbidden": (
        forbidding, {},
        "DATA: the hub answered 403: set HF_TOKEN to a token that may read it, and run AGAIN",
    ),
    "overloaded": (overloaded, {}, "DATA: the hub answered 503; later, run AGAIN"),
    "no repository": (
        without_repository, TOKEN,
        "MODEL: the repository does not exist, or is private: see HUB/MODEL; a private one needs HF_TOKEN",
    ),
    "no repository, no token": (
        without_repository, {},
        "MODEL: the repository does not exist, or is private: see HUB/MODEL; a private one needs HF_TOKEN",
    ),
    "no revision": (without_branch, {}, "MODEL: no revision main; correct the study file"),
    "no weights": (
        without_weights, {},
        "MODEL: revision main has no weights (model*.safetensors, pytorch_model*.bin); correct the",
    ),
    "no shard": (without_a_shard, {}, f"MODEL: revision main has no {SHARD}; correct the study file"),
    "no tokenizer": (without_tokenizer, {}, "MODEL: revision main has no tokenizer (tokenizer.json, "),
    "no rows": (without_rows, {}, "DATA: revision main has no file that matches '*.jsonl'; correct"),
    "unreachable": (well, {"HF_ENDPOINT": NOBODY}, NO_CONNECTION),
    "offline": (well, OFFLINE, "DATA: main is not in CACHE, and HF_HUB_OFFLINE is set; with a"),
    "a portal": (portal, {}, "DATA: main is not in CACHE, and HUB does not answer like a hub (JSON"),
    "no address": (
        well, {"HF_ENDPOINT": "hub.example"},
        "DATA: main is not in CACHE, and hub.example cannot be reached (",
    ),
    "no folder": (
        well, {"HF_HOME": "/dev/null/home"},
        "DATA: /dev/null/home/token: Not a directory; set HF_HOME to a writable folder with",
    ),
}  # fmt: skip


def filled_in(words: str, user: User, hub: Hub) -> str:
    """Return an expected message with the values of a user."""
    said = {"MODEL": MODEL, "DATA": QUOTES, "HUB/": f"{hub.url}/", "HUB ": f"{hub.url} "}
    for name, value in (said | {"CACHE": str(user.home / "hub"), "AGAIN": user.again()}).items():
        words = words.replace(name, value)
    return words


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_reported_in_one_line_with_advice(name: str, user: User, hub: Hub) -> None:
    prepare, environment, words = REFUSALS[name]
    hub.tokens["hf_valid"] = {f"models/{MODEL}"}
    prepare(hub)
    error = user.refused(*QUOTER, **environment)
    assert error.startswith(filled_in(words, user, hub))
    assert not list(user.cache.glob("*/*")), "the error comes before anything is fetched"
    assert not user.lock.exists()


@pytest.mark.parametrize(
    "name", ["gated files", "no access", "overloaded", "unreachable", "offline", "no repository"]
)
def test_a_refusal_of_a_locked_and_half_fetched_repository_is_reported_too(
    name: str, copied: User, hub: Hub
) -> None:
    prepare, environment, words = REFUSALS[name]
    prepare(hub)
    hub.tokens.setdefault("hf_valid", set())
    shutil.rmtree(copied.base())
    (copied.snapshot(MODEL) / SHARD).resolve().unlink()
    shutil.rmtree(copied.snapshot(MODEL).parents[1] / "trees")
    error = copied.refused(*QUOTER, **{"HF_ENDPOINT": hub.url, **environment})
    here = words.replace("DATA", "MODEL").replace("main is not in CACHE", f"CACHE lacks {SHARD}")
    assert error.startswith(filled_in(here, copied, hub))


def test_a_refusal_during_a_download_is_reported_and_the_next_fetch_resumes(reader: User, hub: Hub) -> None:
    hub.forbidden.append(SHARD)
    assert reader.refused(*QUOTER) == (
        f"{MODEL}: the hub answered 403: set HF_TOKEN to a token that may read it, and run {reader.again()}"
    )
    hub.forbidden.clear()
    reader.fetch(*QUOTER)
    assert hub.asked_for("config.json") == 1


def test_a_token_with_access_fetches_a_gated_repository(reader: User, hub: Hub) -> None:
    gated_altogether(hub)
    hub.tokens["hf_valid"] = {f"models/{MODEL}"}
    assert "base llama: fetched, verified" in reader.fetch(*QUOTER, **TOKEN)


def test_a_deleted_commit_is_reported(user: User, hub: Hub, fetched: User) -> None:
    shutil.copy(fetched.lock, user.lock)
    repository = hub.repositories[f"models/{MODEL}"]
    gone = repository.branches["main"]
    repository.commit({"README.md": b"history rewritten"})
    del repository.commits[gone]
    error = user.refused(*QUOTER)
    assert error == (
        f"{MODEL}: commit {gone} is locked, but no longer exists: see {hub.url}/{MODEL}; "
        "to lock again, delete its entry in the lock file"
    )


def test_an_invalid_repository_name_is_refused(user: User) -> None:
    write_hub_study(user.folder, (MODEL, "acme/small--llama"))
    assert user.refused(*QUOTER, code=2) == (
        "acme/small--llama: no repository can have this name; correct the study file"
    )


# Caches with unexpected or missing files.


@pytest.mark.parametrize(
    ("name", "known"), [("config.json", "from the hub"), (SHARD, "from the hub"), (SHARD, "locked")]
)
def test_unexpected_bytes_are_refused_and_the_advice_works(
    name: str, known: str, reader: User, hub: Hub, fetched: User
) -> None:
    if known == "locked":
        shutil.copy(fetched.lock, reader.lock)
    hub.changed[name] = lambda body: body[:-2] + body[:1] * 2
    error = reader.refused(*QUOTER)
    path = reader.snapshot(MODEL) / name
    assert error.startswith(f"{path}: not the bytes of {MODEL} at ")
    assert error.endswith(f"; delete it and {path.resolve()}, and run {reader.again()}")
    assert not (reader.cache / "bases").exists()
    hub.changed.clear()
    path.resolve().unlink()
    path.unlink()
    reader.fetch(*QUOTER)
    assert reader.locked()[MODEL] == fetched.locked()[MODEL]


def test_a_commit_with_other_files_than_are_locked_is_refused(reader: User, hub: Hub, fetched: User) -> None:
    shutil.copy(fetched.lock, reader.lock)
    model = hub.repositories[f"models/{MODEL}"]
    files = model.commits[model.branches["main"]]
    files["config.json"] += b" "
    assert f"config.json: not the bytes of {MODEL} at " in reader.refused(*QUOTER)
    del files["tokenizer.json"]
    shutil.rmtree(reader.home)
    error = reader.refused(*QUOTER)
    assert error.startswith(f"{MODEL}: ")
    assert "tokenizer.json is locked, but no longer exists" in error
    assert "delete its entry in the lock file" in error


def without(name: str) -> Callable[[User], None]:
    return lambda user: (user.snapshot(MODEL) / name).unlink()


def with_a_dangling(name: str) -> Callable[[User], None]:
    return lambda user: (user.snapshot(MODEL) / name).resolve().unlink()


HALVES = {
    "a shard, with a lock": (without(SHARD), "the lock", SHARD),
    "a shard": (without(SHARD), "file names", SHARD),
    "what a shard's link leads to": (with_a_dangling(SHARD), "file names", SHARD),
    "the configuration": (without("config.json"), "file names", "config.json"),
    "the index": (without("model.safetensors.index.json"), "file names", "model.safetensors.index.json"),
    "the tokenizer": (without("tokenizer.json"), "file names", "tokenizer (tokenizer.json, "),
    "a file that few have": (
        without("generation_config.json"),
        "the list of files",
        "generation_config.json",
    ),
}


@pytest.mark.parametrize("half", HALVES)
def test_the_missing_files_of_a_half_filled_cache_are_named(half: str, copied: User) -> None:
    damage, knowing, lacking = HALVES[half]
    shutil.rmtree(copied.base())
    damage(copied)
    before = copied.locked()
    if knowing != "the lock":
        del before[MODEL]
        copied.lock.write_text(json.dumps(before))
        folder = copied.snapshot(MODEL).parents[1]
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(copied.snapshot(MODEL).name)  # as a download does
        if knowing == "file names":
            shutil.rmtree(folder / "trees")
    error = copied.refused(*QUOTER, **OFFLINE)
    assert error.startswith(f"{MODEL}: {copied.home / 'hub'} lacks {lacking}")
    assert f"; with a connection and without HF_HUB_OFFLINE, run {copied.again()}; or copy a filled" in error
    assert copied.locked() == before


def test_a_deleted_hub_cache_is_reported_and_fetched_again(copied: User, hub: Hub) -> None:
    before = copied.lock.read_bytes()
    shutil.rmtree(copied.home)
    error = copied.refused(*QUOTER, **OFFLINE)
    assert error.startswith(f"{MODEL}: {copied.home / 'hub'} lacks config.json, ")
    assert f"without HF_HUB_OFFLINE, run {copied.again()}" in error
    told_lines = copied.fetch(*QUOTER, HF_ENDPOINT=hub.url)
    assert told_lines[0].startswith("data quotes: in the cache, verified")
    assert "base llama: fetched, verified" in told_lines
    assert copied.lock.read_bytes() == before


def test_a_moved_hub_cache_is_found_by_hf_home(copied: User) -> None:
    moved = copied.home.rename(copied.folder / "elsewhere")
    workspace = at(copied.study, NO_RUNS, copied.cache)
    with pytest.raises(MissingError, match="links to a missing file in the hub's cache; set HF_HOME if"):
        check_base(workspace, "llama")
    copied.fetch(*QUOTER, HF_HOME=str(moved), **OFFLINE)
    check_base(workspace, "llama")


@pytest.mark.skipif(find_spec("socksio") is not None, reason="SOCKS proxies work here")
@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY"])
def test_a_socks_proxy_needs_a_package_which_the_error_names(name: str, user: User) -> None:
    error = user.refused(*QUOTER, **{name: "socks5h://alice:secret@127.0.0.1:9"})
    assert f": {name}: a SOCKS proxy needs the package socksio; run `" in error
    assert error.endswith(f" -m pip install socksio`, or unset it, and run {user.again()}")
    assert "secret" not in error


@pytest.mark.parametrize("value", ["socks://127.0.0.1:9", "ftp://127.0.0.1:9", "http://127.0.0.1:x"])
def test_a_proxy_that_is_none_is_named(value: str, user: User) -> None:
    error = user.refused(*QUOTER, ALL_PROXY=value)
    assert ": ALL_PROXY: " in error and f"; correct it, and run {user.again()}" in error


def test_a_proxy_that_does_not_answer_is_named(user: User) -> None:
    error = user.refused(*QUOTER, HTTP_PROXY="http://127.0.0.1:9")
    assert f"{user.hub} cannot be reached through HTTP_PROXY (ConnectError: " in error


@pytest.mark.skipif(find_spec("socksio") is not None, reason="SOCKS proxies work here")
def test_behind_a_socks_proxy_a_filled_cache_suffices(copied: User) -> None:
    """As a download of the branch by the hub's own tool leaves it."""
    copied.lock.unlink()
    shutil.rmtree(copied.cache)
    for snapshot in (copied.home / "hub").glob("*/snapshots/*"):
        reference = snapshot.parent.parent / "refs/main"
        reference.parent.mkdir(exist_ok=True)
        reference.write_text(snapshot.name)
    copied.fetch(*QUOTER, ALL_PROXY="socks5://127.0.0.1:9")
