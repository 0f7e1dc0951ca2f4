"""What the paper claims, and whether results support it; without torch.

Read `claims` first.
"""
