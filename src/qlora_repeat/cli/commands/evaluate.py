"""`qlora-repeat evaluate`."""

from qlora_repeat.cli.commands.stage import stage_command

command = stage_command(
    "evaluate", "Measure a merged model's perplexity and accuracy, and record its responses."
)
