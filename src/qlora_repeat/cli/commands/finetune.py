"""`qlora-repeat finetune`."""

from qlora_repeat.cli.commands.stage import stage_command

command = stage_command(
    "finetune", "Fine-tune one trial, or all: a QLoRA adapter in PEFT's format, and the trace of its steps."
)
