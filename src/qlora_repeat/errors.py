"""The errors that a user can cause or correct, and their exit codes.

Exit codes: 0 success; 1 an unexpected failure (a bug: the traceback is shown); 2 a mistake on the
command line or in a study file; 3 something that the study needs is missing or is not what it was;
4 a stage failed; 5 another process works on the same trial; 6 stopped by a signal (SIGTERM, SIGUSR1), to be
gone on with by the same command; 7 trials that were compared differ; 8 to 10 the verdicts of `verify` but for
bitwise, which is 0, and different, which is 7; 130 stopped by Ctrl-C.
"""


class KitError(Exception):
    """An error told in one line, without a traceback: what is wrong, and what to do next."""

    exit_code = 4


class UsageError(KitError):
    """A study file, trial name or option that cannot be used as given."""

    exit_code = 2


class MissingError(KitError):
    """A package, file, model or result that is not there, or whose bytes are not the expected ones."""

    exit_code = 3


class NoGpuError(MissingError):
    """A study that asks for a GPU, in a process that can use none."""

    exit_code = 3


class StageError(KitError):
    """A stage of a trial that could not finish."""

    exit_code = 4


class BusyError(KitError):
    """A trial that another process is working on."""

    exit_code = 5


class StoppedError(KitError):
    """Work that was asked to stop by a signal, and is kept as far as it went."""

    exit_code = 6
