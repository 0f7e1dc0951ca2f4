"""A study: the content of a TOML file as typed, frozen dataclasses. `loading` reads the file.

Section numbers are those of the paper (Alahmari et al., IEEE Access 2024). A table ``[models.NAME.training]``
overrides keys of ``[training]`` for that model, as the paper does for learning rate, schedule and length.
"""

import math
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from qlora_repeat.study.averaging import Averaging
from qlora_repeat.study.cluster import Cluster, StudyCluster
from qlora_repeat.study.data_sources import (
    ROW_KEYS,
    STRICT,
    Base,
    Data,
    Few,
    Line,
    Name,
    NotNegative,
    Positive,
    Rows,
    Text,
)
from qlora_repeat.study.optimizers import OptimizerName
from qlora_repeat.study.randomness import PROFILES, Randomness
from qlora_repeat.study.scores import Answers
from qlora_repeat.study.template import CHAT, check_template
from qlora_repeat.system.typed_json import worded

PUBLISHED = "published"
"""The name that stands for the paper's numbers instead of a study; no study may have it."""

MOST_TRIALS = 10_000
"""The most trials of a study."""
MOST_EXAMPLES = 10_000_000
"""The most examples in all steps of a trial, whose order is kept in memory."""
BatchSize = Annotated[int, Field(gt=0, le=10_000)]
Dtype = Literal["float32", "bfloat16", "float16"]
Device = Literal["auto", "gpu"]
"""What a study runs on: a GPU, or with "auto" the CPU if there is no GPU."""
Loss = Literal["all-tokens", "answer"]
"""The tokens that fine-tuning learns to predict, and that perplexity is of."""
FrozenWeights = Literal["nf4", "materialized", "auto"]
"""Whether fine-tuning dequantizes the 4-bit base for every product or once; "auto" does it once if memory
allows and the bits stay the same (`qlora_repeat.stages.dequantize`)."""


@dataclass(frozen=True, config=STRICT)
class Quantization:
    """How the frozen base is stored during fine-tuning (section VII-A)."""

    type: Literal["nf4", "fp4", "int8", "none"] = "nf4"
    """In 4 bits, in 8 bits, or as the precision of arithmetic has it, which is plain LoRA."""
    double: bool = True
    """Whether the scales of 4-bit weights are quantized too."""

    @property
    def in_4_bits(self) -> bool:
        """Whether the base is in 4 bits."""
        return self.type in ("nf4", "fp4")


@dataclass(frozen=True, config=STRICT)
class Precision:
    """The number formats of arithmetic and of the merged weights on disk."""

    compute: Dtype = "bfloat16"
    """The default has the range of float32, so no model overflows; the paper has float16 (section VII-A)."""
    merged: Dtype = "float16"
    """The default keeps three more bits of each weight than bfloat16."""


@dataclass(frozen=True, config=STRICT)
class Lora:
    """The adapter, by default as in the paper (section VII-A)."""

    r: Annotated[int, Field(gt=0, le=10_000)] = 8
    alpha: Annotated[int, Field(gt=0, le=10**6)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    rslora: bool = False
    """Whether BA is scaled by alpha / sqrt(r) (Kalajdzievski, arXiv 2312.03732), not by alpha / r."""
    dora: bool = False
    """Whether magnitudes of the rows of the weights are learned too (Liu et al., arXiv 2402.09353)."""


@dataclass(frozen=True, config=STRICT)
class Training:
    """Settings of fine-tuning, with either steps or epochs. The defaults are the paper's (section VII), or
    those of transformers' Trainer."""

    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 2e-4
    schedule: Literal["constant", "linear", "cosine", "constant_with_warmup"] = "linear"
    batch_size: BatchSize = 1
    max_length: Annotated[int, Field(gt=0, le=10**6)] = 512
    """In tokens; longer examples are cut."""
    loss: Loss = "all-tokens"
    """Learn to predict all tokens, or only those of the answer (of a chat, of all answers)."""
    gradient_accumulation_steps: BatchSize = 1
    """The batches of an optimizer step, whose loss is the mean over the predicted tokens of all."""
    max_grad_norm: NotNegative = 1.0
    weight_decay: NotNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The share of all steps that warm up, instead of warmup_steps."""
    gradient_checkpointing: bool = False
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """In a study file, the default is 3 if steps is not given either (section VII)."""
    max_steps: Positive | None = None
    """The most optimizer steps, for any steps or epochs."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.warmup_ratio is not None and self.warmup_steps:
            raise ValueError("give either warmup_steps or warmup_ratio")
        if self.warmup_ratio and self.schedule == "constant":
            raise ValueError("schedule constant has no warm-up for warmup_ratio; give constant_with_warmup")

    @property
    def examples_per_step(self) -> int:
        """The most examples of an optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps

    def total_steps(self, examples: int) -> int:
        """Return the number of optimizer steps for this number of training examples."""
        steps = self.steps or math.ceil((self.epochs or 0) * self.steps_per_epoch(examples))
        return min(steps, self.max_steps or steps)

    def steps_per_epoch(self, examples: int) -> int:
        """Return the number of optimizer steps of an epoch, of which the last may have fewer examples."""
        return math.ceil(examples / self.examples_per_step)

    def warmup(self, steps: int) -> int:
        """Return how many of all steps warm up, rounded up as in transformers."""
        return self.warmup_steps if self.warmup_ratio is None else math.ceil(self.warmup_ratio * steps)


@dataclass(frozen=True, config=STRICT)
class Sampling:
    """One way to draw a response."""

    temperature: Annotated[float, Field(gt=0, le=10**6)]
    top_p: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class Generation:
    """How responses are sampled (sections VII and IX)."""

    top_k: Annotated[int, Field(ge=0, le=10**6)] = 50
    """0 disables it; the default is that of transformers."""
    samplings: Annotated[list[Sampling], Field(min_length=1, max_length=100)] = field(
        default_factory=lambda: [Sampling(1.0, 1.0), Sampling(0.1, 0.1)]
    )
    """The first is shown in the tables and timed. The default is the paper's two."""


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """Settings of the evaluation and of timing."""

    batch_size: BatchSize = 1
    """Part of the study, because another batch shape changes the last digits."""
    timing_repeats: Few = 3
    examples: Rows | None = None
    """Evaluate only the first N test examples (default: all)."""
    answers: Answers = field(default_factory=Answers)
    """For classification and summarization; other tasks do not depend on it."""
    lm_eval: Annotated[list[Annotated[Line, Field(min_length=1)]], Field(max_length=1000)] = field(
        default_factory=list
    )
    """Benchmarks of EleutherAI's lm-evaluation-harness: names of its tasks, or paths of one's own task files
    or folders with them."""
    lm_eval_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Solved examples in each prompt of a benchmark (default: as the task says)."""
    lm_eval_examples: Rows | None = None
    """Use only the first N examples of each benchmark (default: all)."""

    def __post_init__(self) -> None:
        if len(set(self.lm_eval)) < len(self.lm_eval):
            raise ValueError("lm_eval has a duplicate")


@dataclass(frozen=True, config=STRICT)
class Ablation:
    """Repeated tests of an unchanged model (section IX)."""

    responses: Few
    """How many responses the first trial of each arm gives to each prompt, each with a fresh seed."""
    base_tests: Few
    """How many times the perplexity of each base model is measured, each time in its own process."""


@dataclass(frozen=True, config=STRICT)
class Tolerance:
    """How much a re-run may differ from the recorded trial in `verify`, relative to the recorded value."""

    first_loss: NotNegative
    """The loss of the first step, before any update, which has the noise of one forward pass."""
    loss: NotNegative
    """The mean loss over all steps."""
    adapter: NotNegative
    """The norm of the difference between the adapters, relative to the norm of the recorded adapter."""
    perplexity: NotNegative


@dataclass(frozen=True, config=STRICT)
class Model:
    """A model of the study: a base, the data to fine-tune it on, and how a row becomes text."""

    title: Line
    """In a study file, the default is the model's name."""
    base: Name
    """In a study file, the default is the only base."""
    data: Name
    """In a study file, the default is the only dataset."""
    template: Text
    """The text of a row, with ``{quote}``, or ``{instruction}`` and ``{answer}``, and other columns; or
    "chat", the chat template of the tokenizer. In a study file, the default is the one of `TEMPLATES` for the
    task, and "chat" for messages."""
    target_modules: (
        Annotated[
            list[
                Annotated[
                    str,
                    Field(
                        pattern=worded(
                            r"^[A-Za-z0-9_.]+$", "the name of a linear layer of the base, such as q_proj"
                        ),
                        max_length=200,
                    ),
                ]
            ],
            Field(min_length=1),
        ]
        | Literal["all-linear"]
    )
    """Names of layers; "all-linear" stands for all linear layers but the output layer."""
    training: Training
    stop: Annotated[Text, Field(min_length=1)] | None = None
    """A response ends before this text."""
    special_tokens: bool = True
    """Whether the tokenizer adds special tokens (Llama's adds one at the beginning)."""
    counterpart: Name | None = None
    """The paper's model to compare this one with."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Study:
    """The content of a study file."""

    name: Name
    """In a study file, the default is the file's name without .toml, the only name that it can have."""
    title: Line
    """In a study file, the default is the study's name."""
    trials: Few = 7
    """Trials of each arm; the default is the paper's number (section VII)."""
    threads: Few = 1
    """CPU threads of each trial; part of the study, because they change the last bits."""
    keep_merged: bool = False
    """Whether to keep the merged models, which are as large as the bases."""
    optimizers: Annotated[list[OptimizerName], Field(min_length=1)] = field(
        default_factory=lambda: ["adamw-8bit", "adamw-32bit"]
    )
    """The default is the paper's two (section VII-A)."""
    profile: Name = "as-published"
    """The profile of randomness, one of `profiles`."""
    profiles: dict[Name, Randomness] = field(default_factory=lambda: dict(PROFILES))
    """The default is the three of the paper's study (`qlora_repeat.study.randomness.PROFILES`)."""
    quantization: Quantization = field(default_factory=Quantization)
    precision: Precision = field(default_factory=Precision)
    lora: Lora = field(default_factory=Lora)
    generation: Generation = field(default_factory=Generation)
    evaluation: Evaluation = field(default_factory=Evaluation)
    bases: dict[Name, Base]
    data: dict[Name, Data]
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    ablation: Ablation | None = None
    averaging: Averaging = field(default_factory=Averaging)
    """Arms whose trials are averages of the trials of other arms, or of their last steps."""
    cluster: StudyCluster = field(default_factory=Cluster)
    """What `submit` requests from a scheduler; no result depends on it."""
    tolerance: dict[OptimizerName, Tolerance] = field(default_factory=dict)
    """Tolerances of `verify` for each optimizer, because 8-bit state amplifies noise; the defaults are in
    `qlora_repeat.analysis.verify.verdict`."""
    weights: FrozenWeights = "auto"
    """The frozen weights during fine-tuning; the merged model, which is evaluated, has no 4-bit weights."""
    device: Device = "auto"
    """Whether the study must have a GPU. Each record says what its stage ran on; nothing is stale for it."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints, from which an interrupted fine-tuning resumes."""
    digest_every: Positive = 10
    """Steps between digests of the adapter in the trace."""
    variant: str = ""
    """What follows @ in the study's name; each variant has its own folder of results."""

    @property
    def label(self) -> str:
        """The study's name and variant."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    @property
    def arms(self) -> dict[str, int]:
        """The arms of each model, by their optimizer, with their numbers of trials."""
        trained = dict.fromkeys(map(str, self.optimizers), self.trials)
        return trained | dict(self.averaging.arms(list(trained), self.trials))

    @property
    def trial_count(self) -> int:
        """The number of trials, averages included."""
        return len(self.models) * sum(self.arms.values())

    @property
    def randomness(self) -> Randomness:
        """The study's profile of randomness."""
        return self.profiles[self.profile]

    def __post_init__(self) -> None:
        if self.profile not in self.profiles:
            raise ValueError(f"profile is {self.profile!r}; the study has {', '.join(self.profiles)}")
        for name, model in self.models.items():
            for key, known in (("base", self.bases), ("data", self.data)):
                value = getattr(model, key)
                if value not in known:
                    raise ValueError(f"models.{name}.{key} is {value!r}; the study has {', '.join(known)}")
            if (rows := self.data[model.data].rows) is not None:
                self.check_examples(name, rows)
            if model.training.loss == "answer" and "answer" not in ROW_KEYS[self.data[model.data].task]:
                task = self.data[model.data].task
                raise ValueError(f"models.{name}.training.loss is answer, and rows for {task} have none")
            self._check_template(name, model, self.data[model.data])
        if self.lora.dora and self.quantization.type == "int8":
            raise ValueError(
                "lora.dora needs a base in 4 bits or quantization.type none; PEFT fails with int8"
            )
        if self.weights != "auto" and not self.quantization.in_4_bits:
            raise ValueError(
                f"weights is {self.weights}, which is for a base in 4 bits; quantization.type is "
                f"{self.quantization.type}"
            )
        if len(set(self.optimizers)) < len(self.optimizers):
            raise ValueError("optimizers has a duplicate")
        if self.trial_count > MOST_TRIALS:
            raise ValueError(f"the study has {self.trial_count} trials; expected at most {MOST_TRIALS}")
        self._check_averaging()

    def _check_averaging(self) -> None:
        averaging = self.averaging
        if averaging.trials is not None and self.lora.dora:
            raise ValueError(
                "averaging.trials needs lora.dora = false: no adapter is the mean of DoRA adapters"
            )
        if averaging.trials is not None and not isinstance(self.randomness.split, int):
            raise ValueError(
                f"averaging.trials needs one split for all trials, and profile {self.profile} has one for "
                "each: an average would be tested on examples that some of its trials were trained on"
            )
        for name, model in self.models.items():
            steps = model.training.steps
            if averaging.last_steps is not None and steps is not None and averaging.last_steps > steps:
                raise ValueError(
                    f"averaging.last_steps is {averaging.last_steps}; model {name} has {steps} steps"
                )

    @staticmethod
    def _check_template(name: str, model: Model, data: Data) -> None:
        key, keys = f"models.{name}.template", ROW_KEYS[data.task]
        try:
            check_template(model.template, keys, data.row_keys)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        if model.template == CHAT and "answer" not in keys:
            raise ValueError(f"{key} is chat, and rows for {data.task} have no answer")
        if model.template == CHAT and model.special_tokens:
            raise ValueError(
                f"models.{name}.special_tokens: the chat template adds them, so it must be false"
            )

    def check_examples(self, model: str, rows: int) -> None:
        """Raise ValueError if a model has too many examples in all steps, for this number of rows."""
        training = self.models[model].training
        if (seen := training.total_steps(rows) * training.examples_per_step) > MOST_EXAMPLES:
            found = f"models.{model}.training has {seen} examples in all steps"
            raise ValueError(f"{found}; expected at most {MOST_EXAMPLES}")
