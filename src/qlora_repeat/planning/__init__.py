"""What a study needs of a machine, and whether this machine has it.

Nothing here runs a trial. Read `plan` first, then `doctor`.
"""
