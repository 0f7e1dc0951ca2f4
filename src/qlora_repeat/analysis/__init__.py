"""Interpret trials and results: differences, verdicts, causes, claims.

The packages `verify`, `attribution` and `claims` do not import each other. How findings are shown belongs
in `render`. Read `trial_diff` first.
"""
