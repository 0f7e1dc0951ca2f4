"""Prepare a process for the stages of a study, before it imports a library that uses a device.

Every way into a stage begins here. What starts trials calls `prepare_and_tell` before it fetches anything,
and each process that runs a stage calls `prepare`.
"""

import os
from collections.abc import Callable

from qlora_repeat.errors import StageError
from qlora_repeat.study.study import Study
from qlora_repeat.system.determinism import prepare_environment
from qlora_repeat.system.environment import clear_environment, notes, too_late
from qlora_repeat.system.gpus import check_device, cpu_line


def prepare(study: Study) -> None:
    """Set the variables that libraries read when they start, remove others, and check the device.

    Raises:
        NoGpuError: the study asks for a GPU or the pool gave one, and this process can use none.
        StageError: torch was imported with a variable that can change bits.
    """
    _prepare(study)
    if (line := too_late()) is not None:
        raise StageError(line)


def _prepare(study: Study) -> None:
    clear_environment()
    prepare_environment(study.randomness.kernels)
    if "OMP_NUM_THREADS" in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(study.threads)
    check_device(study.device)


def prepare_and_tell(study: Study, warn: Callable[[str], None]) -> None:
    """Do the same, and say which variables are ignored, and whether the study runs on the CPU.

    Raises:
        NoGpuError: as `prepare`.
    """
    _prepare(study)  # trials may run in other processes
    for line in (*notes(), cpu_line()):
        if line is not None:
            warn(line)
