"""A study on a cluster: jobs, their tasks, their logs.

A task runs the same code as one machine does (`execution`). Read `submit` first.
"""
