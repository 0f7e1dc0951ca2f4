"""The experiment that asks which source of randomness makes trials differ.

Read `experiment` first, then `decompose`.
"""
