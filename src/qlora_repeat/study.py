"""A study: everything that one TOML file asks for, read into typed, frozen dataclasses.

Section numbers in the field notes are those of the paper (Alahmari et al., IEEE Access 2024). A table
``[models.NAME.training]`` overrides single keys of ``[training]`` for that model, as the paper does for
learning rate, schedule and length.
"""

import json
import math
import re
import string
import tomllib
from dataclasses import field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.explain import explain

STUDIES = Path("studies")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Dtype = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal["adamw-8bit", "adamw-32bit"]
Task = Literal["text-generation", "question-answering"]

ROW_KEYS: dict[Task, list[str]] = {
    "text-generation": ["quote"],
    "question-answering": ["instruction", "answer"],
}
"""What a row of each task's data consists of, in the order in which a template must have it."""


@dataclass(frozen=True, config=_STRICT)
class PackageFile:
    """A file that an installed Python package carries."""

    package: str
    """The package's name on the index, with the version: what an error tells the user to install."""
    file: str
    """The path inside the package's folder, which begins with the import name."""
    sha256: Sha256


@dataclass(frozen=True, config=_STRICT)
class Hub:
    """A repository of models or data on a hub."""

    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: str
    """A commit; a branch or tag is resolved to one at the first fetch, and locked."""
    files: str = "*"
    """Which of its files hold the rows (data only), as a pattern."""


@dataclass(frozen=True, config=_STRICT)
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


@dataclass(frozen=True, config=_STRICT)
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


@dataclass(frozen=True, config=_STRICT)
class Data:
    """A dataset (section III): where its rows come from, how many, and what its models are asked."""

    task: Task
    source: Literal["hub", "fortunes", "reasoning-gym"]
    rows: Positive
    """So many there must be."""
    max_new_tokens: Positive
    """Of a response to one of the prompts."""
    hub: Hub | None = None
    columns: dict[Literal["quote", "instruction", "answer"], str] = field(default_factory=dict)
    """Hub: which of its columns is the quote, or the instruction and the answer; the others are left out."""
    seed: Seed | None = None
    """Chooses the rows (fortunes) or generates them (reasoning-gym)."""
    sha256: Sha256 | None = None
    """Of the rows as JSON Lines, before the split; those of a hub are locked file by file instead."""
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
        if self.source == "hub":
            if self.hub is None or sorted(self.columns) != sorted(ROW_KEYS[self.task]):
                raise ValueError(f"source hub needs hub, and columns for {' and '.join(ROW_KEYS[self.task])}")
            return
        if self.hub is not None or self.columns or self.seed is None or self.sha256 is None:
            raise ValueError(f"source {self.source} needs seed and sha256, and has neither hub nor columns")
        if (self.task == "text-generation") != (self.source == "fortunes"):
            raise ValueError("fortunes are for text-generation, reasoning-gym is for question-answering")
        if self.source == "reasoning-gym" and not self.families and not self.families_with_options:
            raise ValueError("give families or families_with_options")


@dataclass(frozen=True, config=_STRICT)
class Randomness:
    """A seed for each source of randomness, or "fresh": entropy drawn in each trial, and recorded."""

    split: Seed
    adapter_init: Seed | Literal["fresh"]
    data_order: Seed
    dropout: Seed
    generation: Seed


@dataclass(frozen=True, config=_STRICT)
class Quantisation:
    """How the frozen base is stored while fine-tuning (section VII-A)."""

    type: Literal["nf4", "fp4"]
    double: bool


@dataclass(frozen=True, config=_STRICT)
class Precision:
    """Number formats: of arithmetic, and of the merged weights on disk."""

    compute: Dtype
    merged: Dtype


@dataclass(frozen=True, config=_STRICT)
class Lora:
    """The adapter (section VII-A)."""

    r: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=_STRICT)
class Training:
    """Fine-tuning (section VII). Either steps or epochs."""

    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["constant", "linear", "cosine", "constant_with_warmup"]
    batch_size: Positive
    max_length: Positive
    """Tokens; longer examples are cut."""
    max_grad_norm: Annotated[float, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_steps: Annotated[int, Field(ge=0)]
    gradient_checkpointing: bool
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    max_steps: Positive | None = None
    """Ends the epochs early."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")

    def total_steps(self, examples: int) -> int:
        """The optimizer steps of a trial that has so many examples."""
        steps = self.steps or math.ceil((self.epochs or 0) * math.ceil(examples / self.batch_size))
        return min(steps, self.max_steps or steps)


@dataclass(frozen=True, config=_STRICT)
class Sampling:
    """One way to draw a response."""

    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=_STRICT)
class Generation:
    """How responses are drawn (sections VII and IX)."""

    top_k: Annotated[int, Field(ge=0)]
    """0 switches it off; transformers' own default is 50."""
    samplings: Annotated[list[Sampling], Field(min_length=1)]
    """The first one is shown in the tables and timed."""


@dataclass(frozen=True, config=_STRICT)
class Evaluation:
    """What the test measures."""

    batch_size: Positive
    """Fixed: another batch shape gives other last digits."""
    timing_repeats: Positive
    examples: Positive | None = None
    """The first so many of the test split are measured; otherwise all."""


@dataclass(frozen=True, config=_STRICT)
class Ablation:
    """Section IX: testing a model that stays the same again and again."""

    responses: Positive
    """So often the first trial of each arm answers each prompt, each time with entropy drawn anew."""
    base_tests: Positive
    """So many processes measure the perplexity of each base model."""


@dataclass(frozen=True, config=_STRICT)
class Model:
    """One of the study's models: a base, the data it is fine-tuned on, and how a row becomes text."""

    title: str
    base: Name
    data: Name
    template: str
    """The text of a row; ``{quote}``, or ``{instruction}`` and ``{answer}``."""
    target_modules: Annotated[list[str], Field(min_length=1)]
    training: Training
    stop: str | None = None
    """A response ends where this text begins."""
    special_tokens: bool = True
    """Whether the tokenizer adds its own (Llama's begins each text with one)."""
    counterpart: str | None = None
    """The paper's model that this one is to be compared with."""


@dataclass(frozen=True, config=_STRICT)
class Study:
    """A study as its file asks for it."""

    name: Name
    title: str
    trials: Positive
    threads: Positive
    """CPU threads of each trial. They change the last bits, so they belong to the study."""
    keep_merged: bool
    optimizers: Annotated[list[Optimizer], Field(min_length=1)]
    randomness: Randomness
    quantisation: Quantisation
    precision: Precision
    lora: Lora
    generation: Generation
    evaluation: Evaluation
    bases: dict[Name, Base]
    data: dict[Name, Data]
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    ablation: Ablation | None = None
    variant: str = ""
    """What of the file was changed from the command line; results of a variant have a folder of their own."""

    @property
    def label(self) -> str:
        """The study's name, and what was changed from the command line."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    def __post_init__(self) -> None:
        for name, model in self.models.items():
            for key, known in (("base", self.bases), ("data", self.data)):
                value = getattr(model, key)
                if value not in known:
                    raise ValueError(f"models.{name}.{key} is {value!r}; the study has {', '.join(known)}")
            if not self.data[model.data].prompts:
                raise ValueError(f"data.{model.data}.prompts is empty; the models need something to answer")
            _check_template(f"models.{name}.template", model.template, self.data[model.data].task)
        if len(set(self.optimizers)) < len(self.optimizers):
            raise ValueError("optimizers names one twice")


def _check_template(key: str, template: str, task: Task) -> None:
    wanted = ROW_KEYS[task]
    try:
        found = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{key}: {error}; write a brace that is meant as such twice") from None
    if found != [(name, "", None) for name in wanted]:
        listed = ", then ".join(f"{{{name}}}" for name in wanted)
        raise ValueError(f"{key} must have {listed}, and no others")


def study_path(study: str) -> Path:
    """The file of a study given by name (``pocket``) or by path (``elsewhere/mine.toml``)."""
    name = re.sub(r"@[^/]*$", "", study)
    return Path(name) if name.endswith(".toml") else STUDIES / f"{name}.toml"


def load_study(study: str) -> Study:
    """Reads and checks a study file.

    ``paper@5-steps-8-rows`` is ``paper.toml`` cut short, to try it out: at most so many optimizer steps, on
    the first so many rows of each part of the data. Its results have a folder of their own.

    Raises:
        MissingError: there is no such file; names the studies that there are.
        UsageError: the file is not TOML, a key is unknown, missing or out of range, or what follows @ is not
            ``N-steps``, ``N-rows`` or ``N-steps-N-rows``.
    """
    path = study_path(study)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        known = ", ".join(sorted(file.stem for file in STUDIES.glob("*.toml"))) or "none here"
        raise MissingError(f"{path}: no such study file; studies in {STUDIES}/: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not a readable TOML file: {error}") from None
    try:
        # As JSON: there, strict means that no text passes for a number, while a table may become a dataclass.
        as_json = json.dumps(_with_shared_training(content), default=_refuse)
        loaded = TypeAdapter(Study).validate_json(as_json)
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error, _known_keys())}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if loaded.name != path.stem:  # or a copy of a study file would write over the results of the original
        raise UsageError(f"{path}: key name: must be the file's own, {path.stem!r} (found {loaded.name!r})")
    return _cut_short(loaded, found[1]) if (found := re.search(r"@([^/]*)$", study)) else loaded


def _cut_short(study: Study, variant: str) -> Study:
    found = re.fullmatch(r"([1-9]\d*)-steps(?:-([1-9]\d*)-rows)?|([1-9]\d*)-rows", variant)
    if found is None:
        raise UsageError(
            f"study {study.name}@{variant}: after @ come N-steps, N-rows or N-steps-N-rows, to cut it short"
        )
    steps, rows = int(found[1] or 0), int(found[2] or found[3] or 0)  # 0: as many as the file says
    models, data = dict(study.models), dict(study.data)
    for name, model in study.models.items() if steps else ():
        most = min(steps, model.training.max_steps or steps)
        models[name] = replace(model, training=replace(model.training, max_steps=most))
    for name, each in study.data.items() if rows else ():
        data[name] = replace(each, max_rows=min(rows, each.max_rows or rows))
    return replace(study, models=models, data=data, variant=variant)


def _refuse(value: object) -> None:
    raise ValueError(f"{value} is not a text, number, list or table")


def _with_shared_training(content: dict[str, Any]) -> dict[str, Any]:
    """Gives every model a complete [training] of its own, before validation."""
    shared = content.pop("training", {})
    models = content.get("models")
    if isinstance(shared, dict) and isinstance(models, dict):
        for model in models.values():
            if isinstance(model, dict) and isinstance(model.get("training", {}), dict):
                own = model.get("training", {})
                other = {"steps": "epochs", "epochs": "steps"}
                kept = {key: value for key, value in shared.items() if other.get(key) not in own}
                model["training"] = kept | own
    return content


def _known_keys() -> list[str]:
    kinds = [kind for kind in globals().values() if isinstance(kind, type) and is_dataclass(kind)]
    return sorted({item.name for kind in kinds for item in fields(kind)})
