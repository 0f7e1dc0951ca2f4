"""Repositories on a model hub: what they hold, and their files in the hub's own cache, verified.

Works through huggingface_hub: its cache (``HF_HOME``), its token (``HF_TOKEN``), its offline mode
(``HF_HUB_OFFLINE``) and its endpoint (``HF_ENDPOINT``) are the user's own.
"""

import fnmatch
import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from qlora_repeat.digest import file_digest
from qlora_repeat.errors import KitError, MissingError
from qlora_repeat.pins import Kind, Pin, PinnedFile
from qlora_repeat.sources import Hub

_File = TypeVar("_File")

_CONFIGURATION = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
_SAFE = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def hub_cache() -> Path:
    """Where the hub's files are kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def resolve(hub: Hub, kind: Kind, again: str) -> Pin:
    """What a repository holds at the study's revision of what the study needs.

    The hub is asked, or its cache where it cannot be reached. `again` is the command for errors to name.

    Raises:
        MissingError: neither has it, the hub refuses, or it holds nothing that the study could use.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info: Any = HfApi().repo_info(
            hub.repository, revision=hub.revision, repo_type=kind, files_metadata=True
        )
    except HfHubHTTPError as error:
        raise _refusal(error, hub, again) from None
    except (HTTPError, OSError) as error:
        return _resolve_offline(hub, kind, error, again)
    files = {
        item.rfilename: PinnedFile(item.size or 0, item.lfs.sha256 if item.lfs else item.blob_id or "")
        for item in info.siblings or []
    }
    return Pin(kind, hub.revision, str(info.sha), _needed(hub, kind, files))


def _resolve_offline(hub: Hub, kind: Kind, error: Exception, again: str) -> Pin:
    folder = _repository_folder(hub, kind)
    reference = folder / "refs" / hub.revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else hub.revision
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        raise _unreachable(hub, error, again)
    paths = sorted(path for path in snapshot.rglob("*") if not path.is_dir())
    files = {path.relative_to(snapshot).as_posix(): path for path in paths}
    if kind == "model":
        _require_complete(hub, files, again)
    return Pin(
        kind,
        hub.revision,
        commit,
        {
            name: PinnedFile(path.stat().st_size, file_digest(path))
            for name, path in _needed(hub, kind, files).items()
        },
    )


def _needed(hub: Hub, kind: Kind, files: dict[str, _File]) -> dict[str, _File]:
    """Of a repository's files those that a study needs: safetensors where there are any."""
    if kind == "dataset":
        wanted = {name: file for name, file in files.items() if fnmatch.fnmatch(name, hub.files)}
        if not wanted:
            raise MissingError(f"{hub.repository}: no file matches {hub.files!r} at revision {hub.revision}")
        return wanted
    if absent := _absent_parts(files):
        raise MissingError(f"{hub.repository}: revision {hub.revision} has no {' and no '.join(absent)}")
    return {name: file for name, file in files.items() if _matches(name, (*_CONFIGURATION, *_weights(files)))}


def _weights(files: Iterable[str]) -> tuple[str, ...]:
    return _SAFE if any(name.endswith(".safetensors") for name in files) else _PICKLED


def _absent_parts(files: dict[str, _File]) -> list[str]:
    absent = [] if "config.json" in files else ["config.json"]
    has_weights = any(_matches(name, _weights(files)) and not name.endswith(".json") for name in files)
    return absent if has_weights else [*absent, "weights (model*.safetensors or pytorch_model*.bin)"]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _require_complete(hub: Hub, files: dict[str, Path], again: str) -> None:
    """Whether a model in the cache has its configuration and all shards of its weights."""
    absent = _absent_parts(files)
    if not absent:
        wanted = _needed(hub, "model", files)
        shards = {name for file in wanted for name in _siblings(file)}
        absent = sorted(
            name for name in shards | set(wanted) if name not in files or not files[name].is_file()
        )
    if absent:
        raise MissingError(_half_there(hub, absent, again))


def _siblings(name: str) -> list[str]:
    """All shards of the set that a shard's name says it is of."""
    found = re.fullmatch(r"(.+-)(\d{5})-of-(\d{5})(\..+)", name)
    if found is None:
        return []
    return [f"{found[1]}{number:05}-of-{found[3]}{found[4]}" for number in range(1, int(found[3]) + 1)]


def absent_files(hub: Hub, pin: Pin) -> list[str]:
    """Those of a pin's files that the hub's cache lacks."""
    snapshot = snapshot_folder(hub, pin)
    return [name for name in pin.files if not (snapshot / name).is_file()]


def snapshot_folder(hub: Hub, pin: Pin) -> Path:
    """Where the hub's cache has the files of a pin."""
    return _repository_folder(hub, pin.kind) / "snapshots" / pin.commit


def _repository_folder(hub: Hub, kind: Kind) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return hub_cache() / repo_folder_name(repo_id=hub.repository, repo_type=kind)


def download(hub: Hub, pin: Pin, again: str) -> Pin:
    """Brings a pin's files to the hub's cache, where they are not there, and verifies all of them.

    Returns:
        The pin, with the SHA-256 of every file.

    Raises:
        MissingError: files are not to be had, or have other bytes than the pin says.
    """
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    absent = absent_files(hub, pin)
    if absent:
        try:
            snapshot_download(
                hub.repository, repo_type=pin.kind, revision=pin.commit, allow_patterns=list(pin.files)
            )
        except HfHubHTTPError as error:
            raise _refusal(error, hub, again) from None
        except (HTTPError, OSError) as error:
            if len(absent) < len(pin.files):
                raise MissingError(_half_there(hub, absent, again)) from None
            raise _unreachable(hub, error, again) from None
    snapshot = snapshot_folder(hub, pin)
    return replace(
        pin, files={name: _verified(snapshot / name, file, hub, again) for name, file in pin.files.items()}
    )


def _verified(path: Path, expected: PinnedFile, hub: Hub, again: str) -> PinnedFile:
    digest = file_digest(path)
    told = expected.digest if len(expected.digest) == 64 else None
    if (
        path.stat().st_size != expected.size
        or digest != (told or digest)
        or not (told or _is_blob(path, expected))
    ):
        raise MissingError(
            f"{path}: not the bytes that {hub.repository} is locked to have; "
            f"delete it and {path.resolve()}, and run {again}"
        )
    return PinnedFile(expected.size, digest)


def _is_blob(path: Path, expected: PinnedFile) -> bool:
    """Whether a file has the name that Git would give it; hubs tell no better of small files."""
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return blob.hexdigest() == expected.digest


def _refusal(error: Any, hub: Hub, again: str) -> KitError:
    """What a hub's refusal means, and what to do."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{hub.repository}"
    status = error.response.status_code if error.response is not None else "no answer"
    if isinstance(error, RevisionNotFoundError):
        what = f"there is no revision {hub.revision}; correct the study file"
    elif isinstance(error, GatedRepoError) and get_token() is None:
        what = f"gated: ask for access at {page}, set HF_TOKEN to a token of that account, and run {again}"
    elif isinstance(error, GatedRepoError):
        what = f"the account of HF_TOKEN has no access: ask for it at {page}, and run {again}"
    elif status == 401 and get_token() is not None:
        what = f"the hub does not accept HF_TOKEN: set it to a valid token (or unset it), and run {again}"
    elif isinstance(error, RepositoryNotFoundError):
        what = f"there is no such repository, or it is private: see {page}; a private one needs HF_TOKEN"
    else:
        what = f"the hub answered {status}; later, run {again}"
    return MissingError(f"{hub.repository}: {what}")


def _unreachable(hub: Hub, error: Exception, again: str) -> MissingError:
    from huggingface_hub import constants

    why = (
        "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} cannot be reached"
    )
    return MissingError(
        f"{hub.repository}: not in {hub_cache()}, and {why} ({type(error).__name__}); with a connection and "
        f"without HF_HUB_OFFLINE, run {again}; or copy a filled cache here and set HF_HOME to it"
    )


def _half_there(hub: Hub, absent: list[str], again: str) -> str:
    listed = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
    how = f"with a connection and without HF_HUB_OFFLINE, run {again}"
    return f"{hub.repository}: {hub_cache()} lacks {listed}; {how}"
