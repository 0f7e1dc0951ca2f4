"""Tables, figures, texts and the report: pure functions of results, without torch.

What computes a number belongs in `results` or `analysis`. Texts that do not depend on results are in
``notes.toml``. Read `tables.write` first.
"""
