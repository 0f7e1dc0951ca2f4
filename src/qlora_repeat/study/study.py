"""A study: everything that one TOML file asks for, as typed, frozen dataclasses; `loading` reads it.

Section numbers in the field notes are those of the paper (Alahmari et al., IEEE Access 2024). A table
``[models.NAME.training]`` overrides single keys of ``[training]`` for that model, as the paper does for
learning rate, schedule and length.
"""

import math
import string
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from qlora_repeat.study.cluster import Cluster
from qlora_repeat.study.data_sources import ROW_KEYS, STRICT, Base, Data, Name, Positive, Task
from qlora_repeat.study.optimizers import OptimizerName
from qlora_repeat.study.randomness import Randomness

PUBLISHED = "published"
"""The name of the paper's own numbers, where results of a study go by its name; no study has it."""

Dtype = Literal["float32", "bfloat16", "float16"]
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
    optimizers: Annotated[list[OptimizerName], Field(min_length=1)]
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
    tolerance: dict[OptimizerName, Tolerance] = field(default_factory=dict)
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
