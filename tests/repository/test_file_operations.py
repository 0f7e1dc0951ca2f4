"""Files are changed only through `qlora_repeat.system.files`, whose calls the injected faults reach."""

import ast
from collections.abc import Iterator
from pathlib import Path

from support.checkout import ROOT

SOURCE = ROOT / "src" / "qlora_repeat"
EXEMPT = {
    "system/files.py",
    "system/private_folder.py",  # gives a folder its mode, for `verify`
    "system/memory.py",  # writes to /proc
    "planning/machine_checks.py",  # tries what a folder permits
    "assets/hub_lock.py",  # tries whether a folder can be written
    "assets/miniature.py",  # writes a hub, for `make rehearsal`
    "analysis/step_rerun.py",  # makes a folder in $TMPDIR
    "selftest/run.py",  # makes a folder in $TMPDIR
    "cli/main.py",  # opens /dev/null
}
METHODS = {"write_text", "write_bytes", "mkdir", "touch", "unlink", "rmdir", "rename", "chmod", "symlink_to"}
METHODS |= {"hardlink_to"}
FUNCTIONS = {
    "os": {"chmod", "fsync", "ftruncate", "link", "makedirs", "mkdir", "open", "remove", "removedirs"}
    | {"rename", "renames", "replace", "rmdir", "symlink", "truncate", "unlink", "write"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move", "rmtree"},
    "tempfile": {"NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile", "mkdtemp", "mkstemp"},
}


def changes(path: Path) -> Iterator[str]:
    """Yield each call in a module that may change a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called, found = node.func, False
        if isinstance(called, ast.Attribute):
            owner = called.value.id if isinstance(called.value, ast.Name) else ""
            if owner in FUNCTIONS:
                found = called.attr in FUNCTIONS[owner]
            else:
                replaces = called.attr == "replace" and len(node.args) == 1 and not node.keywords
                opens = called.attr == "open" and _writes(node.args[:1], node)
                found = called.attr in METHODS or replaces or opens
        elif isinstance(called, ast.Name) and called.id == "open":
            found = _writes(node.args[1:2], node)
        if found:
            yield f"{path.relative_to(SOURCE)}:{node.lineno}: {ast.unparse(called)}"


def _writes(mode: list[ast.expr], call: ast.Call) -> bool:
    given = [*mode, *(each.value for each in call.keywords if each.arg == "mode")]
    return any(isinstance(each, ast.Constant) and set(str(each.value)) & set("wax+") for each in given)


def test_files_are_changed_only_through_one_module() -> None:
    found = {str(path.relative_to(SOURCE)): list(changes(path)) for path in sorted(SOURCE.rglob("*.py"))}
    assert [line for name, lines in found.items() if name not in EXEMPT for line in lines] == []
    assert {name for name in EXEMPT if not found[name]} == set(), "they are no longer exempt"
