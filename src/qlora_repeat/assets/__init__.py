"""Models and data, which are fetched to the cache once, verified and locked.

Code that works on a model in a trial belongs in `stages`. Read `fetch` first.
"""
