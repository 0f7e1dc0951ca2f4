"""List, download and verify the files of repositories on a model hub.

It uses huggingface_hub with the user's cache (``HF_HOME``), token (``HF_TOKEN``), offline mode
(``HF_HUB_OFFLINE``) and endpoint (``HF_ENDPOINT``).
"""

import glob
import hashlib
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_repeat.assets.pins import COMMIT, Pin, PinnedFile, RepositoryKind, needed_files
from qlora_repeat.errors import KitError, MissingError, UsageError
from qlora_repeat.study.data_sources import Hub
from qlora_repeat.system.files import open_regular, read_file
from qlora_repeat.system.hashing import known_digests

_PROXIES = tuple(name for each in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY") for name in (each, each.lower()))
_SOCKS = ("socks5", "socks5h")
_LONGEST_COMMIT = 100
"""Bytes of a file that has a commit."""


def hub_cache() -> Path:
    """Return the folder of the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def resolve(hub: Hub, kind: RepositoryKind, command: str) -> Pin:
    """Return the pin of the files that a study needs from a repository at its revision.

    The hub is asked, or its cache if the hub cannot be reached. Errors name `command`, which tries again.

    Raises:
        MissingError: neither has it, the hub refuses it, or it has no files that the study can use.
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
        needed, absent = needed_files(hub, kind, files)
        found = Pin(kind, hub.revision, info.sha, needed)
    except _failures() as error:
        cached = cached_files(hub, kind, command) if _is_unreachable(error) else None
        if cached is None:
            raise _explain(error, hub, kind, hub.revision, [], command) from None
        commit, paths = cached
        digests = known_digests(paths.values())
        files = {name: PinnedFile(path.stat().st_size, digests[path]) for name, path in paths.items()}
        return Pin(kind, hub.revision, commit, files)
    if absent:
        text = f"{hub.repository}: revision {hub.revision} has no {' and no '.join(absent)}"
        raise MissingError(f"{text}; correct the study file")
    return found


def cached_files(hub: Hub, kind: RepositoryKind, command: str) -> tuple[str, dict[str, Path]] | None:
    """Return the commit of a revision and the paths of the needed files in the hub's cache.

    None if the cache does not have the revision.

    Raises:
        MissingError: the cache has only a part of what the study needs.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = _repository_folder(hub, kind)
    reference = folder / "refs" / hub.revision
    try:
        commit = read_file(reference, _LONGEST_COMMIT, follow=True).decode("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        commit = hub.revision
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / commit
    if re.fullmatch(COMMIT, commit) is None or not snapshot.is_dir():
        return None
    paths = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if not path.is_dir()}
    try:
        listed = get_cached_repo_tree(hub.repository, repo_type=kind, revision=commit)
        paths |= {file.path: snapshot / file.path for file in listed}
    except CachedRepoTreeNotFoundError:
        pass  # filled by hand or by an older library, so the existing files must suffice
    needed, absent = needed_files(hub, kind, paths)
    absent += [name for name, path in needed.items() if not path.is_file()]
    if absent:
        raise _not_here(hub, absent, "the hub cannot be asked", command)
    return commit, dict(sorted(needed.items()))


def absent_files(hub: Hub, pin: Pin) -> list[str]:
    """Return the files of a pin that are missing from the hub's cache."""
    snapshot = snapshot_folder(hub, pin)
    return [name for name in pin.files if not (snapshot / name).is_file()]


def snapshot_folder(hub: Hub, pin: Pin) -> Path:
    """Return the folder of a pin's files in the hub's cache."""
    return _repository_folder(hub, pin.kind) / "snapshots" / pin.commit


def _repository_folder(hub: Hub, kind: RepositoryKind) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return hub_cache() / repo_folder_name(repo_id=hub.repository, repo_type=kind)


def download(hub: Hub, pin: Pin, command: str) -> Pin:
    """Download missing files of a pin to the hub's cache, and verify all of them.

    Returns:
        The pin, with the SHA-256 of every file.

    Raises:
        MissingError: files are not available, or have other bytes than the pin.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    if absent := absent_files(hub, pin):
        try:
            patterns = [glob.escape(name) for name in absent]
            snapshot_download(
                hub.repository, repo_type=pin.kind, revision=pin.commit, allow_patterns=patterns
            )
            # If the hub lists no files, an incomplete snapshot raises no error, but a missing file does.
            for name in absent_files(hub, pin):
                hf_hub_download(hub.repository, name, repo_type=pin.kind, revision=pin.commit)
        except _failures() as error:
            raise _explain(error, hub, pin.kind, pin.commit, absent_files(hub, pin), command) from None
    snapshot = snapshot_folder(hub, pin)
    paths = {snapshot / name: file for name, file in pin.files.items()}
    digests = known_digests(path for path, file in paths.items() if path.stat().st_size == file.size)
    verified = [_verified(path, digests.get(path), file, hub, pin, command) for path, file in paths.items()]
    return replace(pin, files=dict(zip(pin.files, verified, strict=True)))


def require_access(hub: Hub, pin: Pin, command: str) -> None:
    """Check that the hub allows the download of a pin, before other downloads that may take hours.

    Raises:
        MissingError: it does not.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if absent := absent_files(hub, pin):
        url = hf_hub_url(hub.repository, absent[0], repo_type=pin.kind, revision=pin.commit)
        try:
            get_hf_file_metadata(url)
        except _failures() as error:
            raise _explain(error, hub, pin.kind, pin.commit, absent, command) from None


def _verified(
    path: Path, digest: str | None, expected: PinnedFile, hub: Hub, pin: Pin, command: str
) -> PinnedFile:
    """Return the pin of a file with its SHA-256; `digest` is None if it has another size."""
    found = digest
    # For small files, a hub gives only the SHA-1 of Git's blob.
    if len(expected.digest) == 40 and digest:
        with open_regular(path, follow=True) as file:
            blob = hashlib.sha1(f"blob {expected.size}\0".encode(), usedforsecurity=False)
            found = hashlib.file_digest(file, lambda: blob).hexdigest()
    if digest is None or found != expected.digest:
        raise MissingError(
            f"{path}: not the bytes of {hub.repository} at {pin.commit[:12]}, by the lock file or the hub; "
            f"delete it and {path.resolve()}, and run {command}"
        )
    return PinnedFile(expected.size, digest)


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors of requests to a hub, invalid answers and full disks.

    xet raises RuntimeError. A missing package for the user's proxy is an ImportError.
    """
    from httpx2 import HTTPError, InvalidURL

    return HTTPError, InvalidURL, OSError, ValueError, RuntimeError, ImportError


def _is_unreachable(error: BaseException) -> bool:
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    no_answer = isinstance(error, (HTTPError, OfflineModeIsEnabled)) or _proxy_problem(error) is not None
    return no_answer and not isinstance(error, HfHubHTTPError)


def _proxy_problem(error: BaseException) -> str | None:
    """Return why no request is possible with the proxies in the environment, and what to do.

    Values are not shown, because they may have a password.
    """
    from httpx2 import InvalidURL

    given = {name: value for name in _PROXIES if (value := os.environ.get(name))}
    schemes = {name: value.partition("://")[0].lower() for name, value in given.items()}
    if isinstance(error, ImportError) and "socks" in str(error).lower():
        socks = [name for name, scheme in schemes.items() if scheme.startswith("socks")]
        text = f"{', '.join(socks)}: a SOCKS proxy needs the package socksio"
        return f"{text}; run `{shlex.quote(sys.executable)} -m pip install socksio`, or unset it"
    if isinstance(error, ValueError) and "proxy URL" in str(error):
        wrong = [name for name, scheme in schemes.items() if scheme not in ("http", "https", *_SOCKS)]
        return f"{', '.join(wrong)}: not a proxy such as http://HOST:PORT or socks5://HOST:PORT; correct it"
    if isinstance(error, InvalidURL) and given:
        return f"{', '.join(given)}: a proxy is no URL such as http://HOST:PORT; correct it"
    return None


def _explain(
    error: BaseException, hub: Hub, kind: RepositoryKind, revision: str, absent: list[str], command: str
) -> KitError:
    """Return an error that says why a repository's files are not available, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if (problem := _proxy_problem(error)) is not None and not constants.is_offline_mode():
        return MissingError(f"{hub.repository}: {problem}, and run {command}")
    if isinstance(error, HFValidationError):
        return UsageError(f"{hub.repository}: no repository can have this name; correct the study file")
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, hub, kind, revision, command)
    if isinstance(error, OSError) and error.errno is not None and not _is_unreachable(error):
        return MissingError(
            f"{hub.repository}: {error.filename or hub_cache()}: {error.strerror}; "
            f"set HF_HOME to a writable folder with free space, and run {command}"
        )
    if constants.is_offline_mode():
        return _not_here(hub, absent, "HF_HUB_OFFLINE is set", command)
    what = "cannot be reached" if _is_unreachable(error) else "does not answer like a hub"
    if named := [name for name in _PROXIES if os.environ.get(name)]:
        what += f" through {', '.join(named)}"
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
    return _not_here(hub, absent, f"{constants.ENDPOINT} {what} ({reason})", command)


def _not_here(hub: Hub, absent: list[str], why: str, command: str) -> MissingError:
    listed = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
    where = f"{hub_cache()} lacks {listed}" if absent else f"{hub.revision} is not in {hub_cache()}"
    return MissingError(
        f"{hub.repository}: {where}, and {why}; with a connection and without HF_HUB_OFFLINE, run {command}; "
        "or copy a filled cache here and set HF_HOME to it"
    )


def _refusal(error: Any, hub: Hub, kind: RepositoryKind, revision: str, command: str) -> MissingError:
    """Return an error that says why a hub refused a request, and what to do."""
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{hub.repository}"
    status, said = error.response.status_code, error.response.headers.get("X-Error-Message")
    answered = f"the hub answered {status}" + (f" ({said})" if said else "")
    locked = f"is locked, but no longer exists: see {page}; to lock again, delete its entry in the lock file"
    again, has_token = f"and run {command}", get_token() is not None
    if isinstance(error, errors.RevisionNotFoundError):
        gone = revision != hub.revision
        what = f"commit {revision} {locked}" if gone else f"no revision {revision}; correct the study file"
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        what = f"{error.response.url.path} {locked}"
    elif status == 401 and has_token:
        what = f"the hub does not accept the token: set HF_TOKEN to a valid one, {again}"
    elif isinstance(error, errors.GatedRepoError) and has_token:
        what = f"the account of HF_TOKEN has no access: ask for it at {page}, {again}"
    elif isinstance(error, errors.GatedRepoError):
        what = f"gated: ask for access at {page}, set HF_TOKEN to a token of that account, {again}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = f"the repository does not exist, or is private: see {page}; a private one needs HF_TOKEN"
    elif status in (401, 403):
        what = f"{answered}: set HF_TOKEN to a token that may read it, {again}"
    else:
        what = f"{answered}; later, run {command}"
    return MissingError(f"{hub.repository}: {what}")
