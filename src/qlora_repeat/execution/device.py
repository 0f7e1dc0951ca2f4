"""Prepare a process for the stages of a study, before it imports a library that uses a device.

Every way into a stage begins here. What starts trials calls `prepare_and_tell` before it fetches anything,
and each process that runs a stage calls `prepare`.
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


def prepare_and_tell(study: Study, warn: Callable[[str], None]) -> None:
    """Do the same, and say so if the study runs on the CPU.

    Raises:
        NoGpuError: as `prepare`.
    """
    prepare(study)
    if (line := cpu_line()) is not None:
        warn(line)
