"""Models and data: brought to the cache once, verified, and locked.

What happens to a model in a trial belongs in `stages`. Read `fetch` first.
"""
