"""Collected results and their statistics, without torch.

What is shown of them belongs in `render`, what they mean in `analysis`. Read `trial_result` first, then
`collect`.
"""
