"""`qlora-repeat selftest`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qlora_repeat.cli.options import cpu_option, output, runs_option, silence_libraries
from qlora_repeat.errors import StageError
from qlora_repeat.system.printable import one_line, say, say_json

if TYPE_CHECKING:
    from qlora_repeat.execution.process_pool import Job
    from qlora_repeat.records.self_test import SelfTest


@click.command("selftest")
@click.option("--full", is_flag=True, help="Run only models of the paper's size, which needs an 80 GB GPU.")
@cpu_option
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def command(full: bool, runs: Path | None, as_json: bool) -> None:
    """Test whether fine-tuning repeats on this machine, and what it needs.

    It needs no network, model or data: models have random weights. The results go to a JSON file in the
    folder of results, where `verify`, `report` and `pack` find it. docs/howto/test-a-machine.md explains each
    check. The exit code is 4 if a check failed.

    \b
    Example:
      qlora-repeat selftest --full
    """
    silence_libraries(verbose=False)
    import dataclasses
    import os

    from qlora_repeat.api.colors import OUTCOMES, with_colored
    from qlora_repeat.api.progress import OneLine, console
    from qlora_repeat.records.self_test import self_test_file, self_test_of, write_self_test
    from qlora_repeat.selftest.run import self_test, with_earlier
    from qlora_repeat.system.files import json_text, make_folder, strict
    from qlora_repeat.system.fingerprint import fingerprint

    shown, progress = output(), console(quiet=as_json)

    def watch(jobs: "Sequence[Job]", workers: int) -> OneLine:
        return OneLine(progress)

    folder = runs or Path(os.environ.get("QLORA_REPEAT_RUNS") or "runs")
    machine = fingerprint()
    path = self_test_file(folder, machine)
    make_folder(folder)  # fail now, not after minutes
    earlier = self_test_of(folder, machine)

    def report(so_far: "SelfTest") -> None:
        check = so_far.checks[-1]
        if not as_json:
            line = f"{check.outcome:<11}  {check.name}: {check.figure}"
            shown.print(with_colored(one_line(line), OUTCOMES, most=1))
        write_self_test(path, with_earlier(so_far, earlier))  # so that a kill loses no check

    found = self_test(watch, report, full=full)
    if as_json:
        say_json(json_text(strict(dataclasses.asdict(found))))
    else:
        say(f"{found.sentence}; {found.seconds:.0f} s; {path}")
    if found.failed:
        raise StageError(
            f"{found.failed} of {len(found.checks)} checks failed; "
            "docs/howto/test-a-machine.md says what to do"
        )
