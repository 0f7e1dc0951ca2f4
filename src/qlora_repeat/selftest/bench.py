"""A study for the self-test: the paper's settings, random weights, made-up rows, few steps.

Nothing is fetched. On a GPU, the models have the paper's width and few layers; on a CPU they are narrow.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_folder
from qlora_repeat.assets.dataset_builders import json_lines
from qlora_repeat.assets.fetch import prepare_data
from qlora_repeat.assets.miniature import SMALL, random_quote, write_model
from qlora_repeat.errors import KitError
from qlora_repeat.execution.process_pool import Job, Watcher, run_jobs
from qlora_repeat.study.data_sources import Base, Data, PackageFile
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Ablation, Evaluation, Study
from qlora_repeat.study.trial import Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import new_folder, write_json, write_text
from qlora_repeat.system.hashing import MANIFEST, file_digest, folder_digests

SOURCES = {"gpt-neox": "gpt-neox-20b", "llama": "llama2-7b"}
"""The models of the self-test, and the paper's models whose architecture and settings they have."""
LAYERS = 2
STEPS = 6
LENGTH = 512
"""The paper's longest texts, in tokens."""
_ROWS = 40
_LEARNING_RATES = {True: 1e-3, False: 1e-2}
"""On a GPU and on a CPU: so high that a few steps change the model clearly, but not beyond float16. A step
changes an activation in proportion to the width."""
AT_ONCE = 4
"""How many trials share a GPU, where no time is measured."""
_NOT_A_FILE = PackageFile(file="random-weights", sha256="0" * 64)

Watch = Callable[[Sequence[Job], int], AbstractContextManager[Watcher]]


@dataclass(frozen=True)
class Bench:
    """A study in a scratch folder, and how to run its trials."""

    folder: Path
    study: Study
    gpu: bool
    watch: Watch
    """Shows the progress of jobs, as `execution.run_study.Observer.watch_jobs`."""

    def workspace(self, name: str, study: Study | None = None) -> Workspace:
        """Return the study, or a variant of it, with a folder of results of its own."""
        return Workspace(
            study=study or self.study,
            runs=self.folder / "runs" / name,
            cache=self.folder / "cache",
            lock=self.folder / "study.lock",
            file=self.folder / "study.toml",
            given="self-test",
        )

    def trials(self, name: str, study: Study | None = None, *, optimizers: int = 2) -> list[Trial]:
        """Return a trial of each model with each of the first optimizers."""
        trials = self.workspace(name, study).trials()
        return [each for each in trials if each.optimizer in self.study.optimizers[:optimizers]]

    def run(self, jobs: Sequence[Job], *, together: bool = False) -> None:
        """Run jobs, each in a new process, one after another or on a GPU a few `together`.

        Raises:
            KitError: a job failed; the error of the first.
        """
        at_once = AT_ONCE if together and self.gpu else 1
        with self.watch(jobs, at_once) as watcher:
            errors: list[KitError] = run_jobs(jobs, at_once, watcher)
        if errors:
            raise errors[0]


def self_test_study(folder: Path, *, gpu: bool, sizes: Mapping[str, int] | None = None) -> Study:
    """Return the study, and write its rows to files in a folder.

    Args:
        sizes: of both architectures (default: the paper's width on a GPU, and `SMALL` on a CPU).
    """
    paper = load_study("paper")
    changed = ({"num_hidden_layers": LAYERS} if gpu else SMALL) if sizes is None else sizes
    bases, models = dict[str, Base](), dict[str, Any]()
    for name, source in SOURCES.items():
        architecture = paper.bases[source].architecture or {}
        given = {key: value for key, value in changed.items() if key in architecture}
        if "num_key_value_heads" in architecture and "num_attention_heads" in changed:
            given["num_key_value_heads"] = changed["num_attention_heads"]
        bases[name] = Base(gguf=_NOT_A_FILE, architecture=architecture | given)
        training = replace(
            paper.models[source].training,
            learning_rate=_LEARNING_RATES[gpu],
            schedule="constant",
            warmup_steps=0,
            steps=STEPS,
            epochs=None,
            max_length=LENGTH,
        )
        models[name] = replace(
            paper.models[source], title=name, base=name, data="texts", counterpart=None, training=training
        )
    return replace(
        paper,
        name="self-test",
        title="the self-test of a machine",
        trials=1,
        profile="bitwise",
        device="auto",
        precision=replace(paper.precision, compute=paper.precision.compute if gpu else "float32"),
        evaluation=Evaluation(batch_size=1, timing_repeats=1),
        ablation=Ablation(responses=1, base_tests=2),
        bases=bases,
        models=models,
        data={"texts": _data(folder / "texts.jsonl", 1, 45), "long": _data(folder / "long.jsonl", 100, 100)},
        digest_every=1,
    )


def with_long_texts(study: Study, steps: int) -> Study:
    """Return the study with texts of at least `LENGTH` tokens."""
    models = {
        name: replace(model, data="long", training=replace(model.training, steps=steps))
        for name, model in study.models.items()
    }
    return replace(study, models=models)


def _data(path: Path, shortest: int, longest: int) -> Data:
    """Write rows of so many sentences; 100 have more than `LENGTH` tokens."""
    draw = random.Random(longest)
    rows = [
        {"quote": " ".join(random_quote(draw) for _ in range(draw.randint(shortest, longest)))}
        for _ in range(_ROWS)
    ]
    write_text(path, json_lines(rows))
    return Data(
        task="text-generation",
        source="file",
        rows=_ROWS,
        max_new_tokens=20,
        file=PackageFile(file=str(path), sha256=file_digest(path)),
        columns={"quote": "quote"},
        prompts=["A patient mind", "A hasty hand"],
    )


def fill_cache(workspace: Workspace, *, weights: bool = True) -> dict[str, Any]:
    """Put data and models into the scratch cache; without `weights`, the models cannot be loaded."""
    study = workspace.study
    for name in study.data:
        prepare_data(workspace, name)
    draw = random.Random(0)
    texts = [random_quote(draw) for _ in range(2000)]
    for seed, (name, base) in enumerate(study.bases.items()):
        with new_folder(base_folder(workspace, name)) as folder:
            write_model(folder, base.architecture or {}, texts, seed, weights=weights)
            write_json(folder / MANIFEST, folder_digests(folder))
    return {}
