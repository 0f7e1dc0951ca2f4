"""Run all checks of the self-test in a scratch folder."""

import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from qlora_repeat.errors import KitError, StoppedError
from qlora_repeat.records.record import now
from qlora_repeat.records.self_test import Check, SelfTest
from qlora_repeat.selftest import checks
from qlora_repeat.selftest.bench import Bench, Watch, fill_cache, self_test_study
from qlora_repeat.selftest.full_size import check_full_size
from qlora_repeat.selftest.jobs import Call
from qlora_repeat.system.environment import clear_environment
from qlora_repeat.system.files import TEMPORARY, discard, require_space, write_text
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
FULL: dict[str, Callable[[Bench], checks.Result]] = {"full size": check_full_size}
_GB = 10**9
_SPACE = {True: 20 * _GB, False: _GB}
"""Bytes on disk that the test needs, on a GPU and on a CPU."""


def self_test(
    watch: Watch,
    report: Callable[[SelfTest], None],
    *,
    full: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> SelfTest:
    """Test this machine, in a scratch folder in the folder for temporary files.

    A check that cannot end counts as failed, and its logs are kept.

    Args:
        watch: shows the progress of jobs, as `execution.run_study.Observer.watch_jobs`.
        report: called with the self-test so far when a check ends, which is the last one of its list.
        full: run only models of the paper's size, which needs a GPU.
        sizes: of the models (`self_test_study`).

    Raises:
        MissingError: the disk has too little space.
    """
    clear_environment()
    started, began, found = now(), time.monotonic(), list[Check]()
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    machine, gpu, failed = fingerprint(), bool(visible_gpus()), True
    try:
        require_space(folder, _SPACE[gpu], "TMPDIR")
        bench = Bench(folder, self_test_study(folder, gpu=gpu, sizes=sizes), gpu, watch)
        bench.run([Call("models", folder, fill_cache, (bench.workspace("first"),))])
        failed = False
        for name, check in (FULL if full else CHECKS).items():
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
            report(SelfTest(started, time.monotonic() - began, full, list(found), machine))
    finally:
        for large in [folder / "cache", *folder.glob("runs/**/merged")] if failed else [folder]:
            discard(large)  # an error names a log, which stays
    return SelfTest(started, time.monotonic() - began, full, found, machine)


def with_earlier(found: SelfTest, earlier: SelfTest | None) -> SelfTest:
    """Return a self-test with the checks of an earlier one of the same machine that it did not repeat."""
    if earlier is None:
        return found
    names = {check.name for check in found.checks}
    kept = [check for check in earlier.checks if check.name not in names and check.name in (*CHECKS, *FULL)]
    checks = [*kept, *found.checks] if found.full else [*found.checks, *kept]
    return replace(found, checks=checks, full=any(check.name in FULL for check in checks))
