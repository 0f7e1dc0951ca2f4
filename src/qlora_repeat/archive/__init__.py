"""A study as one archive for others, and back.

What an archive holds is written by strangers: nothing here trusts it. Read `pack` first, then `unpack`.
"""
