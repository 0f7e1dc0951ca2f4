"""Where a benchmark has a study's results, its models and data."""

from pathlib import Path

from qlora_repeat.study.loading import cache_folder
from qlora_repeat.study.study import Study
from qlora_repeat.study.workspace import Workspace


def at(study: Study, runs: Path = Path(), cache: Path | None = None) -> Workspace:
    """The study with its results in a folder; its models and data are where they always are."""
    lock, file = runs / "study.lock", Path(f"{study.name}.toml")
    return Workspace(study, runs, cache or cache_folder(), lock, file, study.name)
