"""The benchmarks of a study: which tasks of lm-evaluation-harness it names, and the user's own task files."""

import re
import shlex
import sys
from pathlib import Path

from qlora_repeat.errors import MissingError
from qlora_repeat.study.data_sources import is_own_task
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.fingerprint import installed_version
from qlora_repeat.system.hashing import json_digest, known_digest
from qlora_repeat.system.package_data import WHEEL_DATA

PACKAGE = "lm_eval"
_QUOTED_OR_PLAIN = re.compile(r"\"([^\"\n]+)\"|'([^'\n]+)'|([\w./+-]+)")
_MOST_FILES = 1000


def why_not(workspace: Workspace) -> str | None:
    """Return a line that says why the benchmarks of a study cannot run here; None if they can.

    A task file can run any code (``!function``, templates), so none that came in an archive is read.
    """
    own = [task for task in workspace.study.evaluation.lm_eval if is_own_task(task)]
    if own and workspace.from_archive:
        return (
            f"{workspace.file}: key evaluation.lm_eval: {Path(own[0]).name} is a task file, which can run "
            "any code, and this study came in an archive; only tasks of lm-evaluation-harness itself run"
        )
    if installed_version(PACKAGE) is None:
        install = f"{shlex.quote(sys.executable)} -m pip install 'qlora-repeat[lm-eval]'"
        command = install if WHEEL_DATA.is_dir() else "make lm-eval"
        return f"{workspace.study.name}: benchmarks need lm-evaluation-harness; run `{command}`"
    return None


def own_task_files(task: str) -> list[Path]:
    """Return the YAML files of one's own task: the file itself, or those in the folder.

    Raises:
        MissingError: there is no such file, or no YAML file in the folder.
    """
    path = Path(task)
    if path.is_file():
        return [path]
    files = [each for each in sorted(path.glob("*.y*ml")) if each.is_file()] if path.is_dir() else []
    if not files:
        raise MissingError(
            f"{path}: key evaluation.lm_eval: expected a task file (YAML) or a folder with some"
        )
    return files


def own_task_digests(workspace: Workspace) -> dict[str, str] | None:
    """Return a digest of each of one's own tasks, by file or folder name; None if one cannot be read here."""
    own = [task for task in workspace.study.evaluation.lm_eval if is_own_task(task)]
    if own and workspace.from_archive:
        return None
    try:
        return {Path(task).name: _digest(own_task_files(task)) for task in own}
    except (MissingError, OSError, UnicodeDecodeError):
        return None


def _digest(files: list[Path]) -> str:
    """Return the digest of task files, and of all files that they name: code, rows, templates."""
    found: dict[Path, str] = {}
    waiting = list(files)
    while waiting and len(found) < _MOST_FILES:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = known_digest(path)
        if path in files or path.suffix in ("", ".yaml", ".yml"):
            for match in _QUOTED_OR_PLAIN.finditer(path.read_text(encoding="utf-8")):
                word = next(filter(None, match.groups()))
                code = word.rpartition(".")[0].replace(".", "/") + ".py"  # `!function code.name`
                waiting += [each for name in (word, code) if _is_file(each := path.parent / name)]
    return json_digest(sorted([path.name, digest] for path, digest in found.items()))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a word that is no file name
        return False
