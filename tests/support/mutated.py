"""Files as a stranger might change or make them up: bytes, JSON, records, study files, archives."""

import contextlib
import copy
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hypothesis import strategies as st

from qlora_repeat.archive.zip_file import CRATE, SUMS, Entry, is_known, text_entry, write_archive
from qlora_repeat.records.record import KeptFile
from qlora_repeat.system.files import json_text
from qlora_repeat.system.hashing import json_digest

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 5e-324,
    1e-300, 1e-9, 1e17, 1e154, 1e160, 1e300, 1.7e308, -1e300, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "a", "nan", "1e999", "0x1p+1023", "-0x1.8p+5000", "../../etc/passwd", "/dev/zero", "a/b/c", "*",
    "\0", "\n", "\x1b[2J", "\u202e", "\ud800", "{", "%s", "{0.__class__}", "$x^2$", "9" * 400, "a" * 5000,
    "é中🙂",
    "adamw-8bit", "done", "2026-01-01T00:00:00+00:00", "base",
)  # fmt: skip


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


ODD = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from([None, True, False, [], {}, [[]], [None], [1e300, 1e300], ["a"], {"": 0}, {"a": {}}]),
    st.sampled_from([5, 90, 110, 200]).map(_nested),
    st.floats(),
    st.integers(),
    st.text(st.characters(), max_size=20),
)
"""Values that a reader may not expect."""
MADE_UP = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(TEXTS) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value within a value."""
    yield at
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(each, (*at, key))


def alike(value: Any) -> st.SearchStrategy[Any]:
    """Return odd values of the same type, which a reader does not refuse for their type."""
    if isinstance(value, bool) or value is None:
        return st.sampled_from([True, False, None])
    if isinstance(value, int):
        return st.sampled_from([each for each in NUMBERS if isinstance(each, int)]) | st.integers(0, 99)
    if isinstance(value, float):
        return st.sampled_from([each for each in NUMBERS if isinstance(each, float)]) | st.floats()
    if isinstance(value, str):
        return st.sampled_from(TEXTS) | st.text(max_size=9)
    if isinstance(value, list):
        return st.sampled_from([[], value * 2, value[:1], value[::-1], value * 50])
    return st.just(dict(reversed(value.items())))


@st.composite
def changed_value(draw: st.DrawFn, value: Any) -> Any:
    """Return a JSON value in which one to three values are replaced, removed, added or repeated."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = [place for place in _paths(value) if place]
        if not places:
            return draw(MADE_UP)
        *before, last = draw(st.sampled_from(places))
        inside = value
        for key in before:
            inside = inside[key]
        how = draw(st.sampled_from(["alike"] * 8 + ["replace", "scale", "remove", "add", "repeat"]))
        if how == "remove":
            del inside[last]
            continue
        old = inside[last]
        number = isinstance(old, int | float) and not isinstance(old, bool) and abs(old) < 1e300
        if how == "scale" and number:
            made = old * draw(st.sampled_from([-1, 0, 1e-300, 1e200, 7]))
        elif how == "repeat":
            made = old
        else:
            made = draw({"alike": alike(old), "replace": ODD}.get(how, MADE_UP))
        made = copy.deepcopy(made)  # later changes must not reach what the strategies draw from
        if how in ("alike", "replace", "scale"):
            inside[last] = made
        elif isinstance(inside, list):
            inside.insert(last, made)
        else:
            inside[draw(st.sampled_from(TEXTS) | st.text(max_size=9))] = made
    return value


def dumped(value: Any) -> bytes:
    """Return JSON that may have lone surrogates, as escapes."""
    try:
        return json.dumps(value).encode()
    except ValueError:  # an integer has too many digits for Python
        return b"9" * 5000
    except RecursionError:
        return b"[" * 3000


_TOKENS = (
    b"\x00", b"\xff", b"\xed\xa0\x80", b"[" * 3000, b'{"a":' * 2000, b"9" * 5000, b"1e400", b"NaN", b"-",
    b"\n",
    b"\r", b'"', b"{", b"}", b",", b"\\ud800", b"\x1b[2J", b"PK\x03\x04", b"\xff" * 8, b"null",
    b"\xef\xbb\xbf",
    b"A" * 70_000,
)  # fmt: skip


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes of which some are replaced, cut out, repeated, or cut off."""
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.sampled_from([0, 1, 1, 2, 8, 100, 10**9])))
        new = draw(st.sampled_from(_TOKENS) | st.binary(max_size=9) | st.just(content[begin:end] * 2))
        content = content[:begin] + new + content[end:]
    return content


def changed_json(content: bytes) -> st.SearchStrategy[bytes]:
    """Return JSON files that are changed in their values or in their bytes, or made up."""
    return st.one_of(
        changed_value(json.loads(content)).map(dumped),
        changed_value(json.loads(content)).map(dumped),
        changed_bytes(content),
        MADE_UP.map(dumped),
        st.binary(max_size=50),
    )


@st.composite
def _changed_column(draw: st.DrawFn, lines: list[bytes], keys: list[str]) -> list[bytes]:
    """Return lines in which a key has odd values of its type, most of them different."""
    key, changed = draw(st.sampled_from(keys)), []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and key in row:
            line = dumped(row | {key: draw(alike(row[key]))})
        changed.append(line)
    return changed


def changed_lines(content: bytes) -> st.SearchStrategy[bytes]:
    """Return JSON Lines, of which some are changed, removed, repeated or moved."""
    lines = content.decode().splitlines()
    one = st.sampled_from(lines)
    changed = one.flatmap(lambda line: changed_json(line.encode()))

    @st.composite
    def several(draw: st.DrawFn) -> bytes:
        made = [line.encode() for line in lines]
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.integers(0, len(made) - 1))
            how = draw(st.sampled_from(["value"] * 3 + ["column"] * 3 + ["any", "remove", "repeat"]))
            if how == "value" and place < len(lines):
                made[place] = dumped(draw(changed_value(json.loads(lines[place]))))
            elif how == "column":
                made = draw(_changed_column(made, list(json.loads(lines[0]))))
            elif how == "any":
                made[place] = draw(changed)
            elif how == "repeat":
                made.insert(place, made[place])
            elif len(made) > 1:
                del made[place]
        return b"\n".join(made) + b"\n"

    return st.one_of(several(), several(), changed_bytes(content), MADE_UP.map(dumped))


def changed_record(content: bytes) -> st.SearchStrategy[bytes]:
    """Return records, most of which are changed by somebody who computes their digests."""
    whole = json.loads(content)
    whole.pop("digest", None)  # a note on a failure has none

    def sealed(value: Any) -> bytes:
        if not isinstance(value, dict):
            return dumped(value)
        try:
            return json_text(value | {"digest": json_digest(value)}).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError, TypeError):
            return dumped(value)

    forged = changed_value(whole).map(sealed)
    return st.one_of(forged, forged, forged, forged, changed_json(content))


def changed_tensors(content: bytes) -> st.SearchStrategy[bytes]:
    """Return files of tensors with another header, or other bytes."""
    size = int.from_bytes(content[:8], "little")
    header, values = json.loads(content[8 : 8 + size]), content[8 + size :]

    def whole(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + values

    sizes = st.sampled_from([0, 1, 7, 2**31, 2**63, 2**64 - 1]).map(lambda wrong: wrong.to_bytes(8, "little"))
    return st.one_of(
        changed_value(header).map(dumped).map(whole),
        changed_value(header).map(dumped).map(whole),
        changed_json(content[8 : 8 + size]).map(whole),
        changed_bytes(content),
        sizes.map(lambda wrong: wrong + content[8:]),
    )


_TOML = (
    "0", "-1", "1.5", "inf", "nan", "true", '""', '"a"', "[]", "{}", "[[1]]", '["a"]', "1979-05-27",
    "07:32:00",
    "9" * 400, "9" * 5000, "10000000", "9223372036854775807", '"\\u0000"', '"\\u001b[2J"',
    '"../../etc/passwd"',
    "[" * 2000, f"{{a.{'a.' * 500}a = 1}}", f'"{"a" * 5000}"', '"*"', '"\\n"', "\'\'\'\n\'\'\'", "0x10",
    "1e400",
    "{per_trial = 1}", '"fresh"',
)  # fmt: skip


@st.composite
def changed_toml(draw: st.DrawFn, content: bytes) -> bytes:
    """Return a study file with other values, keys or tables; or with other bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(changed_bytes(content))
    lines = content.decode().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        key, equals, _ = lines[place].partition(" = ")
        how = draw(st.sampled_from(["value", "value", "value", "remove", "repeat", "key", "table"]))
        if how == "value" and equals:
            lines[place] = f"{key} = {draw(st.sampled_from(_TOML))}"
        elif how == "remove" and len(lines) > 1:
            del lines[place]
        elif how == "repeat":
            lines.insert(place, lines[place])
        elif how == "key":
            lines.insert(
                place, f"{draw(st.sampled_from(['a', 'a.b', 'name', 'x' * 3000, 'a.' * 3000 + 'a']))} = 1"
            )
        else:
            lines.insert(
                place, f"[{draw(st.sampled_from(['a', 'models', 'data.x.y', 'cluster', 'a.' * 3000 + 'a']))}]"
            )
    return "\n".join(lines).encode()


def unpacked(archive: bytes) -> dict[str, bytes]:
    """Return the files of an archive by name."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def packed(files: dict[str, bytes], path: Path) -> None:
    """Write an archive of these files, with a description and checksums that fit."""
    kept = {name: KeptFile(hashlib.sha256(each).hexdigest(), len(each)) for name, each in files.items()}
    description = files[CRATE].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError, AttributeError):
        crate = json.loads(description)
        for entity in crate["@graph"]:
            if entity["@type"] == "File" and (own := kept.get(unquote(entity["@id"]))):
                entity |= {"sha256": own.sha256, "contentSize": str(own.bytes)}
        description = json.dumps(crate)
    entries = [Entry(name, each, kept[name]) for name, each in files.items() if name not in (CRATE, SUMS)]
    entries = [entry for entry in entries if is_known(entry.name)]
    write_archive(path, [*entries, text_entry(CRATE, description)], lambda done, total: None)


def changed_member(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Return a changed file of an archive, by the kind that its name tells."""
    kinds: dict[str, Callable[[bytes], st.SearchStrategy[bytes]]] = {
        r"runs/.*(finetune|merge|evaluate|time|test-\d+)\.json": changed_record,
        r".*\.jsonl": changed_lines,
        r".*\.json": changed_json,
        r".*\.toml": changed_toml,
    }
    for pattern, kind in kinds.items():
        if re.fullmatch(pattern, name):
            return kind(content)
    return changed_bytes(content)
