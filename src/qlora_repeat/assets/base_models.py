"""Find, check and load base models in the cache, in NF4 or in full precision."""

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
"""The file with the pin that a cache folder was made from, if it came from a hub."""


def base_folder(workspace: Workspace, name: str) -> Path:
    """Return the cache folder of a base model, which depends on its source and pretraining."""
    identity = _identity(workspace.study, workspace.study.bases[name])
    return workspace.cache / "bases" / f"{name}-{json_digest(identity)[:16]}"


def _identity(study: Study, base: Base) -> list[Any]:
    """Return what a cached base depends on; for a pretrained one also the data that it must not see."""
    plain: dict[str, Any] = _BASE.dump_python(base, mode="json", exclude_none=True)
    plain.pop("architecture", None)
    for key, file in (("gguf", base.gguf), ("tokenizer", base.tokenizer)):
        if file is not None:
            plain[key] = file.identity
    if base.pretraining is None:
        return [plain]
    return [plain, *([name, data.sha256] for name, data in study.data.items())]


def base_digest(workspace: Workspace, name: str) -> str | None:
    """Return the digest of a cached base model, or None if it is not in the cache."""
    return manifest_digest(base_folder(workspace, name))


def base_bytes(workspace: Workspace, name: str) -> int:
    """Return the bytes of a cached base model's weights; its merged models have about the same."""
    return sum(file.stat().st_size for file in base_folder(workspace, name).glob("*.safetensors"))


def hub_commit(folder: Path) -> str | None:
    """Return the commit of a base from a hub, or None for other bases."""
    try:
        return str(json.loads((folder / SOURCE).read_text(encoding="utf-8"))["commit"])
    except FileNotFoundError:
        return None


def is_miniature(folder: Path) -> bool:
    """Return whether a base is a miniature of the rehearsal, which tables must not show as the true model."""
    return "miniature" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def check_base(workspace: Workspace, name: str, *, weights: bool = True) -> None:
    """Check the digests of a cached base model's files; without `weights`, of the other files only.

    Raises:
        MissingError: it is missing, or the bytes of a file have changed.
    """
    folder = base_folder(workspace, name)
    if base_digest(workspace, name) is None:
        raise MissingError(f"{folder}: base {name} is missing; run `qlora-repeat fetch` for this study")
    for file, expected in json.loads((folder / MANIFEST).read_text("utf-8")).items():
        if not weights and file.endswith(".safetensors"):
            continue
        if (folder / file).is_symlink() and not (folder / file).exists():
            raise MissingError(
                f"{folder / file} links to a missing file in the hub's cache; "
                "set HF_HOME if that cache was moved, and run `qlora-repeat fetch` for this study"
            )
        if not (folder / file).is_file() or known_digest(folder / file) != expected:
            raise MissingError(f"{folder / file} was changed; delete the folder and run `qlora-repeat fetch`")


def device() -> str:
    """Return the device of models: the first GPU, or the CPU."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a base model; without a padding token, it pads with the end-of-text token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_full(folder: Path, dtype: str) -> Any:
    """Load a model from safetensors in evaluation mode; it computes in `dtype`."""
    return load_model(folder, dtype).eval()


def load_quantized(study: Study, folder: Path) -> Any:
    """Load the frozen base in 4 bits, quantized while loading (section VII-A)."""
    return load_model(folder, study.precision.compute, quantization_config=quantization_config(study))


def load_model(folder: Path, dtype: str, **options: Any) -> Any:
    """Load a model from safetensors onto the device, with more options of `from_pretrained`."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), device_map={"": device()}, use_safetensors=True, **options
    )


def quantization_config(study: Study) -> Any:
    """Return the configuration with which transformers quantizes a model while loading it."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=study.quantization.type,
        bnb_4bit_use_double_quant=study.quantization.double,
        bnb_4bit_compute_dtype=getattr(torch, study.precision.compute),
    )
