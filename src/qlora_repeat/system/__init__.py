"""Files, hashes, locks, signals, memory and determinism, without knowledge of studies.

Another project could use each module unchanged. Code that knows a study key or a trial does not belong here.
Read `files` first.
"""
