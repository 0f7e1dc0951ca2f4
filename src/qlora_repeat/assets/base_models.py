"""Base models as they stand in the cache: checked, and loaded in NF4 or in full."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qlora_repeat.errors import MissingError
from qlora_repeat.study.data_sources import Base
from qlora_repeat.study.study import Study
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.hashing import MANIFEST, json_digest, known_digest, manifest_digest

_BASE = TypeAdapter(Base)
SOURCE = "source.json"
"""The pin that a folder of the cache was made from, where that was a hub's."""


def base_folder(workspace: Workspace, name: str) -> Path:
    """Where a base model stands in the cache; another source or another pretraining is another folder."""
    identity = _identity(workspace.study, workspace.study.bases[name])
    return workspace.cache / "bases" / f"{name}-{json_digest(identity)[:16]}"


def _identity(study: Study, base: Base) -> list[Any]:
    """What a cached base depends on; a pretrained one also on what it was not to see."""
    plain: dict[str, Any] = _BASE.dump_python(base, mode="json", exclude_none=True)
    plain.pop("architecture", None)
    for key, file in (("gguf", base.gguf), ("tokenizer", base.tokenizer)):
        if file is not None:
            plain[key] = file.identity
    if base.pretraining is None:
        return [plain]
    return [plain, *([name, data.sha256] for name, data in study.data.items())]


def base_digest(workspace: Workspace, name: str) -> str | None:
    """The digest of a cached base model, or None if it is not in the cache."""
    return manifest_digest(base_folder(workspace, name))


def base_bytes(workspace: Workspace, name: str) -> int:
    """The size of a cached base model's weights, which is about that of its merged models."""
    return sum(file.stat().st_size for file in base_folder(workspace, name).glob("*.safetensors"))


def hub_commit(folder: Path) -> str | None:
    """The commit that a base was fetched at, where it came from a hub."""
    try:
        return str(json.loads((folder / SOURCE).read_text(encoding="utf-8"))["commit"])
    except FileNotFoundError:
        return None


def is_miniature(folder: Path) -> bool:
    """Whether a base is one of the rehearsal's, which tables must not pass off as the true model."""
    return "miniature" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def check_base(workspace: Workspace, name: str, *, weights: bool = True) -> None:
    """Re-hashes a cached base model; without `weights`, all of it but those.

    Raises:
        MissingError: it is not there, or a file's bytes are not the ones that were put there.
    """
    folder = base_folder(workspace, name)
    if base_digest(workspace, name) is None:
        raise MissingError(f"{folder}: base {name} is not there; run `qlora-repeat fetch` for this study")
    for file, expected in json.loads((folder / MANIFEST).read_text("utf-8")).items():
        if not weights and file.endswith(".safetensors"):
            continue
        if (folder / file).is_symlink() and not (folder / file).exists():
            raise MissingError(
                f"{folder / file} leads to a file of the hub's cache that is gone; "
                "set HF_HOME if that cache was moved, and run `qlora-repeat fetch` for this study"
            )
        if not (folder / file).is_file() or known_digest(folder / file) != expected:
            raise MissingError(f"{folder / file} was changed; delete the folder and run `qlora-repeat fetch`")


def device() -> str:
    """Where models run: the first GPU, or the CPU."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a base model; padding uses the end-of-text token where there is no other."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_full(folder: Path, dtype: str) -> Any:
    """A model from a folder of safetensors, in evaluation mode, its arithmetic in `dtype`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), device_map={"": device()}, use_safetensors=True
    )
    return model.eval()


def load_quantized(study: Study, folder: Path) -> Any:
    """The frozen base in 4 bits, quantized while loading (section VII-A)."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=quantization_config(study),
        dtype=getattr(torch, study.precision.compute),
        device_map={"": device()},
        use_safetensors=True,
    )


def quantization_config(study: Study) -> Any:
    """How transformers is to quantize a model while loading it."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=study.quantization.type,
        bnb_4bit_use_double_quant=study.quantization.double,
        bnb_4bit_compute_dtype=getattr(torch, study.precision.compute),
    )
