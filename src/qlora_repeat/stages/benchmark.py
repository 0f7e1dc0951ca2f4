"""Benchmarks of a fine-tuned model, by EleutherAI's lm-evaluation-harness, which is an optional package.

Tasks run one by one, so that no outcome depends on which other tasks a study names.
"""

import contextlib
import math
import random
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import Any

from qlora_repeat.assets.base_models import load_full, load_tokenizer
from qlora_repeat.assets.benchmarks import PACKAGE, own_task_files, why_not
from qlora_repeat.errors import KitError, StageError, UsageError
from qlora_repeat.study.data_sources import is_own_task
from qlora_repeat.study.randomness import torch_stream
from qlora_repeat.study.trial import Progress, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.environment import environment_kept
from qlora_repeat.system.fingerprint import installed_version
from qlora_repeat.system.hashing import json_digest
from qlora_repeat.system.printable import one_line

SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""The seeds that lm-evaluation-harness has by default."""


def benchmark(trial: Trial, progress: Progress, seeds: dict[str, int]) -> dict[str, Any]:
    """Run the study's benchmarks on a trial's merged model.

    Returns:
        The record's outputs: the version of lm-evaluation-harness, the seeds, and for each task its version,
        number of solved examples in a prompt, digest of the examples, scores, and outcome of each example.

    Raises:
        StageError: a task cannot be loaded, or fails.
    """
    settings = trial.study.evaluation
    tasks = load_tasks(trial.workspace)
    with environment_kept():
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM
    model = load_full(trial.merged, trial.study.precision.compute)
    tokenizer = load_tokenizer(trial.merged)
    reader = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=settings.batch_size)
    found = {}
    for done, (name, task) in enumerate(tasks.items()):
        progress("benchmark", done, len(tasks), None)
        with _one_line(f"{trial.name}: benchmark {name}"), _seeded(), environment_kept():
            results = evaluate(
                lm=reader,
                task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
                limit=settings.lm_eval_examples,
                bootstrap_iters=0,
            )
        found[name] = _outputs(name, task, results)
    progress("benchmark", len(tasks), len(tasks), None)
    return {PACKAGE: installed_version(PACKAGE), "task_seeds": SEEDS, "tasks": found}


def load_tasks(workspace: Workspace) -> dict[str, Any]:
    """Load the tasks of a study and their data, which are fetched from a hub where they are not in its cache.

    Raises:
        UsageError: the benchmarks cannot run here (`why_not`), there is no such task, or two have one name.
        StageError: a task cannot be loaded.
        MissingError: a task file is missing.
    """
    if (reason := why_not(workspace)) is not None:
        raise UsageError(reason)
    settings = workspace.study.evaluation
    with _one_line("lm-evaluation-harness"), environment_kept():
        from lm_eval.tasks import TaskManager

        # Its own tasks are thousands of files, which take seconds to list.
        manager = TaskManager(include_defaults=not all(map(is_own_task, settings.lm_eval)))
    found: dict[str, Any] = {}
    for wanted in settings.lm_eval:
        own = is_own_task(wanted)
        if not own and wanted not in manager.task_index:
            raise UsageError(
                f"{workspace.file}: key evaluation.lm_eval: lm-evaluation-harness has no task {wanted!r}; "
                "`lm-eval ls tasks` lists them, and a path needs a slash or .yaml"
            )
        for file in own_task_files(wanted) if own else [None]:
            what = wanted if file is None else str(file.absolute())
            # Files that a task file names are relative to it.
            folder = contextlib.chdir("." if file is None else file.parent)
            with _one_line(f"benchmark {Path(wanted).name}"), environment_kept(), folder:
                loaded = manager.load([what])["tasks"]
            if twice := sorted(found.keys() & loaded.keys()):
                raise UsageError(f"{workspace.file}: key evaluation.lm_eval: two tasks are named {twice[0]}")
            found |= loaded
    for task in found.values():
        own_number = task.get_config("num_fewshot")
        # As lm-evaluation-harness does: a task that sets 0 keeps it.
        number = own_number if own_number == 0 else settings.lm_eval_fewshot
        task.set_config(key="num_fewshot", value=number if number is not None else own_number or 0)
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
    return found


def _outputs(name: str, task: Any, results: Any) -> dict[str, Any]:
    """Return what is recorded of a task: scores, and the outcomes whose mean a score is."""
    scores = {
        key: float(value)
        for key, value in results["results"][name].items()
        if "," in key and "_stderr" not in key and isinstance(value, Real)
    }
    samples: dict[str, list[Any]] = {}
    for sample in results["samples"][name]:
        samples.setdefault(sample["filter"], []).append(sample)
    asked = [
        [sample["doc_id"], sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]]
        for sample in next(iter(samples.values()))
    ]
    outcomes = {}
    for key, score in scores.items():
        metric, _, chosen = key.partition(",")
        values = [sample.get(metric) for sample in samples.get(chosen, [])]
        if values and all(isinstance(value, Real) for value in values):
            numbers = [float(value) for value in values]
            if math.isclose(fmean(numbers), score, rel_tol=1e-9, abs_tol=1e-12):
                outcomes[key] = [int(value) if value.is_integer() else value for value in numbers]
    return {
        "version": str(results["versions"].get(name)),
        "fewshot": task.get_config("num_fewshot"),
        "examples": json_digest(asked),
        "example_count": len(asked),
        "scores": scores,
        "outcomes": outcomes,
    }


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed the generators that a task may use, as lm-evaluation-harness does."""
    import numpy

    random.seed(SEEDS["python"])
    numpy.random.seed(SEEDS["numpy"])
    with torch_stream(SEEDS["torch"]):
        yield


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn any error of a task, whose code may be anybody's, into one line.

    Raises:
        StageError: says what failed; and, if the hub may not be asked, that it is the hub's data.
    """
    try:
        yield
    except KitError:
        raise
    except Exception as error:
        from huggingface_hub import constants

        offline = "; HF_HUB_OFFLINE is set, so its data must be in the hub's cache"
        more = offline if constants.is_offline_mode() else ""
        raise StageError(f"{what}: {one_line(f'{type(error).__name__}: {error}')[:300]}{more}") from error
