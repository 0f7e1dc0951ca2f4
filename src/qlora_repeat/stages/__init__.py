"""The experiment itself: fine-tune, merge, evaluate, time.

Every module here belongs to the code digest of the stages that import it: changing what it does makes their
records stale. What only shows or reports does not belong here. Read `finetune` first.
"""
