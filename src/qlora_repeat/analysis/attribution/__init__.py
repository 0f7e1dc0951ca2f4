"""Run and analyze the experiment that shows which source of randomness makes trials differ.

Read `experiment` first, then `decompose`.
"""
