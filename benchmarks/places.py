"""Workspaces for benchmarks."""

from pathlib import Path

from qlora_repeat.study.loading import cache_folder
from qlora_repeat.study.study import Study
from qlora_repeat.study.workspace import Workspace


def at(study: Study, runs: Path = Path(), cache: Path | None = None) -> Workspace:
    """Return the study's workspace with results in this folder; the default cache holds models and data."""
    lock, file = runs / "study.lock", Path(f"{study.name}.toml")
    return Workspace(study, runs, cache or cache_folder(), lock, file, study.name)
