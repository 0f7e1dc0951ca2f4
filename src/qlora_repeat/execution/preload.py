"""Import the libraries that the stages need.

The server that forks a study's trials imports this module; another process imports it before it fine-tunes
or tests a base. The imports must not touch a model, a device or a random generator that a trial depends on.
"""

import gc
import logging
import sys

from qlora_repeat.system.memory import gc_paused
from qlora_repeat.system.optional_packages import UNWANTED, without

disabled = logging.root.manager.disable
logging.disable(logging.WARNING)  # libraries warn of missing packages that are not needed here

# transformers imports these where they are installed; no stage uses them. It asks once which packages there
# are, so nothing is hidden if it has asked.
unused = () if "transformers" in sys.modules else ("datasets", "scipy")
with gc_paused(), without(*unused, *UNWANTED):
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401

    # transformers imports its parts on first use.
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments  # noqa: F401
    from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import qlora_repeat.stages.benchmark
    import qlora_repeat.stages.dequantize
    import qlora_repeat.stages.evaluate
    import qlora_repeat.stages.finetune
    import qlora_repeat.stages.merge
    import qlora_repeat.stages.timing
    import qlora_repeat.stages.trainer  # noqa: F401
    from qlora_repeat.records.code_digest import code_digest
    from qlora_repeat.records.stage_inputs import MODULES
    from qlora_repeat.system.fingerprint import kernel_packages, lock_digest, packages

# Exclude imported objects from garbage collection, which would copy memory that forked trials share.
gc.freeze()

# Files may change while a study runs, but records must name the code that was imported.
for modules in MODULES.values():
    code_digest(*modules)
lock_digest()
packages()
kernel_packages()

logging.disable(disabled)
