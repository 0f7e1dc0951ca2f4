"""Sentences for the terminal and for pages: differences, verdicts, plans.

Read `diff` first.
"""
