"""Prepare a process for the stages of a study, before it imports a library that uses a device.

Every way into a stage begins here. Each process that runs a stage calls `prepare`. What starts such
processes calls `check_and_tell` before it fetches anything; what runs stages itself, `prepare_and_tell`.
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
    clear_environment()
    prepare_environment(study.randomness.kernels)
    if "OMP_NUM_THREADS" in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(study.threads)
    check_device(study.device)
    if (line := too_late()) is not None:
        raise StageError(line)


def check_and_tell(study: Study, warn: Callable[[str], None]) -> None:
    """Check that there is a device; say which variables are ignored, and whether the study runs on the CPU.

    It sets no variable that depends on the study, because processes that are started later may need others.

    Raises:
        NoGpuError: as `prepare`.
    """
    clear_environment()
    check_device(study.device)
    for line in (*notes(), cpu_line()):
        if line is not None:
            warn(line)


def prepare_and_tell(study: Study, warn: Callable[[str], None]) -> None:
    """Do both, where stages run in this process.

    Raises:
        NoGpuError: as `prepare`.
    """
    prepare_environment(study.randomness.kernels)
    check_and_tell(study, warn)
