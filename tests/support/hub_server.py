"""A local model hub with the part of the protocol that fetching needs, and with faults that tests can set.

It serves the files of a folder in the layout of the hub's cache. The tests change its attributes.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet")
"""Files that a hub stores outside Git, with their SHA-256."""


@dataclass
class Repository:
    """Files by commit and path, and the commit of each branch."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit to branch main, with these files besides the latest ones; empty files are removed."""
        before = self.commits.get(self.branches.get("main", ""), {})
        content = {name: body for name, body in {**before, **files}.items() if body}
        name = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        self.commits[name] = content
        self.branches["main"] = name
        return name


@dataclass
class Hub:
    """A hub that answers at `url` until `close`."""

    repositories: dict[str, Repository]
    """Repositories by kind and name: ``models/org/name``."""
    gated: dict[str, str] = field(default_factory=dict)
    """Repositories that need access: for their ``files``, or for ``everything``."""
    tokens: dict[str, set[str]] = field(default_factory=dict)
    """Valid tokens, and the gated repositories that each can access."""
    status: int | None = None
    """The status of every answer, if set."""
    portal: bytes | None = None
    """The page that answers every request, if set, as in a network that requires a login."""
    lists_files: bool = True
    """Whether the hub lists the files of a commit; downloads of many files ask for the list."""
    forbidden: list[str] = field(default_factory=list)
    """Paths of files that the hub refuses to everyone."""
    changed: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    """By path: functions that change the content of a file in transit."""
    held: dict[str, threading.Event] = field(default_factory=dict)
    """By path: the event that the second half of a file waits for."""
    broken: list[str] = field(default_factory=list)
    """Paths of files whose next download is cut off half-way."""
    requests: list[str] = field(default_factory=list)
    """The method and path of each request."""

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        for name in [*self.held]:
            self.release(name)
        self._server.shutdown()
        self._server.server_close()

    def hold(self, name: str) -> None:
        """Make the second half of a file wait."""
        self.held[name] = threading.Event()

    def release(self, name: str) -> None:
        """Send the rest of a held file, and stop holding it."""
        self.held.pop(name).set()

    def asked_for(self, name: str) -> int:
        """Return the number of requests for the content of a file."""
        return sum(line.startswith("GET") and line.endswith(f"/{name}") for line in self.requests)


def read_cache(home: Path) -> dict[str, Repository]:
    """Return the repositories in a cache folder."""
    repositories = {}
    for folder in sorted((home / "hub").glob("*--*")):
        kind, _, name = folder.name.partition("--")
        repository = Repository()
        for snapshot in (folder / "snapshots").iterdir():
            repository.commits[snapshot.name] = {
                path.relative_to(snapshot).as_posix(): path.read_bytes()
                for path in sorted(snapshot.rglob("*"))
                if path.is_file()
            }
        for reference in (folder / "refs").glob("*"):
            repository.branches[reference.name] = reference.read_text()
        repositories[f"{kind}/{name.replace('--', '/')}"] = repository
    return repositories


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.status is not None:
            return self.answer(self.hub.status)
        if self.hub.portal is not None:
            return self.answer(200, self.hub.portal, {"Content-Type": "text/html"})
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            kind, name, what, revision = found.groups()
            return self.api(f"{kind}/{name}", what, revision, token)
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, name, revision, file = found.groups()
            return self.file(f"{kind or 'models/'}{name}", revision, file, token)
        return self.answer(404)

    def api(self, repository: str, what: str, revision: str, token: str) -> None:
        found = self.files(repository, revision, token, "everything")
        if found is None:
            return None
        commit, files = found
        if what == "tree" and not self.hub.lists_files:
            return self.answer(403)
        if what == "tree":
            listed = [
                {"type": "file", "path": name, "size": len(body), "oid": _blob(body)}
                | (
                    {"lfs": {"oid": _sha256(body), "size": len(body), "pointerSize": 130}}
                    if _large(name)
                    else {}
                )
                for name, body in files.items()
            ]
            return self.answer(200, json.dumps(listed).encode())
        siblings = [
            {"rfilename": name, "size": len(body), "blobId": _blob(body)}
            | (
                {"lfs": {"sha256": _sha256(body), "size": len(body), "pointerSize": 130}}
                if _large(name)
                else {}
            )
            for name, body in files.items()
        ]
        name = repository.partition("/")[2]
        return self.answer(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())

    def file(self, repository: str, revision: str, name: str, token: str) -> None:
        found = self.files(repository, revision, token, "files")
        if found is None:
            return None
        commit, files = found
        if name in self.hub.forbidden:
            return self.answer(403)
        if name not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        body = files[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_blob(body)}"', "Accept-Ranges": "bytes"}
        if _large(name):
            headers |= {"X-Linked-Etag": f'"{_sha256(body)}"', "X-Linked-Size": str(len(body))}
        if name in self.hub.changed and self.command == "GET":
            body = self.hub.changed[name](body)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start, status = (int(asked[1]), 206) if asked else (0, 200)
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return self.answer(status, body[start:], headers, name)

    def files(
        self, repository: str, revision: str, token: str, asking: str
    ) -> tuple[str, dict[str, bytes]] | None:
        """Return a revision's commit and its files; if access is refused, send that and return None."""
        known = self.hub.repositories.get(repository)
        gate = self.hub.gated.get(repository)
        if known is None:
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if gate in (asking, "everything") and repository not in self.hub.tokens.get(token, set()):
            return self.refuse(403 if token else 401, "GatedRepo", f"Access to {repository} is restricted.")
        commit = known.branches.get(revision, revision)
        if commit not in known.commits:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, known.commits[commit]

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, headers={"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}))

    def answer(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        name: str = "",
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if name in self.hub.broken:
                self.hub.broken.remove(name)
                self.close_connection = True
                return
            if held := self.hub.held.get(name):
                held.wait(60)
            self.wfile.write(body[len(body) // 2 :])
        except OSError:
            self.close_connection = True  # the client was killed


def _large(name: str) -> bool:
    return name.endswith(LARGE)


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _blob(body: bytes) -> str:
    """Return Git's object name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
