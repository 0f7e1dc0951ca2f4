"""Many trials, each in a process of its own.

What a stage computes belongs in `stages`; what a person sees of it, in `cli`. Read `run_trial` first, then
`process_pool`.
"""
