"""Judge whether results support the paper's claims, without torch.

Read `claims` first.
"""
