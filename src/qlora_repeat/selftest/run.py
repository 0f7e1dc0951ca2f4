"""Run all checks of the self-test in a scratch folder."""

import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from qlora_repeat.errors import KitError, StoppedError
from qlora_repeat.records.record import now
from qlora_repeat.records.self_test import Check, SelfTest
from qlora_repeat.selftest import checks
from qlora_repeat.selftest.bench import Bench, Watch, fill_cache, self_test_study
from qlora_repeat.selftest.jobs import Call
from qlora_repeat.system.determinism import prepare_environment
from qlora_repeat.system.environment import clear_environment
from qlora_repeat.system.files import TEMPORARY, discard, write_text
from qlora_repeat.system.fingerprint import fingerprint
from qlora_repeat.system.gpus import visible_gpus

CHECKS: dict[str, Callable[[Bench], checks.Result]] = {
    "software": checks.check_software,
    "two processes, deterministic kernels": checks.check_deterministic,
    "two processes, default kernels": checks.check_default,
    "stopped and resumed": checks.check_resume,
    "unpacked weights against 4-bit weights": checks.check_weights,
    "new tensors filled or not": checks.check_filling,
    "merged model against base and adapter, batches against single rows": checks.check_merging,
    "two tests of each base": checks.check_base_tests,
    "peak memory against the plan": checks.check_memory,
    "seconds of a step": checks.check_speed,
}
"""The checks in their order; later ones use trials of earlier ones."""
_FULL = {"full size": checks.check_full_size}


def self_test(
    watch: Watch,
    report: Callable[[Check], None],
    *,
    full: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> SelfTest:
    """Test this machine, in a scratch folder in the folder for temporary files.

    A check that cannot end counts as failed, and its logs are kept.

    Args:
        watch: shows the progress of jobs, as `execution.run_study.Observer.watch_jobs`.
        report: called with each check when it ends.
        full: also run models of the paper's size, on a GPU.
        sizes: of the models (`self_test_study`).
    """
    clear_environment()
    prepare_environment("deterministic")
    started, began, found = now(), time.monotonic(), list[Check]()
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    failed = True
    try:
        gpu = bool(visible_gpus())
        bench = Bench(folder, self_test_study(folder, gpu=gpu, sizes=sizes), gpu, watch)
        bench.run([Call("models", folder, fill_cache, (bench.workspace("first"),))])
        failed = False
        for name, check in (CHECKS | (_FULL if full else {})).items():
            try:
                found.append(Check(name, *check(bench)))
            except StoppedError:
                raise
            except KitError as error:
                found.append(Check(name, "failed", str(error)[:1000]))
                failed = True
            except Exception as error:  # a fault of the kit, which must not end the other checks
                log = folder / f"{name.replace(' ', '-')}.txt"
                write_text(log, traceback.format_exc())
                figure = f"{type(error).__name__}: {error}; see {log}"
                found.append(Check(name, "failed", figure[:1000]))
                failed = True
            report(found[-1])
    finally:
        discard(folder / "cache" if failed else folder)  # the error names a log
    return SelfTest(started, time.monotonic() - began, full, found, fingerprint())
