"""Base models: brought to the cache once as safetensors, loaded from there in NF4 or in full."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_repeat.digest import file_digest, folder_digests, json_digest
from qlora_repeat.errors import MissingError
from qlora_repeat.files import new_folder, write_json
from qlora_repeat.hub import snapshot_folder
from qlora_repeat.packages import verified
from qlora_repeat.pins import SOURCE, Pin, source_json
from qlora_repeat.sources import Base, Hub
from qlora_repeat.study import Study

MANIFEST = "manifest.json"


def base_folder(study: Study, name: str, cache: Path) -> Path:
    """Where a base model stands in the cache; another source or another pretraining is another folder."""
    return cache / "bases" / f"{name}-{json_digest(_identity(study, study.bases[name]))[:16]}"


def _identity(study: Study, base: Base) -> list[Any]:
    """What a cached base depends on; a pretrained one also on what it was not to see."""
    from pydantic import TypeAdapter

    plain: dict[str, Any] = TypeAdapter(Base).dump_python(base, mode="json", exclude_none=True)
    plain.pop("architecture", None)
    if base.pretraining is None:
        return [plain]
    return [plain, *([name, data.sha256] for name, data in study.data.items())]


def fetch_base(study: Study, name: str, cache: Path, pin: Pin | None = None) -> None:
    """Brings a base model to the cache, once: from a hub (`pin`), from a GGUF file, or by pretraining.

    A base from a hub says in its ``source.json`` what it was made from.

    Raises:
        MissingError: a package that carries a file is missing, its bytes are not the expected ones, or a
            repository's pickled weights hold anything but tensors.
    """
    base = study.bases[name]
    with new_folder(base_folder(study, name, cache)) as folder:
        if base.hub is not None:
            assert pin is not None, "a repository is pinned before it is used"
            _from_hub(base.hub, pin, folder)
        else:
            if base.gguf is not None:
                model, tokenizer = _from_gguf(verified(base.gguf))
            else:
                from qlora_repeat.pretrain import pretrain

                assert base.tokenizer is not None, "checked by the study"
                model, tokenizer = pretrain(study, base, verified(base.tokenizer))
            save_plain(model, folder)
            tokenizer.save_pretrained(folder)
        write_json(folder / MANIFEST, folder_digests(folder))


def _from_hub(hub: Hub, pin: Pin, folder: Path) -> None:
    """Links to a repository's files in the hub's cache; weights that are pickled are converted instead."""
    snapshot = snapshot_folder(hub, pin)
    pickled = [name for name in pin.files if name.startswith("pytorch_model")]
    for name in pin.files:
        if name not in pickled:
            target = (snapshot / name).resolve()
            (folder / name).symlink_to(os.path.relpath(target, folder.parent.resolve() / folder.name))
    if pickled:
        command = [sys.executable, "-m", "qlora_repeat.convert", str(snapshot), str(folder), *pickled]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise MissingError(f"{hub.repository}: its pickled weights cannot be converted ({reason})")
        converted = {path.name: file_digest(path) for path in sorted(folder.glob("model*.safetensors"))}
        if pin.converted and converted != pin.converted:
            raise MissingError(
                f"{hub.repository}: its pickled weights convert to other bytes than are locked; "
                "install the locked packages (`make setup`)"
            )
        pin = replace(pin, converted=converted)
    write_json(folder / SOURCE, source_json(pin))


def base_digest(study: Study, name: str, cache: Path) -> str | None:
    """The digest of a cached base model, or None if it is not in the cache."""
    try:
        return json_digest(json.loads((base_folder(study, name, cache) / MANIFEST).read_text("utf-8")))
    except (OSError, ValueError):
        return None


def base_bytes(study: Study, name: str, cache: Path) -> int:
    """The size of a cached base model's weights, which is about that of its merged models."""
    return sum(file.stat().st_size for file in base_folder(study, name, cache).glob("*.safetensors"))


def is_miniature(folder: Path) -> bool:
    """Whether a base is one of the rehearsal's, which tables must not pass off as the true model."""
    return "miniature" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def check_base(study: Study, name: str, cache: Path) -> None:
    """Re-hashes a cached base model.

    Raises:
        MissingError: it is not there, or a file's bytes are not the ones that were put there.
    """
    folder = base_folder(study, name, cache)
    if base_digest(study, name, cache) is None:
        raise MissingError(f"{folder}: base {name} is not there; run `qlora-repeat fetch` for this study")
    for file, expected in json.loads((folder / MANIFEST).read_text("utf-8")).items():
        if (folder / file).is_symlink() and not (folder / file).exists():
            raise MissingError(
                f"{folder / file} leads to a file of the hub's cache that is gone; "
                "set HF_HOME if that cache was moved, and run `qlora-repeat fetch` for this study"
            )
        if not (folder / file).is_file() or file_digest(folder / file) != expected:
            raise MissingError(f"{folder / file} was changed; delete the folder and run `qlora-repeat fetch`")


def _from_gguf(path: Path) -> tuple[Any, Any]:
    """A GGUF model in float16, which holds each of its 4-bit values to 11 bits, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    return model.to(torch.float16), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def save_plain(model: Any, folder: Path) -> None:
    """Saves what plain transformers loads, with no path of this machine in it."""
    model.config._name_or_path = ""
    model.save_pretrained(folder)


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


def load_quantised(study: Study, folder: Path) -> Any:
    """The frozen base in 4 bits, quantised while loading (section VII-A)."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=quantisation_config(study),
        dtype=getattr(torch, study.precision.compute),
        device_map={"": device()},
        use_safetensors=True,
    )


def quantisation_config(study: Study) -> Any:
    """How transformers is to quantise a model while loading it."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=study.quantisation.type,
        bnb_4bit_use_double_quant=study.quantisation.double,
        bnb_4bit_compute_dtype=getattr(torch, study.precision.compute),
    )
