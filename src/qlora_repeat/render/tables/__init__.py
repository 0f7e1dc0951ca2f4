"""The paper's tables and the kit's own, as LaTeX, Markdown and text.

Read `table` first, then `paper_tables`.
"""
