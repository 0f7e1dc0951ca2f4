"""Run a recorded trial again, and judge how far it agrees.

Read `rerun` first, then `verdict`.
"""
