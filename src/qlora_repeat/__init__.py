"""A reproducibility kit for the repeatability of QLoRA fine-tuning."""

__version__ = "0.1.0"
