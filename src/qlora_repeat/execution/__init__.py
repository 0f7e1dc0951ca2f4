"""Run the trials of a study, each in its own process.

Computation belongs in `stages`, display in `cli`. Read `run_study` first, then `run_trial`.
"""
