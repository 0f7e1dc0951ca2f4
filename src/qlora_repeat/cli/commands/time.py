"""`qlora-repeat time`."""

from qlora_repeat.cli.commands.stage import stage_command

command = stage_command("time", "Time how long a merged model takes to answer the study's prompts.")
