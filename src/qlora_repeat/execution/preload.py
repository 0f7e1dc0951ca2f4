"""The libraries that fine-tuning and the other stages need, imported at once.

A study's trials are forked from a server that has done so; a trial on its own does so before it fine-tunes.
Importing must touch no model, no device and no generator that a trial relies on.
"""

import gc
import logging

from qlora_repeat.system.memory import gc_paused

disabled = logging.root.manager.disable
logging.disable(logging.WARNING)  # what libraries lack that nothing here needs is no news to who runs a study

with gc_paused():
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401

    # transformers loads its parts on first use.
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments  # noqa: F401
    from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import qlora_repeat.stages.dequantize
    import qlora_repeat.stages.evaluate
    import qlora_repeat.stages.finetune
    import qlora_repeat.stages.merge
    import qlora_repeat.stages.timing
    import qlora_repeat.stages.trainer  # noqa: F401
    from qlora_repeat.records.code_digest import code_digest
    from qlora_repeat.records.stage_inputs import MODULES
    from qlora_repeat.system.fingerprint import lock_digest, packages

# What was imported stays: no search needs to go through it, nor write to the memory that forked trials share.
gc.freeze()

# What is on disk may change while a study runs: records must name the code that was imported, here and now.
for modules in MODULES.values():
    code_digest(*modules)
lock_digest()
packages()

logging.disable(disabled)  # trials have logs of their own
