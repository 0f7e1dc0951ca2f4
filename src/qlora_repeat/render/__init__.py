"""Tables, figures, texts and the report: pure functions of results, without torch.

What computes a number belongs in `results` or `analysis`. Read `tables.write` first.
"""
