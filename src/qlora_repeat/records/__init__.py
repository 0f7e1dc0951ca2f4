"""What a stage leaves, and whether it still counts.

A record names its inputs by digest, so that a change makes it stale. Running stages belongs in `stages` and
`execution`. Read `record` first, then `stage_inputs`.
"""
