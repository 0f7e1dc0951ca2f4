"""Pack a study into one archive for others; unpack and check archives.

An archive may come from anyone, so nothing here trusts its content. Read `pack` first, then `unpack`.
"""
