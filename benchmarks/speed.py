"""Compare the time of the kit with a plain script that does the same work, as ratios from one run.

make bench, or: python benchmarks/speed.py [--only trial,arm,perplexity,workers,step]

The plain script is `benchmarks/baseline.py`. Both fine-tune SmolLM2-135M for 20 steps on the same quotes,
merge, measure the perplexity of the same 500 quotes and answer the same prompts, with float32 arithmetic and
all cores. The kit runs in bitwise mode (`benchmarks/speed.toml`), and its cache has no copies of models at
first. The limit is the time of the same matrix products alone (`benchmarks/products.py`). This takes half an
hour on two cores, and means little if other programs run at the same time. The last line is one JSON object
with the ratios kit / plain script, and kit / limit.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baseline import one_by_one
from places import at
from products import ProductLog, seconds_of
from tabulate import tabulate

from qlora_repeat.assets.base_models import base_folder, load_full, load_tokenizer
from qlora_repeat.assets.datasets import batch_order, encode, part_rows
from qlora_repeat.cli.options import silence_libraries
from qlora_repeat.execution.run_study import fetch_missing
from qlora_repeat.records.record import Record, read_record
from qlora_repeat.stages.perplexity import ExampleLoss, example_losses, perplexity
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Stage
from qlora_repeat.system.determinism import set_kernels
from qlora_repeat.system.limits import usable_cores

HERE = Path(__file__).resolve().parent
MODEL = "smollm2-135m"
ARM = f"{MODEL}/adamw-8bit"
STAGES = "finetune,merge,evaluate"
LOSS_BOUND = 1e-4
"""The largest allowed relative difference between an example's loss in a batch and alone."""
PARTS = ("trial", "arm", "perplexity", "workers", "step")


@dataclass
class Bench:
    """The folder with all inputs of the runs, and their results."""

    folder: Path
    cores: int
    rows: list[list[Any]] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)

    def study(self, threads: int) -> Path:
        """Write the study file with this number of threads for each trial; return its path."""
        path = self.folder / f"{threads}-threads" / "speed.toml"
        path.parent.mkdir(exist_ok=True)
        text = (HERE / "speed.toml").read_text(encoding="utf-8")
        path.write_text(text.replace("threads = 1", f"threads = {threads}"), encoding="utf-8")
        return path

    def add(
        self,
        what: str,
        plain: float,
        kit: float,
        unit: str,
        key: str | None = None,
        limit: float | None = None,
    ) -> None:
        """Add a row to the table and, with a key, its ratios to the last line."""
        row = [what, f"{plain:,.2f} {unit}", f"{kit:,.2f} {unit}", f"{kit / plain:.2f}"]
        self.rows.append(row + ([f"{limit:,.2f} {unit}", f"{kit / limit:.2f}"] if limit else ["", ""]))
        print(*self.rows[-1], sep=" | ", flush=True)
        if key:
            self.ratios[key] = round(kit / plain, 3)
        if key and limit:
            self.ratios[f"{key}_limit"] = round(kit / limit, 3)


def main() -> None:
    """Run the chosen parts, print a table, and the ratios in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="some of: %(default)s")
    only = parser.parse_args().only.split(",")
    if unknown := {*only} - {*PARTS}:
        parser.error(f"--only: {min(unknown)} is none of {', '.join(PARTS)}")
    if {"trial", "arm"} & {*only} and importlib.util.find_spec("trl") is None:
        parser.error("TRL is not installed; `make bench` installs it, from lockfiles/bench.txt")
    silence_libraries(False)
    with tempfile.TemporaryDirectory(prefix="qlora-repeat-bench-") as name:
        bench = Bench(Path(name), usable_cores())
        study = prepare(bench)
        if {"trial", "arm"} & {*only}:
            trials_and_arm(bench)
        if "perplexity" in only:
            compare_perplexity(bench, study)
        if "workers" in only:
            compare_workers(bench)
        if "step" in only:
            compare_steps(bench)
    print(f"\n{bench.cores} cores\n")
    headers = ["", "plain script", "kit", "ratio", "limit", "kit / limit"]
    print(tabulate(bench.rows, headers, tablefmt="github"))
    keys = ("trial", "arm", "perplexity", "memory", "trial_limit", "arm_limit", "perplexity_limit")
    print(json.dumps({key: bench.ratios[key] for key in keys if key in bench.ratios}))


def prepare(bench: Bench) -> Study:
    """Fetch the study's base model and data, and write the quotes for the plain script."""
    study = load_study(str(bench.study(bench.cores)))
    workspace = at(study, bench.folder)
    fetch_missing(workspace, lambda line: print(line, file=sys.stderr))
    (bench.folder / "cache").mkdir()
    for part in ("bases", "data"):
        (bench.folder / "cache" / part).symlink_to(workspace.cache / part)
    train, test = (part_rows(workspace, "quotes", part, 42) for part in ("train", "test"))
    seen = [train[row] for [row] in batch_order(len(train), 1, 20, 42)]  # the rows of the kit's trials
    for name, rows in (("train", seen), ("test", test[: study.evaluation.examples])):
        lines = [json.dumps({"text": row["quote"]}) + "\n" for row in rows]
        (bench.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return study


def trials_and_arm(bench: Bench) -> None:
    """Time seven trials of the plain script one by one, with the kit's in between, and then the kit's arm."""
    single = bench.study(bench.cores)
    kit(bench, "trial", f"{MODEL}/base", "--study", single)  # once for all trials of a model
    plain, ours = [], []
    for number in range(1, 8):
        plain.append(baseline(bench, number))
        if number in (1, 3, 5):
            ours.append(
                kit(bench, "trial", f"{ARM}/{(number + 1) // 2}", "--study", single, "--stages", STAGES)
            )
    print("plain script, s:", *(f"{each['wall']:.1f}" for each in plain))
    print("kit, s:", *(f"{each:.1f}" for each in ours), flush=True)
    parts = plain[0]["seconds"]
    print("parts of the plain script, s:", {name: round(value, 1) for name, value in parts.items()})
    sft = baseline(bench, 1, "--trainer", "sft")
    print("parts with TRL, s:", {name: round(value, 1) for name, value in sft["seconds"].items()}, flush=True)
    middle = statistics.median(each["wall"] for each in plain)
    limit = products(bench, single, 1)["trial"]
    bench.add("one trial", middle, statistics.median(ours), "s", "trial", limit)
    bench.add("one trial, the first: empty cache", middle, ours[0], "s")
    bench.add("one trial, against TRL's SFTTrainer", sft["wall"], statistics.median(ours), "s")

    many = bench.study(1)
    took = kit(bench, "run", many, "--stages", STAGES, runs="arm")
    alone = products(bench, many, bench.cores)
    limit = (7 * alone["trial"] + alone["base"]) / bench.cores
    bench.add("seven trials of an arm", sum(each["wall"] for each in plain), took, "s", "arm", limit)
    memory = record(bench, single, 1, "finetune")["peak_memory_bytes"]
    before = statistics.median(each["peak_memory_bytes"] for each in plain)
    bench.add("peak memory, unpacked weights", before / 2**20, memory / 2**20, "MiB")
    kit(bench, "finetune", f"{ARM}/1", "--study", f"{single}@nf4")
    in_4_bits = record(bench, f"{single}@nf4", 1, "finetune")
    bench.add(
        "peak memory, 4-bit weights", before / 2**20, in_4_bits["peak_memory_bytes"] / 2**20, "MiB", "memory"
    )
    same_bits(bench, single, many)
    recording(bench, many)


def same_bits(bench: Bench, single: Path, many: Path) -> None:
    """Check that all trials have the adapter of the plain path: 4-bit weights, no cached copy, run alone."""
    for study, runs in ((single, "runs"), (many, "arm")):
        shutil.rmtree(bench.folder / "cache" / "quantized")
        kit(bench, "finetune", f"{ARM}/2", "--study", f"{study}@nf4", runs="plain")
        wanted = record(bench, f"{study}@nf4", 2, "finetune", "plain")["adapter_digest"]
        numbers = (1, 2, 3) if study == single else range(1, 8)
        found = [record(bench, study, number, "finetune", runs) for number in numbers]
        assert {each["adapter_digest"] for each in found} == {wanted}, "the bits are not the same"
        assert {each["weights"] for each in found} == {"materialized"}
        print(f"{len(found)} trials have the adapter of the plain path: {wanted[:16]}", flush=True)


def recording(bench: Bench, study: Path) -> None:
    """Print the share of digests and checkpoints in the time of the arm's trials."""
    shares = []
    for number in range(1, 8):
        tuned = record(bench, study, number, "finetune", "arm")
        spent = tuned["digest_seconds"] + tuned["checkpoint_seconds"]
        whole = sum(
            stage_record(bench, study, number, stage, "arm").seconds
            for stage in ("finetune", "merge", "evaluate")
        )
        shares.append((100 * spent / tuned["train_seconds"], 100 * spent / whole))
    of_training, of_trial = (statistics.median(share) for share in zip(*shares, strict=True))
    print(
        f"digests and checkpoints: {of_training:.1f} % of training, {of_trial:.1f} % of a trial", flush=True
    )


def compare_perplexity(bench: Bench, study: Study) -> None:
    """Time 500 quotes one by one and in batches, on the same base model and precision; twice, in turns."""
    folder = base_folder(at(study), MODEL)
    tokenizer, model = load_tokenizer(folder), load_full(folder, study.precision.compute)
    rows = part_rows(at(study), "quotes", "test", 42)[: study.evaluation.examples]
    examples = encode(tokenizer, study.models[MODEL], rows)
    plain_seconds, kit_seconds, log = [], [], ProductLog()
    for _ in range(2):
        set_kernels("default", bench.cores)
        began = time.perf_counter()
        alone, tokens = one_by_one(model, tokenizer, [row["quote"] for row in rows])
        plain_seconds.append(time.perf_counter() - began)
        set_kernels(study.randomness.kernels, bench.cores)
        began = time.perf_counter()
        batched = example_losses(
            model, examples, study.evaluation.batch_size, tokenizer.pad_token_id, lambda done: None
        )
        kit_seconds.append(time.perf_counter() - began)
    with log:
        example_losses(
            model, examples, study.evaluation.batch_size, tokenizer.pad_token_id, lambda done: None
        )
        log.keep()
    limit = seconds_of(log.logged(), repeats=2)
    plain, ours = min(plain_seconds), min(kit_seconds)
    bench.add("perplexity of 500 quotes", plain, ours, "s", "perplexity", limit)
    report_losses(alone, tokens, batched)


def report_losses(alone: list[float], tokens: int, batched: list[ExampleLoss]) -> None:
    """Print how much the losses of the two ways differ, for each example and on average."""
    assert tokens == sum(loss.tokens for loss in batched)
    apart = [abs(one - loss.loss) / loss.tokens for one, loss in zip(alone, batched, strict=True)]
    relative = [abs(one - loss.loss) / one for one, loss in zip(alone, batched, strict=True)]
    mean = abs(sum(alone) - sum(loss.loss for loss in batched)) / sum(alone)
    print(
        f"losses: the mean differs by {mean:.1e} relative, an example's by {statistics.median(relative):.1e} "
        f"(median) to {max(relative):.1e}, and by {max(apart):.1e} nats a token at most; "
        f"perplexity {perplexity(batched):.4f}",
        flush=True,
    )
    assert mean < 5e-4, "the mean losses differ"
    assert max(relative) < LOSS_BOUND, (
        "an example's losses differ by more than docs/explanation/speed.md says"
    )


def compare_workers(bench: Bench) -> None:
    """Time the fine-tuning of seven trials with one thread each: one at a time, and one per core."""
    study = bench.study(1)
    alone, together = (
        kit(bench, "run", study, "--stages", "finetune", "--jobs", jobs, runs=f"jobs-{jobs}")
        for jobs in (1, bench.cores)
    )
    print(f"seven trials: 1 at a time {alone:.1f} s, {bench.cores} at a time {together:.1f} s: ", end="")
    print(f"{alone / together:.2f} times as fast", flush=True)


def compare_steps(bench: Bench) -> None:
    """Print the best of three times of a step, by threads, with 4-bit and unpacked weights in turns."""
    for threads in dict.fromkeys((1, bench.cores)):
        study, found = bench.study(threads), {"nf4": list[float](), "materialized": list[float]()}
        for _ in range(3):
            for weights, seconds in found.items():
                kit(bench, "finetune", f"{ARM}/1", "--force", "--study", f"{study}@{weights}", runs="steps")
                tuned = record(bench, f"{study}@{weights}", 1, "finetune", "steps")
                spent = tuned["digest_seconds"] + tuned["checkpoint_seconds"]
                seconds.append((tuned["train_seconds"] - spent) / tuned["steps"])
        nf4, unpacked = (min(seconds) for seconds in found.values())
        print(
            f"a step, {threads} threads: 4 bits {nf4:.3f} s, unpacked {unpacked:.3f} s: {unpacked / nf4:.2f}"
        )


def baseline(bench: Bench, seed: int, *options: str) -> dict[str, Any]:
    """Run a trial of the plain script; return its printed results and its total seconds (`wall`)."""
    study = load_study(str(bench.study(1)))
    base = base_folder(at(study, cache=bench.folder / "cache"), MODEL)
    files = [bench.folder / "train.jsonl", bench.folder / "test.jsonl", bench.folder / "plain-script"]
    began = time.perf_counter()
    lines = called([HERE / "baseline.py", base, *files, "--seed", seed, *options], bench.folder)
    wall = time.perf_counter() - began
    shutil.rmtree(files[-1])
    return {**json.loads(lines[-1]), "wall": wall}


def products(bench: Bench, study: Path, together: int) -> dict[str, float]:
    """Return the seconds of a trial's matrix products and of a test of the base, in N processes at once."""
    script = [HERE / "products.py", study, f"{ARM}/1", bench.folder, "--together", together]
    found: dict[str, float] = json.loads(called(script, bench.folder)[-1])
    return found


def kit(bench: Bench, command: str, *arguments: object, runs: str = "runs") -> float:
    """Run a command of the kit; return its total seconds."""
    folders = ["--runs", bench.folder / runs, "--cache", bench.folder / "cache"]
    began = time.perf_counter()
    called([Path(sys.executable).with_name("qlora-repeat"), command, *arguments, *folders], bench.folder)
    return time.perf_counter() - began


def called(arguments: Sequence[object], folder: Path) -> list[str]:
    """Run a Python program offline and without the user's hub cache; return the lines that it prints."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "PYTHONWARNINGS": "ignore",
        "PYTHONDONTWRITEBYTECODE": "",  # the usual setting
    }
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} failed:\n{done.stderr[-3000:]}")
    return done.stdout.splitlines()


def record(bench: Bench, study: object, number: int, stage: Stage, runs: str = "runs") -> dict[str, Any]:
    """Return the outputs of a stage of a trial."""
    return stage_record(bench, study, number, stage, runs).outputs


def stage_record(bench: Bench, study: object, number: int, stage: Stage, runs: str) -> Record:
    """Return the record of a stage of a trial."""
    path = at(load_study(str(study)), bench.folder / runs).trial(f"{ARM}/{number}").record(stage)
    found = read_record(path)
    assert found is not None, path
    return found


if __name__ == "__main__":
    main()
