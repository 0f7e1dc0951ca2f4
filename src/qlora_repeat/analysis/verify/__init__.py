"""Run a recorded trial again, and judge how well the re-run agrees with it.

Read `rerun` first, then `verdict`.
"""
