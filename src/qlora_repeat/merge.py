"""Merging an adapter into the base: W = W0 + BA x alpha/r (section VII; the paper leaves out alpha/r).

The sum is computed in float32 from the base's own full-precision weights and then rounded once to the
study's format. Merging into 4-bit weights instead would round the adapter away in part.
"""

import shutil
from pathlib import Path
from typing import Any

from qlora_repeat.base_model import base_folder, check_base, load_full, load_tokenizer, save_plain
from qlora_repeat.digest import weights_digest
from qlora_repeat.errors import StageError
from qlora_repeat.files import new_folder
from qlora_repeat.trial import Trial


def merge(trial: Trial, cache: Path) -> dict[str, Any]:
    """Merges a trial's adapter and leaves a model that plain transformers loads.

    Returns:
        The record's outputs: the digest of the merged weights, and their size in bytes.
    """
    import torch

    study, base = trial.study, trial.model.base
    check_base(study, base, cache)
    source = base_folder(study, base, cache)
    merged = merged_model(source, trial.adapter)
    with new_folder(trial.merged) as folder:
        save_plain(merged.to(getattr(torch, study.precision.merged)), folder)
        load_tokenizer(source).save_pretrained(folder)
    size = sum(file.stat().st_size for file in trial.merged.glob("*.safetensors"))
    return {"merged_digest": weights_digest(trial.merged), "merged_bytes": size}


def merged_model(base: Path, adapter: Path) -> Any:
    """The base with the adapter merged into it, in float32."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_full(base, "float32"), adapter).merge_and_unload()


def require_merged(trial: Trial, cache: Path, digest: str) -> None:
    """Rebuilds a trial's merged model if it has been deleted since, and checks that it is the recorded one.

    Raises:
        StageError: the weights are not those that the merge stage recorded.
    """
    if (trial.merged / "config.json").is_file():
        found = weights_digest(trial.merged)
    else:
        found = merge(trial, cache)["merged_digest"]
    if found != digest:
        delete_merged(trial)
        raise StageError(
            f"{trial.merged}: the weights have digest {found[:16]}, the merge record says {digest[:16]}; "
            f"run `qlora-repeat merge {trial.name} --force` if this machine is to replace them"
        )


def delete_merged(trial: Trial) -> None:
    """Frees the disk that merged weights take."""
    shutil.rmtree(trial.merged, ignore_errors=True)
