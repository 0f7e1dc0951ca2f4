"""`qlora-repeat merge`."""

from qlora_repeat.cli.commands.stage import stage_command

command = stage_command("merge", "Merge a trial's adapter into the base: W = W0 + BA x alpha/r.")
