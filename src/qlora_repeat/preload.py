"""The libraries that every trial needs, imported once in the server that trials are forked from.

Importing must touch no model, no device and no generator that a trial relies on.
"""

# ruff: noqa: E402
import logging

logging.disable(logging.WARNING)  # what libraries lack that nothing here needs is no news to who runs a study

import bitsandbytes  # noqa: F401
import datasets  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401

# transformers loads its parts on first use.
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments  # noqa: F401
from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

import qlora_repeat.evaluate
import qlora_repeat.finetune
import qlora_repeat.frozen
import qlora_repeat.merge
import qlora_repeat.timing
import qlora_repeat.tracing  # noqa: F401
from qlora_repeat.fingerprint import lock_digest, packages
from qlora_repeat.inputs import MODULES, code_digest

# What is on disk may change while a study runs: records must name the code that was imported, here and now.
for modules in MODULES.values():
    code_digest(*modules)
lock_digest()
packages()

logging.disable(logging.NOTSET)  # trials have logs of their own
