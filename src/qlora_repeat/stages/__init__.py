"""The experiment itself: fine-tune, merge, evaluate, time.

Every module here is part of the code digest of the stages that import it: a change to its code makes their
records stale. So code that only displays or reports does not belong here. Read `finetune` first.
"""
