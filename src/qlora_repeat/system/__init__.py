"""Files, hashes, locks, signals, memory and determinism: the ground that knows no study.

A module here could serve another project as it is. What knows a study key or a trial does not belong here.
Read `files` first.
"""
