"""The self-test of a machine: whether fine-tuning repeats on it, and what it needs."""
