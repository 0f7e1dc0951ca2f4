"""Where a test has a study's results, its models and data."""

from pathlib import Path

from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.study import Study
from qlora_repeat.study.workspace import Workspace

NO_RUNS, NO_CACHE = Path("no-runs"), Path("no-cache")
"""For what looks at only one of the two."""


def at(study: Study | Path | str, runs: Path, cache: Path = NO_CACHE) -> Workspace:
    """A study, or that of a file, with its results in one folder and its models and data in another."""
    if isinstance(study, Study):
        return Workspace(study, runs, cache, runs / "study.lock", Path(f"{study.name}.toml"), study.name)
    return open_workspace(str(study), runs=runs, cache=cache)
