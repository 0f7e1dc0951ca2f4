"""Where models and data come from: a hub, files, packages that have or generate them, or the kit itself."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Task = Literal["text-generation", "question-answering"]

Row = dict[str, str]
ROW_KEYS: dict[Task, list[str]] = {
    "text-generation": ["quote"],
    "question-answering": ["instruction", "answer"],
}
"""What a row of each task's data consists of, in the order in which a template must have it."""


@dataclass(frozen=True, config=STRICT)
class PackageFile:
    """A file that an installed Python package carries; without a package, one of the user's own."""

    file: str
    """The path inside the package's folder, which begins with the import name; or from the study's file."""
    sha256: Sha256
    package: str | None = None
    """The package's name on the index, with the version: what an error tells the user to install."""

    @property
    def identity(self) -> dict[str, str]:
        """What tells it from others: of the user's own, not where it is."""
        where = {"package": self.package, "file": self.file} if self.package is not None else {}
        return {**where, "sha256": self.sha256}

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return self.file if self.package is None else f"package {self.package}"


@dataclass(frozen=True, config=STRICT)
class Hub:
    """A repository of models or data on a hub."""

    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: str
    """A commit; a branch or tag is resolved to one at the first fetch, and locked."""
    files: str = "*"
    """Which of its files hold the rows (data only), as a pattern."""


@dataclass(frozen=True, config=STRICT)
class Pretraining:
    """A small GPT-NeoX that the kit pretrains itself, once, while fetching (no package carries one)."""

    hidden_size: Annotated[int, Field(ge=192)]
    """At least 192: below, every adapter tensor is so small that an 8-bit optimizer keeps 32-bit state."""
    layers: Positive
    heads: Positive
    seed: Seed
    fortune_steps: Positive
    question_steps: Positive
    """Steps on questions, which come after those on fortunes."""
    batch_size: Positive
    length: Positive
    """Tokens in each row of a batch."""
    learning_rate: Annotated[float, Field(gt=0)]
    question_seed: Seed
    """Seed of the questions to pretrain on; another than the study's own."""
    threads: Positive = 2
    """CPU threads, part of what determines the bits."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the hidden size {self.hidden_size}")


@dataclass(frozen=True, config=STRICT)
class Base:
    """A base model: on a hub, in a GGUF file of a package, or to be pretrained for a tokenizer."""

    hub: Hub | None = None
    gguf: PackageFile | None = None
    tokenizer: PackageFile | None = None
    pretraining: Pretraining | None = None
    architecture: dict[str, str | int | float | bool] | None = None
    """Its configuration, `model_type` and sizes, for planning before anything is fetched."""

    def __post_init__(self) -> None:
        pretrained = self.tokenizer is not None and self.pretraining is not None
        if [self.hub is not None, self.gguf is not None, pretrained].count(True) != 1:
            raise ValueError("give one of hub, gguf, or both tokenizer and pretraining")


@dataclass(frozen=True, config=STRICT)
class Data:
    """A dataset (section III): where its rows come from, how many, and what its models are asked."""

    task: Task
    source: Literal["hub", "file", "fortunes", "reasoning-gym"]
    rows: Positive
    """So many there must be."""
    max_new_tokens: Positive
    """Of a response to one of the prompts."""
    hub: Hub | None = None
    file: PackageFile | None = None
    """Its rows are read as those of a hub are, or are the paragraphs of a .txt, in a column `text`."""
    columns: dict[Literal["quote", "instruction", "answer"], str] = field(default_factory=dict)
    """Hub, file: which column is the quote, or the instruction and the answer; the others are left out."""
    seed: Seed | None = None
    """Chooses the rows (fortunes) or generates them (reasoning-gym)."""
    sha256: Sha256 | None = None
    """Of the rows as JSON Lines, before the split; a hub's are locked, and a file has its own."""
    families: list[str] = field(default_factory=list)
    """Task families of reasoning-gym, equally often."""
    families_with_options: list[str] = field(default_factory=list)
    """Families whose questions end in four options, A to D, one of them right."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    prompts: list[str] = field(default_factory=list)
    """Text generation: the prompts. Question answering: how the test rows to be asked begin."""
    max_rows: Positive | None = None
    """Train and test on the first so many of each part only."""

    def __post_init__(self) -> None:
        given = [name for name, origin in (("hub", self.hub), ("file", self.file)) if origin is not None]
        if self.source in ("hub", "file"):
            if given != [self.source] or sorted(self.columns) != sorted(ROW_KEYS[self.task]):
                keys = " and ".join(ROW_KEYS[self.task])
                raise ValueError(f"source {self.source} needs {self.source} alone, and columns for {keys}")
            return
        if given or self.columns or self.seed is None or self.sha256 is None:
            raise ValueError(f"source {self.source} needs seed and sha256, and has no hub, file or columns")
        if (self.task == "text-generation") != (self.source == "fortunes"):
            raise ValueError("fortunes are for text-generation, reasoning-gym is for question-answering")
        if self.source == "reasoning-gym" and not self.families and not self.families_with_options:
            raise ValueError("give families or families_with_options")
