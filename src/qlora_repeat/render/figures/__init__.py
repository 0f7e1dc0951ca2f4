"""The paper's Figure 4 and the kit's own figures.

Read `write` first, then `drawing`.
"""
