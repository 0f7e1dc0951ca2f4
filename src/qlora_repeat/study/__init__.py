"""What a study file says: typed, frozen dataclasses, its trials, and the paths that belong to them.

Nothing here reads a model, a record or a result. Read `study` first, then `trial`.
"""
