"""A study with its folders of results, models and data, and its lock file."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qlora_repeat.errors import UsageError
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import BaseTest, Trial

ARCHIVE_MARK = "ro-crate-metadata.json"
"""The file that every archive of the kit has at its top."""
STRANGERS = "strangers"
"""The part of the cache for studies that came in an archive."""


@dataclass(frozen=True, repr=False)
class Workspace:
    """A study and the paths of everything that belongs to it."""

    study: Study
    runs: Path
    """The folder with the results of all studies."""
    cache: Path
    """The folder of models and data."""
    lock: Path
    """The file with the commits and digests of what was fetched from hubs."""
    file: Path
    """The study file."""
    given: str
    """The study as the user gave it, for commands in messages."""
    from_archive: bool = False
    """Whether the study file, or one that it extends, came in an archive, so that its packer wrote it."""
    parents: tuple[Path, ...] = ()
    """The files of the studies that it extends."""
    places: Mapping[str, str] = field(default_factory=dict)
    """The options ``--runs`` and ``--cache`` that the user gave, for commands in messages."""

    def __repr__(self) -> str:
        return f"<Study {self.study.label}: {len(self.trials())} trials, results in {self.folder}>"

    def command(self, name: str, *options: str, trial: str | None = None) -> str:
        """Return a command of the kit for this study, or for a trial of it, as the user would type it."""
        chosen = [self.given] if trial is None else [trial, "--study", self.given]
        known = self.places.items() if name != "fetch" else [("--cache", self.places.get("--cache"))]
        places = [word for option, place in known if place for word in (option, place)]
        return shlex.join(["qlora-repeat", name, *chosen, *options, *places])

    @property
    def has_evidence(self) -> bool:
        """Whether the results are those of an unpacked archive, in which no command may change anything."""
        top = self.runs.resolve().parent
        return all((top / name).is_file() for name in (ARCHIVE_MARK, "SHA256SUMS"))

    @property
    def assets(self) -> Path:
        """The folder that models and data are put into; what a stranger asks for is kept apart."""
        return self.cache / STRANGERS if self.from_archive else self.cache

    @property
    def folder(self) -> Path:
        """The folder with all results of the study."""
        return self.runs / self.study.label

    @property
    def results(self) -> Path:
        """The file of the collected results."""
        return self.folder / "results.jsonl"

    @property
    def statistics(self) -> Path:
        """The file of the statistics of the collected results."""
        return self.folder / "statistics.json"

    def trials(self) -> list[Trial]:
        """Return every trial of the study, ordered by model, optimizer and number; averages are last."""
        return [
            Trial(self, model, optimizer, number)
            for model in self.study.models
            for optimizer, count in self.study.arms.items()
            for number in range(1, count + 1)
        ]

    def trial(self, name: str) -> Trial:
        """Return the trial with the name ``model/optimizer/number``.

        Raises:
            UsageError: the study has no such trial; the message names the wrong part.
        """
        study, parts = self.study, name.strip("/").split("/")
        if len(parts) != 3:
            example = f"{next(iter(study.models))}/{study.optimizers[0]}/1"
            raise UsageError(f"trial {name!r}: a trial is named model/optimizer/number, such as {example}")
        model, optimizer, number = parts
        parts_known = ((model, study.models, "models"), (optimizer, study.arms, "optimizers"))
        for part, known, kind in parts_known:
            if part not in known:
                raise UsageError(f"trial {name!r}: study {study.name} has the {kind} {', '.join(known)}")
        count = study.arms[optimizer]
        if not number.isdecimal() or len(number) > 9 or not 1 <= int(number) <= count:
            raise UsageError(f"trial {name!r}: study {study.name} numbers its trials 1 to {count}")
        return Trial(self, model, optimizer, int(number))

    def base_tests(self, *models: str) -> list[BaseTest]:
        """Return the tests of these models' bases (default: all): one each, or several for an ablation."""
        ablation = self.study.ablation
        numbers = range(1, 1 + (ablation.base_tests if ablation else 1))
        return [BaseTest(self, model, number) for model in models or self.study.models for number in numbers]
