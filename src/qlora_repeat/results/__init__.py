"""Collect results and compute their statistics, without torch.

Tables and figures belong in `render`, interpretation in `analysis`. Read `trial_result` first, then
`collect`.
"""
