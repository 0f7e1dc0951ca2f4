"""The base in 4 bits, quantized once: the trials of a study load the bytes that the first one made.

Quantizing takes far longer than reading what it gives, and gives the same bytes each time on one kind of
machine with the same libraries.
"""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qlora_repeat.assets.base_models import base_digest, base_folder, check_base, device, load_quantized
from qlora_repeat.assets.derived_cache import copy_folder, has_copy, keep_copy
from qlora_repeat.study.study import Quantization, Study
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.fingerprint import fingerprint, machine_digest


def load_frozen_base(workspace: Workspace, name: str) -> Any:
    """A base of the study in 4 bits, from a copy where there is one, and else quantized and copied.

    Raises:
        MissingError: there is no copy, and the base is not in the cache, or not as it was put there.
    """
    study, folder = workspace.study, quantized_folder(workspace, name)
    if has_copy(folder):
        return _load(folder, study)  # it is that of weights with the digest in its name
    check_base(workspace, name)
    model = load_quantized(study, base_folder(workspace, name))
    keep_copy(folder, model.save_pretrained)
    return model


def quantized_folder(workspace: Workspace, name: str) -> Path:
    """Where the copy of a base in 4 bits stands, or would."""
    study = workspace.study
    settings = TypeAdapter(Quantization).dump_python(study.quantization)
    depends_on = [base_digest(workspace, name), settings, study.precision.compute]
    return copy_folder(workspace.cache, "quantized", name, [*depends_on, machine_digest(fingerprint())])


def _load(folder: Path, study: Study) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, study.precision.compute),
        device_map={"": device()},
        use_safetensors=True,
    )
