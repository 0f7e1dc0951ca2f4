"""Find what an author may not want to publish in a file of an archive: tokens, paths, hosts, UUIDs."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from qlora_repeat.archive.zip_file import Entry
from qlora_repeat.system.files import LARGEST_LINES, open_regular
from qlora_repeat.system.fingerprint import image_name

_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(hf_\w{30,}|api_org_\w{30,}|gh[a-z]_\w{30,}|github_pat_\w{20,}|gl[a-z]{2,5}-[\w-]{20,}"
    r"|xox[a-z]-[\w-]{10,}|npm_\w{30,}|pypi-[\w-]{20,}|dckr_pat_[\w-]{20,}|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{35}"
    r"|ya29\.[\w-]{20,}|nvapi-[\w-]{20,}|SG\.[\w-]{20,}|sk-(?=[\w-]*\d)[\w-]{20,}|[sr]k_live_\w{20,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\w://(?!git@)[^\s/@\"']+@",
    re.ASCII,
)
"""Access tokens of well-known services, private keys, and names and passwords in addresses."""
_SECRET = re.compile(
    r"(?:token|passw(?:or)?d|passphrase|\bpwd?|secret|credentials?"
    r"|(?:access|account|api|auth|private|secret)[_-]?key)(?![a-z])[\"']?\s*[=:]\s*\S{8}|\bbearer\s+\S{8}",
    re.I,
)
"""A secret by its name, in what a person wrote."""
_UUID = re.compile(
    r"\b(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4})?|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.I
)
_PART = r"[\w.@+-]+"
_ABSOLUTE = rf"(?:file://)?(?:~(?:[A-Za-z_][\w-]*)?|/{_PART})/{_PART}|[A-Za-z]:\\\\?\w"
_VALUE = re.compile(rf"(?<=\")(?:{_ABSOLUTE})[^\"\n]*")
"""A string that is an absolute path."""
_ANYWHERE = re.compile(
    rf"(?<![\w./~+@-])(?:{_ABSOLUTE})[^\"'\s]*|(?<=[\"'])/{_PART}(?=[\"'])"
    rf"|(?<![\w./:])(?://|\\\\){_PART}[/\\]\w[^\"'\s]*"
)
"""An absolute path also in a comment or a longer text, or one on a file server."""
_HEADER = 1_000_000
"""Bytes that are searched of a safetensors file, whose header may have more than tensors."""


def private_parts(entry: Entry, folders: Collection[Path]) -> Iterator[str]:
    """Yield what looks private in a file, with its line; `folders` are private ones of this machine."""
    by_hand, is_data = entry.name.startswith("studies/"), entry.name.startswith("data/")
    text = _text(entry)
    local = "|".join(re.escape(f"{folder}/") for folder in folders if folder != Path("/")) or "(?!)"
    kinds = {
        "what looks like a token": [_TOKEN, *([_SECRET] if by_hand else [])],
        "the UUID of a GPU": [] if is_data else [_UUID],
        "an absolute path": [] if is_data else [_ANYWHERE if by_hand else _VALUE, re.compile(local)],
    }
    named = re.findall(r'"(?:name|base|digest)": "([^"\n]+)"', text) if entry.name.startswith("runs/") else []
    if any(image_name(image) != image for image in named):
        yield "the host of a private image registry"
    for what, patterns in kinds.items():
        found = next(filter(None, (pattern.search(text) for pattern in patterns)), None)
        if found is not None:
            shown = f" ({found[0][:60]})" if "path" in what else ""
            yield f"{what}{shown} in line {text.count(chr(10), 0, found.start()) + 1}"


def _text(entry: Entry) -> str:
    if isinstance(entry.content, bytes):
        return entry.content.decode("utf-8", "replace")
    with open_regular(entry.content) as file:
        most = _HEADER if entry.name.endswith(".safetensors") else LARGEST_LINES
        return file.read(most).decode("utf-8", "replace")
