"""Quantize the base to 4 bits once; later trials of a study load the copy that the first trial made.

Quantizing takes far longer than reading the result, and gives the same bytes each time on one kind of machine
with the same libraries.
"""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qlora_repeat.assets.base_models import base_digest, base_folder, check_base, load_model, load_quantized
from qlora_repeat.assets.derived_cache import copy_folder, has_copy, keep_copy
from qlora_repeat.study.study import Quantization
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.fingerprint import fingerprint, machine_digest


def load_frozen_base(workspace: Workspace, name: str) -> Any:
    """Load a base in 4 bits from its copy, or quantize it and keep a copy.

    Raises:
        MissingError: there is no copy, and the base is missing from the cache or has changed.
    """
    study, folder = workspace.study, quantized_folder(workspace, name)
    if has_copy(folder):
        return load_model(folder, study.precision.compute)  # its name has the digest of the weights
    check_base(workspace, name)
    model = load_quantized(study, base_folder(workspace, name))
    keep_copy(folder, model.save_pretrained)
    return model


def quantized_folder(workspace: Workspace, name: str) -> Path:
    """Return the folder for the copy of a base in 4 bits."""
    study = workspace.study
    settings = TypeAdapter(Quantization).dump_python(study.quantization)
    depends_on = [base_digest(workspace, name), settings, study.precision.compute]
    return copy_folder(workspace.cache, "quantized", name, [*depends_on, machine_digest(fingerprint())])
