"""Repositories on a model hub: what they hold, and their files in the hub's own cache, verified.

Works through huggingface_hub: its cache (``HF_HOME``), its token (``HF_TOKEN``), its offline mode
(``HF_HUB_OFFLINE``) and its endpoint (``HF_ENDPOINT``) are the user's own.
"""

import fnmatch
import hashlib
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from qlora_repeat.assets.hub_lock import COMMIT, Pin, PinnedFile, RepositoryKind
from qlora_repeat.errors import KitError, MissingError, UsageError
from qlora_repeat.study.data_sources import Hub
from qlora_repeat.system.hashing import file_digest

_File = TypeVar("_File")

_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any of them holds a vocabulary."""
_CONFIGURATION = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
_SAFE = ("model.safetensors", "model-*.safetensors")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin")


def hub_cache() -> Path:
    """Where the hub's files are kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def resolve(hub: Hub, kind: RepositoryKind, again: str) -> Pin:
    """What a repository holds at the study's revision of what the study needs.

    The hub is asked, or its cache where it cannot be reached. `again` is the command for errors to name.

    Raises:
        MissingError: neither has it, the hub refuses, or it holds nothing that the study could use.
        UsageError: no repository can have such a name.
    """
    from huggingface_hub import HfApi

    try:
        info: Any = HfApi().repo_info(
            hub.repository, revision=hub.revision, repo_type=kind, files_metadata=True
        )
        files = {
            item.rfilename: PinnedFile(item.size, item.lfs.sha256 if item.lfs else item.blob_id)
            for item in info.siblings or []
        }
        found = Pin(kind, hub.revision, info.sha, files)
    except _failures() as error:
        cached = _cached(hub, kind, again) if _is_unreachable(error) else None
        if cached is None:
            raise _explain(error, hub, kind, hub.revision, [], again) from None
        return cached
    needed, absent = _needed(hub, kind, files)
    if absent:
        raise MissingError(
            f"{hub.repository}: revision {hub.revision} has no {' and no '.join(absent)}; "
            "correct the study file"
        )
    return replace(found, files=needed)


def _cached(hub: Hub, kind: RepositoryKind, again: str) -> Pin | None:
    """The pin of what the hub's cache has of a revision; None if it knows nothing of it.

    Raises:
        MissingError: it has a part of what the study needs.
    """
    found = cached_files(hub, kind, again)
    if found is None:
        return None
    commit, paths = found
    files = {name: PinnedFile(path.stat().st_size, file_digest(path)) for name, path in paths.items()}
    return Pin(kind, hub.revision, commit, files)


def cached_files(hub: Hub, kind: RepositoryKind, again: str) -> tuple[str, dict[str, Path]] | None:
    """The commit of a revision, and the files that a study needs of it, in the hub's cache; unread.

    None if the cache knows nothing of the revision.

    Raises:
        MissingError: it has a part of what the study needs.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = _repository_folder(hub, kind)
    reference = folder / "refs" / hub.revision
    commit = reference.read_text("ascii", "replace").strip() if reference.is_file() else hub.revision
    snapshot = folder / "snapshots" / commit
    if re.fullmatch(COMMIT, commit) is None or not snapshot.is_dir():
        return None
    paths = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if not path.is_dir()}
    try:
        listed = get_cached_repo_tree(hub.repository, repo_type=kind, revision=commit)
        paths |= {file.path: snapshot / file.path for file in listed}
    except CachedRepoTreeNotFoundError:
        pass  # filled by hand, or by an older library: what is there has to do
    needed, absent = _needed(hub, kind, paths)
    absent += [name for name, path in needed.items() if not path.is_file()]
    if absent:
        raise _not_here(hub, absent, "the hub cannot be asked", again)
    return commit, dict(sorted(needed.items()))


def _needed(hub: Hub, kind: RepositoryKind, files: dict[str, _File]) -> tuple[dict[str, _File], list[str]]:
    """The files that a study needs of a repository (safetensors where there are any), and what it lacks."""
    if kind == "dataset":
        wanted = {name: file for name, file in files.items() if fnmatch.fnmatch(name, hub.files)}
        return wanted, [] if wanted else [f"file that matches {hub.files!r}"]
    top = [name for name in files if "/" not in name]
    weights = _matching(top, _SAFE) or _matching(top, _PICKLED)
    parts = {part for name in weights for part in _shards(name)}
    chosen = {*weights, *parts, *_matching(top, _CONFIGURATION)}
    wanted = {name: files[name] for name in top if name in chosen}
    lacking = [] if "config.json" in top else ["config.json"]
    lacking += [] if any(name in top for name in _TOKENIZER) else [f"tokenizer ({', '.join(_TOKENIZER)})"]
    lacking += [] if weights else ["weights (model*.safetensors, pytorch_model*.bin)"]
    return wanted, lacking + sorted(parts - set(top))


def _matching(names: Collection[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def _shards(name: str) -> list[str]:
    """All shards of the set that a shard's name says it is of, and the set's index."""
    found = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})(\..+)", name)
    if found is None:
        return []
    stem, _, count, suffix = found.groups()
    shards = [f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]
    return [*shards, f"{stem}{suffix}.index.json"]


def absent_files(hub: Hub, pin: Pin) -> list[str]:
    """Those of a pin's files that the hub's cache lacks."""
    snapshot = snapshot_folder(hub, pin)
    return [name for name in pin.files if not (snapshot / name).is_file()]


def snapshot_folder(hub: Hub, pin: Pin) -> Path:
    """Where the hub's cache has the files of a pin."""
    return _repository_folder(hub, pin.kind) / "snapshots" / pin.commit


def _repository_folder(hub: Hub, kind: RepositoryKind) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return hub_cache() / repo_folder_name(repo_id=hub.repository, repo_type=kind)


def download(hub: Hub, pin: Pin, again: str) -> Pin:
    """Brings a pin's files to the hub's cache, where they are not there, and verifies all of them.

    Returns:
        The pin, with the SHA-256 of every file.

    Raises:
        MissingError: files are not to be had, or have other bytes than the pin says.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    if absent := absent_files(hub, pin):
        try:
            snapshot_download(hub.repository, repo_type=pin.kind, revision=pin.commit, allow_patterns=absent)
            # Where the hub lists no files, an incomplete snapshot passes in silence; a file alone does not.
            for name in absent_files(hub, pin):
                hf_hub_download(hub.repository, name, repo_type=pin.kind, revision=pin.commit)
        except _failures() as error:
            raise _explain(error, hub, pin.kind, pin.commit, absent_files(hub, pin), again) from None
    snapshot = snapshot_folder(hub, pin)
    files = {name: _verified(snapshot / name, file, hub, pin, again) for name, file in pin.files.items()}
    return replace(pin, files=files)


def require_access(hub: Hub, pin: Pin, again: str) -> None:
    """Checks that the hub gives what its cache lacks of a pin, before other downloads that may take hours.

    Raises:
        MissingError: it does not.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if absent := absent_files(hub, pin):
        url = hf_hub_url(hub.repository, absent[0], repo_type=pin.kind, revision=pin.commit)
        try:
            get_hf_file_metadata(url)
        except _failures() as error:
            raise _explain(error, hub, pin.kind, pin.commit, absent, again) from None


def _verified(path: Path, expected: PinnedFile, hub: Hub, pin: Pin, again: str) -> PinnedFile:
    digest = file_digest(path)
    same = digest == expected.digest if len(expected.digest) == 64 else _is_blob(path, expected)
    if not same or path.stat().st_size != expected.size:
        raise MissingError(
            f"{path}: not the bytes that {hub.repository} has at {pin.commit[:12]}, by its lock or the hub; "
            f"delete it and {path.resolve()}, and run {again}"
        )
    return PinnedFile(expected.size, digest)


def _is_blob(path: Path, expected: PinnedFile) -> bool:
    """Whether a file has the name that Git would give it; hubs tell no better of small files."""
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return blob.hexdigest() == expected.digest


def _failures() -> tuple[type[Exception], ...]:
    """What asking a hub raises: no answer, a refusal, no hub's answer, a full disk; or xet, RuntimeError."""
    from httpx2 import HTTPError, InvalidURL

    return HTTPError, InvalidURL, OSError, ValueError, RuntimeError


def _is_unreachable(error: BaseException) -> bool:
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    no_answer = isinstance(error, (HTTPError, OfflineModeIsEnabled))
    return no_answer and not isinstance(error, HfHubHTTPError)


def _explain(
    error: BaseException, hub: Hub, kind: RepositoryKind, revision: str, absent: list[str], again: str
) -> KitError:
    """Why a repository's files are not to be had, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HFValidationError):
        return UsageError(f"{hub.repository}: no repository can have this name; correct the study file")
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, hub, kind, revision, again)
    if isinstance(error, OSError) and error.errno is not None and not _is_unreachable(error):
        return MissingError(
            f"{hub.repository}: {error.filename or hub_cache()}: {error.strerror}; "
            f"set HF_HOME to a folder that can be written and has room, and run {again}"
        )
    if constants.is_offline_mode():
        return _not_here(hub, absent, "HF_HUB_OFFLINE is set", again)
    what = "cannot be reached" if _is_unreachable(error) else "does not answer as a hub does"
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
    return _not_here(hub, absent, f"{constants.ENDPOINT} {what} ({reason})", again)


def _not_here(hub: Hub, absent: list[str], why: str, again: str) -> MissingError:
    listed = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
    where = f"{hub_cache()} lacks {listed}" if absent else f"{hub.revision} is not in {hub_cache()}"
    return MissingError(
        f"{hub.repository}: {where}, and {why}; with a connection and without HF_HUB_OFFLINE, run {again}; "
        "or copy a filled cache here and set HF_HOME to it"
    )


def _refusal(error: Any, hub: Hub, kind: RepositoryKind, revision: str, again: str) -> MissingError:
    """What a hub's refusal means, and what to do."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{hub.repository}"
    status, said = error.response.status_code, error.response.headers.get("X-Error-Message")
    answered = f"the hub answered {status} ({said})" if said else f"the hub answered {status}"
    locked = f"is locked, but not there any more: see {page}; to lock anew, delete its entry of the lock file"
    if isinstance(error, RevisionNotFoundError):
        gone = revision != hub.revision
        what = f"commit {revision} {locked}" if gone else f"no revision {revision}; correct the study file"
    elif isinstance(error, RemoteEntryNotFoundError):
        what = f"{error.response.url.path} {locked}"
    elif status == 401 and get_token() is not None:
        what = f"the hub does not accept the token: set HF_TOKEN to a valid one, and run {again}"
    elif isinstance(error, GatedRepoError) and get_token() is None:
        what = f"gated: ask for access at {page}, set HF_TOKEN to a token of that account, and run {again}"
    elif isinstance(error, GatedRepoError):
        what = f"the account of HF_TOKEN has no access: ask for it at {page}, and run {again}"
    elif isinstance(error, RepositoryNotFoundError):
        what = f"there is no such repository, or it is private: see {page}; a private one needs HF_TOKEN"
    elif status in (401, 403):
        what = f"{answered}: set HF_TOKEN to a token that may read it, and run {again}"
    else:
        what = f"{answered}; later, run {again}"
    return MissingError(f"{hub.repository}: {what}")
