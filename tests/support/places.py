"""Workspaces for tests."""

from pathlib import Path

from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.study import Study
from qlora_repeat.study.workspace import Workspace

NO_RUNS, NO_CACHE = Path("no-runs"), Path("no-cache")
"""Folders for tests that need only one of the two."""


def at(study: Study | Path | str, runs: Path, cache: Path = NO_CACHE) -> Workspace:
    """Return the workspace of a study, or of a study file, with these folders for results and cache."""
    if isinstance(study, Study):
        lock = (cache if runs == NO_RUNS else runs) / "study.lock"
        return Workspace(study, runs, cache, lock, Path(f"{study.name}.toml"), study.name)
    return open_workspace(str(study), runs=runs, cache=cache)
