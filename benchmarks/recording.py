"""Measure the cost of recording as shares of a trial's time, from a study's results.

    python benchmarks/recording.py runs/pocket@bitwise

The script prints three shares for each model, in percent, as medians over its trials: digests of the adapter
in the time of fine-tuning, checkpoints in the time of fine-tuning, and all recording in the time of the four
stages. The trial itself timed its digests and checkpoints. The script repeats the rest in a temporary folder
beside the trial, on the same disk: write the trace; hash the files of the stages, and the number of bytes of
the base model and twice the merged model (in memory, since merged models are rarely kept); take inputs and
fingerprints; write records.
"""

import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qlora_repeat.records.code_digest import code_digest
from qlora_repeat.records.record import Record, read_record, write_record
from qlora_repeat.records.stage_inputs import MODULES
from qlora_repeat.records.trace import read_trace, trace_line
from qlora_repeat.study.trial import STAGES
from qlora_repeat.system.files import write_text
from qlora_repeat.system.fingerprint import fingerprint
from qlora_repeat.system.hashing import file_digest, weights_digest

SAMPLE = bytes(1 << 28)
"""Bytes to hash, for the time of one byte."""


def print_shares(folder: Path) -> None:
    """Print the shares of each model of a study from its folder of results."""
    import torch  # noqa: F401  (in a trial, torch is imported before the fingerprint is taken)

    once = _seconds(lambda: [fingerprint(), *(code_digest(*MODULES[stage]) for stage in STAGES)])
    per_byte = _seconds(lambda: hashlib.sha256(SAMPLE)) / len(SAMPLE)
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = [_records(trial) for trial in sorted(model.glob("*/trial-*"))]
        shares = [_shares(*each, once, per_byte) for each in found if each is not None]
        if shares:
            medians = [statistics.median(column) for column in zip(*shares, strict=True)]
            named = zip(("digests", "checkpoints", "all recording"), medians, strict=True)
            cells = ", ".join(f"{name} {value:.2f} %" for name, value in named)
            print(f"{model.name}: {len(shares)} trials, {cells}")


def _records(trial: Path) -> tuple[Path, list[Record]] | None:
    """Return a trial's folder and its records; None if it does not have all four."""
    records = [read_record(trial / f"{stage}.json") for stage in STAGES]
    whole = [record for record in records if record is not None]
    return (trial, whole) if len(whole) == len(STAGES) else None


def _shares(trial: Path, records: list[Record], once: float, per_byte: float) -> tuple[float, float, float]:
    tuned, merged = records[0].outputs, records[1].outputs
    digests, checkpoints = tuned["digest_seconds"], tuned["checkpoint_seconds"]
    steps = read_trace(trial / "trace.jsonl")
    with tempfile.TemporaryDirectory(dir=trial.parent) as temporary:
        here = Path(temporary)

        def again() -> None:
            with (here / "steps").open("w") as file:
                for step in steps:
                    file.write(trace_line(step))
                    file.flush()
            write_text(here / "trace", (trial / "trace.jsonl").read_text())
            weights_digest(trial / "adapter")
            for name in records[0].files:
                file_digest(trial / name)
            for record in records:
                write_record(here / record.stage, record)

        rest = _seconds(again) + once + 3 * merged["merged_bytes"] * per_byte
    whole = sum(record.seconds for record in records)
    trained = tuned["train_seconds"]
    return (
        100 * digests / trained,
        100 * checkpoints / trained,
        100 * (digests + checkpoints + rest) / whole,
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    print_shares(Path(sys.argv[1]))
