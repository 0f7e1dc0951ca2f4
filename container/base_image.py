"""Check whether the tag of the base image still has the pinned digest (`make base-image`).

With --update, pin the new digest. Dockerfile and apptainer.def both name the image and must agree. The
script needs only Python.
"""

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("Dockerfile", "apptainer.def")
PINNED = re.compile(
    r"(?<=[ =])(?P<host>[\w.:-]+)/(?P<name>[\w./-]+):(?P<tag>[\w.-]+)@(?P<digest>sha256:[0-9a-f]{64})"
)
REGISTRIES = {"docker.io": "registry-1.docker.io"}
KINDS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


def pinned(root: Path) -> re.Match[str]:
    """Return the base image that both files name; exit if they do not agree."""
    found = {file: PINNED.search((root / file).read_text(encoding="utf-8")) for file in FILES}
    for file, match in found.items():
        if match is None:
            sys.exit(f"{file}: names no base image as HOST/NAME:TAG@sha256:DIGEST")
    names = {match[0]: match for match in found.values() if match is not None}
    if len(names) > 1:
        sys.exit(f"{' and '.join(FILES)} name different base images: {', '.join(names)}")
    return next(iter(names.values()))


def current_digest(host: str, name: str, tag: str) -> str:
    """Return the current digest of a tag in a registry (OCI distribution specification, end-3)."""
    host = REGISTRIES.get(host, host)
    scheme = "http" if host.partition(":")[0] in ("localhost", "127.0.0.1") else "https"
    request = urllib.request.Request(f"{scheme}://{host}/v2/{name}/manifests/{tag}", method="HEAD")
    request.add_header("Accept", KINDS)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        request.add_header("Authorization", f"Bearer {anonymous_token(error.headers['WWW-Authenticate'])}")
        answer = urllib.request.urlopen(request, timeout=60)
    with answer:
        return str(answer.headers["Docker-Content-Digest"])


def anonymous_token(challenge: str) -> str:
    """Return a token for anonymous access, from the address in a registry's challenge (RFC 6750)."""
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = urllib.parse.urlencode({key: asked[key] for key in ("service", "scope") if key in asked})
    with urllib.request.urlopen(f"{asked['realm']}?{query}", timeout=60) as answer:
        return str(json.load(answer)["token"])


def main(root: Path = ROOT) -> None:
    image = pinned(root)
    try:
        digest = current_digest(image["host"], image["name"], image["tag"])
    except (OSError, KeyError) as error:
        sys.exit(f"{image['host']}: cannot get the digest of {image['name']}:{image['tag']} ({error})")
    if digest == image["digest"]:
        print(f"{image['name']}:{image['tag']} still has the pinned digest, {digest}")
    elif "--update" in sys.argv[1:]:
        for file in FILES:
            path = root / file
            path.write_text(
                path.read_text(encoding="utf-8").replace(image["digest"], digest), encoding="utf-8"
            )
        print(
            f"{image['name']}:{image['tag']}: {' and '.join(FILES)} now pin {digest}, not {image['digest']}"
        )
    else:
        sys.exit(
            f"{image['name']}:{image['tag']} now has the digest {digest}, but {image['digest']} is pinned; "
            "run `make base-image UPDATE=--update` to pin the new one"
        )


if __name__ == "__main__":
    main()
