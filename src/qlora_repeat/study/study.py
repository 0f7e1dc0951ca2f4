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
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study import cluster, data_sources, randomness
from qlora_repeat.study.cluster import Cluster
from qlora_repeat.study.data_sources import ROW_KEYS, STRICT, Base, Data, Name, PackageFile, Positive, Task
from qlora_repeat.study.old_spelling import respelled, respelled_part
from qlora_repeat.study.randomness import Randomness
from qlora_repeat.study.validation_message import explain

STUDIES = Path("studies")
PUBLISHED = "published"
"""The name of the paper's own numbers, where results of a study go by its name; no study has it."""

Dtype = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal["adamw-8bit", "adamw-32bit", "lion-8bit", "lion-32bit", "adamw-8bit+bitsandbytes-0.41.0"]
"""bitsandbytes' paged ones by the precision of their state; after +, the map of 8-bit state
(`qlora_repeat.stages.legacy_qmap`)."""

FrozenWeights = Literal["nf4", "materialized", "auto"]
"""Whether fine-tuning unpacks the 4-bit base for every product, or once and for good; "auto" does the latter
where memory allows and bits stay the same (`qlora_repeat.stages.dequantize`)."""


@dataclass(frozen=True, config=STRICT)
class Quantization:
    """How the frozen base is stored while fine-tuning (section VII-A)."""

    type: Literal["nf4", "fp4"]
    double: bool


@dataclass(frozen=True, config=STRICT)
class Precision:
    """Number formats: of arithmetic, and of the merged weights on disk."""

    compute: Dtype
    merged: Dtype


@dataclass(frozen=True, config=STRICT)
class Lora:
    """The adapter (section VII-A)."""

    r: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
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


@dataclass(frozen=True, config=STRICT)
class Sampling:
    """One way to draw a response."""

    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class Generation:
    """How responses are drawn (sections VII and IX)."""

    top_k: Annotated[int, Field(ge=0)]
    """0 switches it off; transformers' own default is 50."""
    samplings: Annotated[list[Sampling], Field(min_length=1)]
    """The first one is shown in the tables and timed."""


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """What the test measures."""

    batch_size: Positive
    """Fixed: another batch shape gives other last digits."""
    timing_repeats: Positive
    examples: Positive | None = None
    """The first so many of the test split are measured; otherwise all."""


@dataclass(frozen=True, config=STRICT)
class Ablation:
    """Section IX: testing a model that stays the same again and again."""

    responses: Positive
    """So often the first trial of each arm answers each prompt, each time with entropy drawn anew."""
    base_tests: Positive
    """So many processes measure the perplexity of each base model."""


@dataclass(frozen=True, config=STRICT)
class Tolerance:
    """How far `verify` lets a re-run be from the recorded trial, each relative to the recorded value."""

    first_loss: Annotated[float, Field(ge=0)]
    """Of the first step, before any update: the noise of one forward pass."""
    loss: Annotated[float, Field(ge=0)]
    """The mean over all steps."""
    adapter: Annotated[float, Field(ge=0)]
    """The norm of the difference of the adapters, relative to that of the recorded one."""
    perplexity: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
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


@dataclass(frozen=True, config=STRICT)
class Study:
    """A study as its file asks for it."""

    name: Name
    title: str
    trials: Positive
    threads: Positive
    """CPU threads of each trial. They change the last bits, so they belong to the study."""
    keep_merged: bool
    optimizers: Annotated[list[Optimizer], Field(min_length=1)]
    profile: Name
    """Of randomness: one of `profiles`."""
    profiles: dict[Name, Randomness]
    quantization: Quantization
    precision: Precision
    lora: Lora
    generation: Generation
    evaluation: Evaluation
    bases: dict[Name, Base]
    data: dict[Name, Data]
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    ablation: Ablation | None = None
    cluster: Cluster = field(default_factory=Cluster)
    """What `submit` asks of a scheduler; no result depends on it."""
    tolerance: dict[Optimizer, Tolerance] = field(default_factory=dict)
    """Of `verify`, for each optimizer: 8-bit state amplifies noise; defaults in
    `qlora_repeat.analysis.verify.verdict`."""
    weights: FrozenWeights = "auto"
    """Of the frozen base while fine-tuning. What is tested is the merged model, which has none in 4 bits."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints, from which a fine-tuning that was killed goes on."""
    digest_every: Positive = 10
    """Steps between digests of the adapter in the trace."""
    variant: str = ""
    """What of the file was changed from the command line; results of a variant have a folder of their own."""

    @property
    def label(self) -> str:
        """The study's name, and what was changed from the command line."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    @property
    def randomness(self) -> Randomness:
        """How the sources of randomness are set in this study's profile."""
        return self.profiles[self.profile]

    def __post_init__(self) -> None:
        if self.profile not in self.profiles:
            raise ValueError(f"profile is {self.profile!r}; the study has {', '.join(self.profiles)}")
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
    name = split_name(study)[0]
    return Path(name) if name.endswith(".toml") else STUDIES / f"{name}.toml"


def split_name(study: str) -> tuple[str, list[str]]:
    """The name or path of a study's file, and what follows after each @."""
    folder, slash, last = study.rpartition("/")
    name, *parts = last.split("@")
    return folder + slash + name, parts


def portable_name(study: str) -> str:
    """What others call the study: its name if its file is in ``studies``, else that of its file."""
    path, parts = study_path(study), split_name(study)[1]
    inside = path.resolve().parent == STUDIES.resolve()
    return "@".join([path.stem if inside else path.name, *parts])


def load_study(study: str) -> Study:
    """Reads and checks a study file.

    ``paper@bitwise`` is ``paper.toml`` with another of its profiles of randomness. ``paper@5-steps-8-rows``
    is it cut short, to try it out: at most so many optimizer steps, on the first so many rows of each part
    of the data. ``paper@materialized`` has its frozen weights so. All go together, in any order, and results
    have a folder of their own.

    Raises:
        MissingError: there is no such file; names the studies that there are.
        UsageError: the file is not TOML, a key is unknown, missing or out of range; what follows @ is none of
            the above; or it is named like the paper's numbers.
    """
    path = study_path(study)
    if path.stem == PUBLISHED:
        raise UsageError(
            f"{study}: this is the name of the paper's own numbers, which only `tables` and `paper` take; "
            "name a study otherwise"
        )
    try:
        content = respelled(tomllib.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        known = ", ".join(sorted(file.stem for file in STUDIES.glob("*.toml"))) or "none here"
        raise MissingError(f"{path}: no such study file; studies in {STUDIES}/: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not a readable TOML file: {error}") from None
    try:
        # As JSON: there, strict means that no text passes for a number, while a table may become a dataclass.
        as_json = json.dumps(_with_shared_training(_with_named_optimizers(content)), default=_refuse)
        loaded = TypeAdapter(Study).validate_json(as_json)
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error, _known_keys())}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if loaded.name != path.stem:  # or a copy of a study file would write over the results of the original
        raise UsageError(f"{path}: key name: must be the file's own, {path.stem!r} (found {loaded.name!r})")
    return _varied(_with_own_files(loaded, path.parent), split_name(study)[1])


def _with_own_files(study: Study, folder: Path) -> Study:
    """The study with the paths of files of no package, which its file tells from where it is."""

    def found(file: PackageFile | None) -> PackageFile | None:
        own = file is not None and file.package is None
        return replace(file, file=str(folder / file.file)) if file is not None and own else file

    return replace(
        study,
        bases={
            name: replace(base, gguf=found(base.gguf), tokenizer=found(base.tokenizer))
            for name, base in study.bases.items()
        },
        data={name: replace(data, file=found(data.file)) for name, data in study.data.items()},
    )


def _varied(study: Study, parts: list[str]) -> Study:
    """The study with what follows its name: another profile, one optimizer, cut short, or all of these."""
    parts = [respelled_part(part) for part in parts]
    optimizers = [part for part in get_args(Optimizer) if part in parts]
    profiles = {part for part in parts if part in study.profiles}
    frozen = [part for part in get_args(FrozenWeights) if part in parts and part not in profiles]
    cuts = {part for part in parts if part not in (*study.profiles, *optimizers, *frozen)}
    if max(len(profiles), len(optimizers), len(frozen), len(cuts)) > 1:
        raise UsageError(
            f"study {'@'.join([study.name, *parts])}: give one profile, one optimizer, one cut and "
            "one kind of frozen weights at most"
        )
    for cut in cuts:
        study = _cut_short(study, cut)
    for weights in frozen:
        if weights != study.weights:
            study = replace(study, weights=weights, variant=_joined(weights, study.variant))
    for optimizer in optimizers:
        if study.optimizers != [optimizer]:
            study = replace(study, optimizers=[optimizer], variant=_joined(optimizer, study.variant))
    for profile in profiles:
        if profile != study.profile:
            study = replace(study, profile=profile, variant=_joined(profile, study.variant))
    return study


def _joined(*parts: str) -> str:
    return "@".join(filter(None, parts))


def _cut_short(study: Study, variant: str) -> Study:
    found = re.fullmatch(r"([1-9]\d*)-steps(?:-([1-9]\d*)-rows)?|([1-9]\d*)-rows", variant)
    if found is None:
        raise UsageError(
            f"study {study.name}@{variant}: after @ comes a profile of randomness "
            f"({', '.join(study.profiles)}), an optimizer ({', '.join(get_args(Optimizer))}), "
            f"frozen weights ({', '.join(get_args(FrozenWeights))}), "
            "or N-steps, N-rows or N-steps-N-rows to cut the study short"
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


def _with_named_optimizers(content: dict[str, Any]) -> dict[str, Any]:
    """Gives an optimizer with a ``state_map`` the name of its arm, before validation."""
    if not isinstance(content.get("optimizers"), list):
        return content
    names = []
    for place, table in enumerate(content["optimizers"]):
        if isinstance(table, dict) and sorted(table) != ["optimizer", "state_map"]:
            raise ValueError(f"optimizers.{place}: give optimizer and state_map, or a name alone")
        names.append(f"{table['optimizer']}+{table['state_map']}" if isinstance(table, dict) else table)
    return content | {"optimizers": names}


def _known_keys() -> list[str]:
    found = [
        *globals().values(),
        *vars(data_sources).values(),
        *vars(randomness).values(),
        *vars(cluster).values(),
    ]
    kinds = [kind for kind in found if isinstance(kind, type) and is_dataclass(kind)]
    return sorted({item.name for kind in kinds for item in fields(kind)})
