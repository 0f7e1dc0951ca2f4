"""Archives with changed files, whose checksums and description fit."""

import hashlib
import json
from pathlib import Path
from urllib.parse import unquote

from qlora_repeat.archive.zip_file import CRATE, SUMS, Entry, write_archive
from qlora_repeat.records.record import KeptFile

Files = dict[str, bytes]
"""The files of an archive by name."""


def fitting(files: Files) -> Files:
    """Return the files with matching checksums and a matching description."""
    files = {name: content for name, content in files.items() if name != SUMS}
    crate = json.loads(files[CRATE])
    known = {unquote(entity["@id"]): entity for entity in crate["@graph"] if entity["@type"] == "File"}
    for name, entity in known.items():
        if name not in files and name != SUMS:
            crate["@graph"].remove(entity)
    for name in files.keys() - {CRATE}:
        if name not in known:
            crate["@graph"].append(known.setdefault(name, {"@id": name, "@type": "File"}))
        content = files[name]
        known[name] |= {"sha256": hashlib.sha256(content).hexdigest(), "contentSize": str(len(content))}
    files[CRATE] = json.dumps(crate).encode()
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return files | {SUMS: sums.encode()}


def canonical(path: Path, files: Files) -> Path:
    """Write an archive of these files, except SHA256SUMS, as `pack` does."""
    entries = [
        Entry(name, content, KeptFile(hashlib.sha256(content).hexdigest(), len(content)))
        for name, content in files.items()
        if name != SUMS
    ]
    write_archive(path, entries, lambda done, total: None)
    return path
