"""`qlora-repeat benchmark`."""

from qlora_repeat.cli.commands.stage import stage_command

command = stage_command(
    "benchmark",
    "Run the study's benchmarks (evaluation.lm_eval) on a merged model, by lm-evaluation-harness.",
)
