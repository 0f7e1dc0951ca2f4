"""What a stage leaves, and whether it is still valid.

A record names its inputs by digest, so that a change makes it stale. Code that runs stages belongs in
`stages` and `execution`. Read `record` first, then `trial_state`.
"""
