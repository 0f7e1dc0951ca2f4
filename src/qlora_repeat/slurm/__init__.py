"""Run a study on a Slurm cluster: its jobs, their tasks and logs.

A task runs the same code as one machine does (`execution`). Read `submit` first.
"""
