"""`qlora-repeat plan`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import cache_option, silence_libraries, study_argument
from qlora_repeat.system.printable import say, say_block, say_json


@click.command("plan")
@study_argument
@click.option("--gpu", "gpu_name", required=True, help="Its name, as in a100-80gb, or the GB of its memory.")
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="How many of them.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON: bytes and seconds.")
@cache_option
def command(study_file: str, gpu_name: str, gpus: int, as_json: bool, cache: Path | None) -> None:
    """Estimate the memory, disk and hours that a study needs on a GPU. Nothing has to be fetched.

    Ends with exit code 2 if one GPU has too little memory for a model.

    \b
    Example:
      qlora-repeat plan paper --gpu=a100-80gb --gpus=4
    """
    silence_libraries(verbose=False)
    import dataclasses
    import json

    from qlora_repeat.api.results import paper_results
    from qlora_repeat.errors import UsageError
    from qlora_repeat.planning.gpu_catalog import find_gpu
    from qlora_repeat.planning.plan import make_plan
    from qlora_repeat.render.text.plan import plan_text
    from qlora_repeat.study.loading import open_workspace

    workspace, gpu = open_workspace(study_file, cache=cache), find_gpu(gpu_name)
    plan = make_plan(workspace, gpu, gpus, paper_results().items)
    say_json(json.dumps(dataclasses.asdict(plan), indent=2)) if as_json else say_block(plan_text(plan))
    if problems := plan.too_large():
        for line in problems[:-1]:
            say(f"Error: {line}", error=True)
        raise UsageError(problems[-1])
