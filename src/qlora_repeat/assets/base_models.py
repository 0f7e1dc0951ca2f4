"""Find, check and load base models in the cache, in NF4 or in full precision."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

from qlora_repeat.assets.configuration import mend_padding, refuse_code, usable
from qlora_repeat.assets.pins import (
    CONFIGURATIONS,
    Pin,
    file_digest_of,
    find_folder,
    folder_digest,
    found_of,
    not_pinned,
    pickled_files,
    pin_of,
    rows_sha256,
    source_name,
)
from qlora_repeat.errors import MissingError
from qlora_repeat.study.data_sources import Base
from qlora_repeat.study.study import Study
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import json_text
from qlora_repeat.system.hashing import (
    MANIFEST,
    json_digest,
    known_digests,
    manifest_digest,
    read_manifest,
    text_digest,
)
from qlora_repeat.system.safetensors_file import INDEX, index_text
from qlora_repeat.system.typed_json import read_as

_BASE = TypeAdapter(Base)
_KEYS = TypeAdapter(dict[str, Any])
_OTHER_MODEL = "the study must name another model"
_AGAIN = "delete the folder and fetch the study again"
SOURCE = "source.json"
"""The file with the pin that a cache folder was made from, if it came from a hub."""


class _Source(TypedDict):
    commit: str


_SOURCE: TypeAdapter[_Source] = TypeAdapter(_Source)


def base_source(workspace: Workspace, name: str) -> str:
    """Return the name of a base with a digest of its source and pretraining, without the commit."""
    return source_name(name, _identity(workspace, name))


def base_folder(workspace: Workspace, name: str) -> Path:
    """Return the cache folder of a base model; for a base from a hub, its name ends with the commit."""
    source, hub = base_source(workspace, name), workspace.study.bases[name].hub
    return find_folder(workspace, "bases", source, hub, _is_pinned)


def _identity(workspace: Workspace, name: str) -> list[Any] | None:
    """Return what a cached base depends on; for a pretrained one also the data that it must not see.

    None if a digest is not known before the first fetch.
    """
    study, base, found = workspace.study, workspace.study.bases[name], found_of(workspace, "bases", name)
    plain: dict[str, Any] = _BASE.dump_python(base, mode="json", exclude_none=True)
    plain.pop("architecture", None)
    for key, file in (("gguf", base.gguf), ("tokenizer", base.tokenizer)):
        if file is not None:
            plain[key] = {**file.place, "sha256": file_digest_of(found, file, key)}
    if base.folder is not None:
        plain["folder"] = {"sha256": base.folder.sha256 or folder_digest(found)}
    if any(isinstance(table, dict) and table.get("sha256", "") is None for table in plain.values()):
        return None
    if base.pretraining is None:
        return [plain]
    unseen = {name: rows_sha256(workspace, name) for name in study.data}
    generated = [name for name, data in study.data.items() if data.hub is None and data.file is None]
    return None if None in [unseen[name] for name in generated] else [plain, *map(list, unseen.items())]


def base_digest(workspace: Workspace, name: str) -> str | None:
    """Return the digest of a cached base model, or None if it is not in the cache."""
    return manifest_digest(base_folder(workspace, name))


def base_bytes(workspace: Workspace, name: str) -> int:
    """Return the bytes of a cached base model's weights; its merged models have about the same."""
    return sum(file.stat().st_size for file in base_folder(workspace, name).glob("*.safetensors"))


def hub_commit(folder: Path) -> str | None:
    """Return the commit of a base from a hub, or None for other bases.

    Raises:
        MissingError: its file cannot be read.
    """
    path = folder / SOURCE
    return read_as(_SOURCE, path, _AGAIN, follow=True)["commit"] if path.is_file() else None


def is_miniature(folder: Path) -> bool:
    """Return whether a base is a miniature of the rehearsal, which tables must not show as the true model.

    Raises:
        MissingError: its configuration cannot be read.
    """
    return "miniature" in read_as(_KEYS, folder / "config.json", _AGAIN, follow=True)


def base_is_fetched(workspace: Workspace, name: str) -> bool:
    """Return whether the cache has a base model with the manifest that the lock file asks for.

    Raises:
        MissingError: its manifest has other files.
        UsageError: the lock file contradicts the study.
    """
    return _pinned_manifest(workspace, name) is not None and _links_lead(base_folder(workspace, name))


def _pinned_manifest(workspace: Workspace, name: str) -> dict[str, str] | None:
    folder, hub = base_folder(workspace, name), workspace.study.bases[name].hub
    manifest = read_manifest(folder)
    if hub is None:
        base = workspace.study.bases[name].folder
        if base is not None and manifest is not None:
            wanted = base.sha256 or folder_digest(found_of(workspace, "bases", name))
            return manifest if json_digest(manifest) == wanted else None
        return manifest
    pin = pin_of(workspace, hub, "model")
    if pin is None or lacks_conversion(pin) or manifest is None:
        return None
    if (wrong := _unlike(folder, manifest, pin)) is not None:
        raise not_pinned(workspace, hub, folder / wrong)
    return manifest


def _links_lead(folder: Path) -> bool:
    """Return whether the links into the hub's cache lead to files."""
    return all(path.exists() for path in folder.glob("*"))


def lacks_conversion(pin: Pin) -> bool:
    """Return whether a pin of a model has pickled weights, but not yet the digests of their conversions."""
    return bool(pickled_files(pin.files)) and not pin.converted


def _is_pinned(folder: Path, pin: Pin | None) -> bool:
    manifest = read_manifest(folder)
    if manifest is None or not _links_lead(folder):
        return False
    return pin is None or (not lacks_conversion(pin) and _unlike(folder, manifest, pin) is None)


def _unlike(folder: Path, manifest: dict[str, str], pin: Pin) -> str | None:
    """Return a file of a base whose digest in the manifest is not what its pin says; None if all are.

    The index of converted weights is not pinned, but follows from them.
    """
    pickled = pickled_files(pin.files)
    expected = {name: file.digest for name, file in pin.files.items() if name not in pickled}
    expected |= pin.converted | {SOURCE: text_digest(json_text(asdict(pin)))}
    if any(name.endswith(".json") for name in pickled):
        try:
            expected[INDEX] = text_digest(index_text(folder, sorted(pin.converted)))
        except MissingError:
            return INDEX
    wrong = [name for name in {**expected, **manifest} if manifest.get(name) != expected.get(name)]
    return min(wrong, default=None)


def check_base(workspace: Workspace, name: str, *, weights: bool = True) -> None:
    """Check the digests of a cached base model's files; without `weights`, of the other files only.

    The digests are those of its manifest, which must have exactly the files of the lock file.

    Raises:
        MissingError: it is missing, the bytes of a file have changed, or the lock file names other files.
        UsageError: the lock file contradicts the study.
    """
    folder, command = base_folder(workspace, name), workspace.command("fetch")
    if (manifest := _pinned_manifest(workspace, name)) is None:
        raise MissingError(f"{folder}: base {name} is missing; run `{command}`")
    known = {*manifest, MANIFEST}
    for path in sorted(folder.rglob("*")):  # libraries would also load files that they find
        is_file = path.is_symlink() or not path.is_dir()
        if is_file and path.relative_to(folder).as_posix() not in known and path.name[0] != ".":
            raise MissingError(f"{path} was added; delete the folder and run `{command}`")
    digests = dict[Path, str]()
    for file, expected in manifest.items():
        if not weights and file.endswith(".safetensors"):
            continue
        if (folder / file).is_symlink() and not (folder / file).exists():
            is_own = workspace.study.bases[name].folder is not None
            where, advice = (
                ("the study's folder", "correct the study if that was moved")
                if is_own
                else ("the hub's cache", "set HF_HOME if that cache was moved")
            )
            raise MissingError(
                f"{folder / file} links to a missing file in {where}; {advice}, and run `{command}`"
            )
        if not (folder / file).is_file():
            raise _changed(folder / file, command)
        digests[folder / file] = expected
    for path, digest in known_digests(digests).items():
        if digest != digests[path]:
            raise _changed(path, command)
    refuse_code(folder, manifest.keys() & set(CONFIGURATIONS), f"base {name}")


def _changed(path: Path, command: str) -> MissingError:
    return MissingError(f"{path} was changed; delete the folder and run `{command}`")


def device() -> str:
    """Return the device of models: the first GPU, or the CPU."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a base model; without a padding token, it pads with the end-of-text token."""
    from transformers import AutoTokenizer

    with usable(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_full(folder: Path, dtype: str) -> Any:
    """Load a model from safetensors in evaluation mode; it computes in `dtype`."""
    return load_model(folder, dtype).eval()


def load_quantized(study: Study, folder: Path) -> Any:
    """Load the frozen base, quantized while loading (section VII-A) unless the study says none."""
    config = quantization_config(study)
    options = {} if config is None else {"quantization_config": config}
    return load_model(folder, study.precision.compute, **options)


def load_model(folder: Path, dtype: str, **options: Any) -> Any:
    """Load a model from safetensors onto the device, with more options of `from_pretrained`.

    Raises:
        MissingError: transformers cannot read it, or would fill weights that it lacks with random numbers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with usable(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if mend_padding(config):
            options["config"] = config
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            device_map={"": device()},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    if lacking := sorted(found["missing_keys"]):
        raise MissingError(
            f"{folder}: the files lack {len(lacking)} weights of the model, such as {lacking[0]}, which "
            f"transformers would fill with random numbers; {_OTHER_MODEL}"
        )
    return model


def quantization_config(study: Study) -> Any:
    """Return the configuration with which transformers quantizes a model while loading it; None for none."""
    import torch
    from transformers import BitsAndBytesConfig

    if study.quantization.type == "none":
        return None
    if study.quantization.type == "int8":
        # It warns of each product that rounds its inputs, which is how 8 bits work.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=study.quantization.type,
        bnb_4bit_use_double_quant=study.quantization.double,
        bnb_4bit_compute_dtype=getattr(torch, study.precision.compute),
    )
