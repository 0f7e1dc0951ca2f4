"""Fetching: everything that a study needs, brought to the cache and verified, once."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qlora_repeat.base_model import base_digest, base_folder, check_base, fetch_base
from qlora_repeat.corpus import FORTUNES_PACKAGE
from qlora_repeat.data import data_digest, data_folder, prepare_data, read_rows, study_prompts
from qlora_repeat.errors import MissingError
from qlora_repeat.files import megabytes, require_space
from qlora_repeat.lock import exclusive
from qlora_repeat.packages import locate
from qlora_repeat.study import Study

Kind = Literal["base", "data"]


@dataclass(frozen=True)
class Item:
    """Something that a study needs in the cache."""

    kind: Kind
    name: str
    origin: str
    """Where it comes from, for people."""
    size: int
    """Bytes to read or write, roughly."""
    folder: Path
    present: bool


def needed(study: Study, cache: Path) -> list[Item]:
    """What a study needs, whether it is there, where it comes from and how large it is.

    Raises:
        MissingError: a package that carries something is not installed.
    """
    items = []
    for name, data in study.data.items():
        package, module = (
            (FORTUNES_PACKAGE, "fortune") if data.source == "fortunes" else ("reasoning-gym", "reasoning_gym")
        )
        present = data_digest(study, name, cache) is not None
        if not present and importlib.util.find_spec(module) is None:
            raise MissingError(
                f"data {name} comes from the package {package}, which is not installed; run `make setup`"
            )
        origin = f"{data.rows} rows from package {package}"
        items.append(Item("data", name, origin, 250 * data.rows, data_folder(study, name, cache), present))
    for name, base in study.bases.items():
        folder = base_folder(study, name, cache)
        present = base_digest(study, name, cache) is not None
        if present:
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            items.append(Item("base", name, "", size, folder, True))
        elif base.gguf is not None:
            # float16 takes about three times what 4 bits and their scales take.
            size = 3 * locate(base.gguf).stat().st_size
            items.append(Item("base", name, f"package {base.gguf.package}, converted", size, folder, False))
        else:
            assert base.tokenizer is not None and base.pretraining is not None
            locate(base.tokenizer)
            width, layers = base.pretraining.hidden_size, base.pretraining.layers
            size = 2 * (2 * 50432 * width + 12 * layers * width**2)
            origin = (
                f"pretrained here (minutes) for the tokenizer that package {base.tokenizer.package} carries"
            )
            items.append(Item("base", name, origin, size, folder, False))
    return items


def fetch(study: Study, cache: Path, tell: Callable[[str], None]) -> None:
    """Brings what is missing, and verifies what is there. Interrupted, the next call goes on with the rest.

    Raises:
        MissingError: something is not to be had or has unexpected bytes, or the disk is too small.
        UsageError: a prompt of the study matches no row of its data.
        BusyError: another process is fetching into this cache.
    """
    items = needed(study, cache)
    for item in items:
        if item.present:
            _check(study, item, cache)
            tell(f"{item.kind} {item.name}: there, verified ({megabytes(item.size)})")
    missing = [item for item in items if not item.present]
    for item in missing:
        tell(
            f"{item.kind} {item.name}: missing; {item.origin}; about {megabytes(item.size)} in {item.folder}"
        )
    if missing:
        require_space(cache, sum(item.size for item in missing), "QLORA_REPEAT_CACHE")
        with exclusive(cache / "fetch.lock", f"the cache {cache}"):
            for item in missing:
                _bring(study, item, cache)
                tell(f"{item.kind} {item.name}: fetched, verified")
    for model in study.models:
        study_prompts(study, model, cache)


def _bring(study: Study, item: Item, cache: Path) -> None:
    if _digest(study, item, cache) is None:
        (prepare_data if item.kind == "data" else fetch_base)(study, item.name, cache)
    _check(study, item, cache)


def _digest(study: Study, item: Item, cache: Path) -> str | None:
    return (data_digest if item.kind == "data" else base_digest)(study, item.name, cache)


def _check(study: Study, item: Item, cache: Path) -> None:
    if item.kind == "base":
        check_base(study, item.name, cache)
    else:
        for part in ("train", "test"):
            read_rows(study, item.name, part, cache)
