"""A user whose caches have what the study of `hub_study` needs, written by hand in a moment.

The models are not real, so no trial can run. The tests change files, lock and study.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from support.hub_study import MODEL, NOBODY, PICKLED, QUESTIONS, QUOTES, User, write_hub_study
from support.places import NO_RUNS, at

from qlora_repeat.assets.base_models import SOURCE, base_source
from qlora_repeat.assets.datasets import ROWS, data_source
from qlora_repeat.assets.pins import Pin, PinnedFile, made_folder
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import write_json, write_text
from qlora_repeat.system.hashing import MANIFEST, file_digest, folder_digests, text_digest
from qlora_repeat.system.safetensors_file import INDEX, index_text

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def opened(user: User) -> Workspace:
    return at(user.study, NO_RUNS, user.cache)


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def model_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a model in two shards."""
    folder.mkdir()
    for number, name in enumerate(SHARDS):
        save_file({f"layer.{number}": np.full(4, number, np.float16)}, folder / name, {"format": "pt"})
    write_text(folder / INDEX, index_text(folder, SHARDS))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        write_json(folder / name, {"model_type": "llama"})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pin_of_files(kind: str, files: dict[str, bytes], **converted: str) -> Pin:
    pinned = {name: PinnedFile(len(body), hashlib.sha256(body).hexdigest()) for name, body in files.items()}
    return Pin("model" if kind == "model" else "dataset", "main", commit_of(files), pinned, converted)


def put_on_hub(user: User, repository: str, files: dict[str, bytes]) -> str:
    """Add a commit to branch main of a model in the hub's cache, which counts as the hub; return it."""
    commit = commit_of(files)
    folder = user.home / "hub" / f"models--{repository.replace('/', '--')}"
    for name, body in files.items():
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    write_text(folder / "refs" / "main", commit)
    return commit


def make_user(folder: Path) -> User:
    """Return a user with study, lock file, both caches, and the commit of each model on branch main."""
    folder.mkdir(exist_ok=True)
    write_hub_study(folder)
    user = User(folder, NOBODY)
    workspace = opened(user)
    files = model_files(folder / "model")
    put_on_hub(user, MODEL, files)
    small = {name: body for name, body in files.items() if name != INDEX and name not in SHARDS}
    pickles = {f"pytorch_model-{number:05}-of-00002.bin": b"a pickle" for number in (1, 2)}
    pickled = small | pickles | {"pytorch_model.bin.index.json": b"{}"}
    put_on_hub(user, PICKLED, pickled)
    made = {name: hashlib.sha256(files[name]).hexdigest() for name in SHARDS}
    rows = {name: json.dumps({"quote": name}) + "\n" for name in ("quotes", "questions")}
    pins = {MODEL: pin_of_files("model", files), PICKLED: pin_of_files("model", pickled, **made)}
    for name, repository, file in (("quotes", QUOTES, "a.jsonl"), ("questions", QUESTIONS, "data/a.parquet")):
        source = data_source(workspace, name)
        pins[repository] = pin_of_files("dataset", {file: b"rows"}, **{source: text_digest(rows[name])})
        place = made_folder(workspace, "data", source, pins[repository])
        write_text(place / ROWS, rows[name])
        write_json(place / MANIFEST, {ROWS: text_digest(rows[name])})
    write_json(user.lock, {name: asdict(pin) for name, pin in pins.items()})
    for name, repository in (("llama", MODEL), ("neox", PICKLED)):
        base = made_folder(workspace, "bases", base_source(workspace, name), pins[repository])
        shutil.copytree(folder / "model", base)
        write_json(base / SOURCE, asdict(pins[repository]))
        write_json(base / MANIFEST, folder_digests(base))
    assert file_digest(user.base() / INDEX) == file_digest(user.base("neox") / INDEX)
    return user
