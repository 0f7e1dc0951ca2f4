"""Measure the time of the kit's commands on studies of up to 1,000 trials (some minutes, no GPU).

    python benchmarks/own_cost.py [FOLDER]

The script writes 1,000 finished trials of a tiny study (five models, five optimizers) to a temporary folder.
It prints, as Markdown, the best of three times of `--help`, and of `status`, `collect` and `tables` on the
first 125, 250, 500 and 1,000 trials, and the ratio of the times for 1,000 and 500 trials: about 2 if each
trial costs the same. For a FOLDER of results, such as runs/pocket@bitwise, it then prints the output of
`recording.py`: the share of a trial's time that its trace, checkpoints, digests and records take.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from recording import print_shares  # noqa: E402
from support.finished import Outputs, finish_study  # noqa: E402
from support.tiny import fill_cache, tiny_text  # noqa: E402
from tabulate import tabulate  # noqa: E402

from qlora_repeat.study.loading import load_study  # noqa: E402
from qlora_repeat.study.optimizers import OptimizerName  # noqa: E402
from qlora_repeat.study.trial import Trial  # noqa: E402

SIZES = (125, 250, 500, 1000)
"""Numbers of trials."""
MODELS = 5
OPTIMIZERS = get_args(OptimizerName)
REPEATS = 3
"""Each command is timed this many times; the shortest time counts, since disturbances only add time."""
POINTS = 30
"""Points of a trial's loss curve, as in longer trials."""


def main(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        sys.exit(f"{folder}: no such folder of results; `qlora-repeat run` makes one")
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        studies = [write_study(here, size) for size in SIZES]
        runs, cache = here / "runs", here / "cache"
        write_trials(studies[-1], runs, cache)
        places = ["--runs", str(runs)]
        rows = [["--help", *[_number(_quickest(["--help"]))] * len(SIZES), ""]]
        seconds: dict[str, list[float]] = {"status": [], "collect": [], "tables": []}
        for study in studies:
            for name, own in seconds.items():
                more = ["--out", str(here / "tables")] if name == "tables" else ["--cache", str(cache)]
                own.append(_quickest([name, str(study), *places, *more]))
        rows += [[name, *map(_number, own), f"{own[-1] / own[-2]:.1f}"] for name, own in seconds.items()]
    headers = ["seconds", *(f"{size:,} trials" for size in SIZES), f"{SIZES[-1]:,} / {SIZES[-2]:,}"]
    print(tabulate(rows, headers, tablefmt="pipe", disable_numparse=True))
    if folder is not None:
        print()
        print_shares(folder)


def write_study(folder: Path, trials: int) -> Path:
    """Write a study file with this number of trials; all sizes have the same name, so they share results."""
    shared, *models = tiny_text().split("[models.")
    lines = {"trials = 2": f"trials = {trials // (MODELS * len(OPTIMIZERS))}"}
    lines['optimizers = ["adamw-8bit", "adamw-32bit"]'] = f"optimizers = {_toml(OPTIMIZERS)}"
    for old, new in lines.items():
        assert old in shared, old
        shared = shared.replace(old, new)
    for number in range(MODELS):
        name, rest = models[number % len(models)].split("]", 1)
        shared += f"[models.{name}-{number}]{rest}\n"
    path = folder / str(trials) / "tiny.toml"
    path.parent.mkdir()
    path.write_text(shared, encoding="utf-8")
    return path


def write_trials(study_file: Path, runs: Path, cache: Path) -> None:
    """Fill the cache and finish every trial, with outputs that differ as in real trials."""
    study, draw = load_study(str(study_file)), random.Random(0)
    with patch("os.fsync"):  # these files need not survive a power failure
        fill_cache(study, cache)
        finish_study(study, runs, cache, lambda trial: _outputs(trial, draw))


def _outputs(trial: Trial, draw: random.Random) -> Outputs:
    losses = [4 * 0.9**point * draw.lognormvariate(0, 0.1) for point in range(POINTS)]
    responses = [
        {
            "prompt": prompt,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "text": " ".join(f"{draw.getrandbits(32):x}" for _ in range(20)),
            "answer": None,
            "seed": draw.getrandbits(31),
        }
        for prompt in trial.data.prompts
        for sampling in trial.study.generation.samplings
    ]
    perplexity, timed = draw.lognormvariate(2, 0.2), draw.lognormvariate(0.5, 0.1)
    return {
        "finetune": {
            "initial_loss": losses[0],
            "final_loss": losses[-1],
            "loss_curve": [[(point + 1) / POINTS, loss] for point, loss in enumerate(losses)],
            "train_seconds": draw.lognormvariate(3, 0.1),
        },
        "evaluate": {
            "perplexity": perplexity,
            "perplexity_example_mean": perplexity * 1.25,
            "responses": responses,
        },
        "time": {"test_seconds": timed, "test_seconds_min": timed * 0.9, "test_seconds_max": timed * 1.1},
    }


def _quickest(arguments: Sequence[str]) -> float:
    """Return the shortest time of a command of the kit in seconds, called as in a console."""
    command = [str(Path(sys.executable).with_name("qlora-repeat")), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _number(seconds: float) -> str:
    return f"{seconds:.2f}"


def _toml(texts: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
