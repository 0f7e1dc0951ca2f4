"""Prepare a process for the stages of a study, before it imports a library that uses a device.

Every way into a stage begins here. Each process that runs a stage calls `prepare`. What starts such
processes calls `check_and_tell` before it fetches anything; what runs stages itself, `prepare_and_tell`.
"""

from collections.abc import Callable

from qlora_repeat.study.study import Study
from qlora_repeat.system.determinism import prepare_environment
from qlora_repeat.system.gpus import check_device, cpu_line


def prepare(study: Study) -> None:
    """Set the variables that a device's libraries read when they start, and check that there is a device.

    Raises:
        NoGpuError: the study asks for a GPU or the pool gave one, and this process can use none.
    """
    prepare_environment(study.randomness.kernels)
    check_device(study.device)


def check_and_tell(study: Study, warn: Callable[[str], None]) -> None:
    """Check that there is a device, and say so if the study runs on the CPU.

    It sets no variable, because processes that are started later may need others.

    Raises:
        NoGpuError: as `prepare`.
    """
    check_device(study.device)
    if (line := cpu_line()) is not None:
        warn(line)


def prepare_and_tell(study: Study, warn: Callable[[str], None]) -> None:
    """Prepare this process for the stages of a study, and say so if it runs on the CPU.

    Raises:
        NoGpuError: as `prepare`.
    """
    prepare_environment(study.randomness.kernels)
    check_and_tell(study, warn)
