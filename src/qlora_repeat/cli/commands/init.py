"""`qlora-repeat init`."""

from typing import get_args

import click

from qlora_repeat.cli.options import cpu_option, silence_libraries
from qlora_repeat.study.data_sources import MESSAGES, Task
from qlora_repeat.system.printable import say


def _columns(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(each.partition("=")[::2] for each in given)
    known = ("quote", "instruction", "answer", MESSAGES)
    if wrong := [key for key, column in pairs.items() if key not in known or not column]:
        raise click.BadParameter(f"{wrong[0]!r}: expected KEY=COLUMN; KEY is one of {', '.join(known)}")
    return pairs


@click.command("init")
@click.argument("name")
@click.option("--model", required=True, help="A folder of a model, or OWNER/NAME on a hub.")
@click.option("--data", required=True, help="A file with rows, or OWNER/NAME of a dataset on a hub.")
@click.option(
    "--task", type=click.Choice(get_args(Task)), help="What the rows are for.  [default: by columns]"
)
@click.option("--trials", type=click.IntRange(1, 1000), default=3, show_default=True, help="Trials.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="KEY=COLUMN",
    callback=_columns,
    help="The column of quote, instruction, answer or messages; repeatable.  [default: by usual names]",
)
@cpu_option
def command(
    name: str, model: str, data: str, task: Task | None, trials: int, columns: dict[str, str]
) -> None:
    """Write a short study file NAME.toml for your model and data, which explains its choices.

    It looks at the model's configuration and at the rows. With a folder and a file, nothing is downloaded.
    No file is overwritten.

    \b
    Example:
      qlora-repeat init mine --model HuggingFaceTB/SmolLM2-135M --data rows.jsonl
    """
    silence_libraries(verbose=False)
    from qlora_repeat.planning.new_study import write_new_study
    from qlora_repeat.system.gpus import visible_gpus

    compute, on_gpu = "float32", bool(visible_gpus())
    if on_gpu:
        import torch

        compute = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    made = write_new_study(
        name, model, data, task=task, trials=trials, columns=columns, on_gpu=on_gpu, compute=compute
    )
    for line in made.found:
        say(line)
    say(f"{made.path}: written. Read it, then: {made.command}")
