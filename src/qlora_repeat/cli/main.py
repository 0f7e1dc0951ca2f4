"""The command line. A subcommand's module, and what it imports, is loaded only when it is called."""

import contextlib
import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import click

from qlora_repeat import __version__
from qlora_repeat.errors import KitError
from qlora_repeat.system.environment import clear_environment
from qlora_repeat.system.files import disk_error, disk_errors
from qlora_repeat.system.printable import say, say_block
from qlora_repeat.system.signals import stop_on_signals

GROUPS = {
    "Run a study": {
        "init": "Write a study file for your own model and data.",
        "plan": "Estimate memory, disk and hours on a GPU, before anything is fetched.",
        "fetch": "Fetch a study's models and data into the cache.",
        "run": "Run every trial that is not complete, then write tables, figures and report.",
        "trial": "Run the four stages of one trial in this process.",
        "finetune": "Fine-tune one trial, or all.",
        "merge": "Merge adapters into the base model.",
        "evaluate": "Measure perplexity and record responses.",
        "time": "Time the responses to the study's prompts.",
        "benchmark": "Run the study's benchmarks.",
        "submit": "Submit a study to Slurm: one task for each trial, then the tables.",
    },
    "Inspect": {
        "show": "List the studies, or show one study and its trials.",
        "status": "Show which trials are done, running, stale, damaged, failed or missing.",
        "doctor": "Show the machine, and what would stop a study from running here.",
        "selftest": "Test whether fine-tuning repeats on this machine, in minutes and without a network.",
    },
    "Results": {
        "collect": "Gather all records of a study into one results file.",
        "tables": "Render the paper's tables from collected results.",
        "figures": "Draw the paper's Figure 4 from collected results.",
        "report": "Write one HTML file of a study's results, to read without a network.",
        "paper": "Compile tables and figures into one PDF, with LaTeX.",
    },
    "Compare and explain": {
        "compare": "Compare two arms of any studies, or of tidy files of any tool.",
        "power": "Say how many trials a question needs, and what the present ones can find.",
        "diff": "Find the first step at which two trials differ, and in what.",
        "verify": "Run one recorded trial again, and say how far it agrees.",
        "attribute": "Find which source of randomness makes trials differ, by an experiment.",
        "interlab": "Compare the results of several laboratories.",
    },
    "Share": {
        "pack": "Pack a study into one archive that others can cite and check.",
        "check": "Re-hash all files of a study or an archive, and name what is damaged.",
        "unpack": "Check an archive, and unpack it.",
    },
}
"""The subcommands by purpose, each with its one-line help."""
HIDDEN = {"miniature": "Write a hub of miniature models, to rehearse a study on a CPU."}
"""Subcommands that `--help` leaves out: `make rehearsal` uses them."""
_RESUMES = (
    "fetch",
    "run",
    "trial",
    "finetune",
    "merge",
    "evaluate",
    "time",
    "benchmark",
    "attribute",
    "verify",
)
"""Subcommands that do the rest of their work if they are called again."""
COMMANDS = {name: help for group in [*GROUPS.values(), HIDDEN] for name, help in group.items()}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if ctx.resilient_parsing or ctx.invoked_subcommand is None:
            return click.Command(name, help=COMMANDS[name])  # enough for the list of commands in --help
        module = importlib.import_module(f"qlora_repeat.cli.commands.{name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        ctx.invoked_subcommand = args[0] if args else None
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"did you mean {close[0]!r}?" if close else "`qlora-repeat --help` lists them."
            raise click.UsageError(f"No such command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


@click.command(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success, 1 a bug, 2 wrong usage or study file, 3 something missing or changed, "
    "4 a stage failed, 5 another process works on the trial, 6 stopped by a signal, "
    "7 compared trials differ, 8 to 10 other verdicts of verify, 130 stopped by Ctrl-C.",
)
@click.version_option(__version__, prog_name="qlora-repeat")
def cli() -> None:
    """Repeat QLoRA fine-tuning studies, and measure how far their trials agree.

    \b
    Example:
      qlora-repeat run pocket && qlora-repeat tables pocket --format terminal
    """


class _Output(io.TextIOWrapper):
    """Standard output, whose errors name it."""

    def write(self, text: str, /) -> int:
        with self._named():
            return super().write(text)

    def flush(self) -> None:
        with self._named():
            super().flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        file = Path("/proc/self/fd/1").resolve()
        with disk_errors(f"standard output ({file})", "write it to another file"):
            yield


def main() -> None:
    """The console script: an error that a user can fix ends in one line and its exit code."""
    if sys.version_info < (3, 11, 1):  # pip checks it too
        sys.exit("Error: Python 3.11.0 lets other users into its processes (CVE-2022-42919); use a newer one")
    clear_environment()
    os.environ["PYTHONSAFEPATH"] = "1"  # the current folder may be a stranger's: no process imports from it
    if sys.stdout is None:  # closed
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    with _named_output():
        sys.exit(_exit_code())


@contextlib.contextmanager
def _named_output() -> Iterator[None]:
    """Write through an `_Output`; later, the same file is there for others, who may have opened it."""
    out = sys.stdout
    if not isinstance(out, io.TextIOWrapper):
        yield
        return
    sys.stdout = output = _Output(
        out.buffer,
        out.encoding,
        "backslashreplace",  # a locale may lack characters of a title
        line_buffering=out.line_buffering,
        write_through=out.write_through,
    )
    try:
        yield
    finally:
        sys.stdout = out
        output.detach()  # or its end would close the file


def _exit_code() -> int:
    """Run the command; show an error in one line."""
    try:
        with stop_on_signals(keyboard=True):
            code = cli.main(standalone_mode=False)
            sys.stdout.flush()  # fails here, not at the end of the process
    except (click.exceptions.Abort, KeyboardInterrupt):
        resumes = sys.argv[1:2] and sys.argv[1] in _RESUMES and "--force" not in sys.argv
        more = " Finished work is kept; run the same command to resume." if resumes else ""
        say(f"Stopped.{more}", error=True)
        code = 130
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        say_block(shown.getvalue().rstrip("\n"), error=True)
        code = error.exit_code
    except KitError as error:
        say(f"Error: {error}", error=True)
        code = error.exit_code
    except OSError as error:
        say(f"Error: {disk_error(error)}", error=True)
        code = 3
    except Exception:
        say_block(traceback.format_exc().rstrip("\n"), error=True)
        code = 1
    try:
        sys.stdout.flush()
    except (OSError, KitError):  # Python would fail once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code if isinstance(code, int) else 0
