"""Put bases and data into the cache once, from a hub's cache, from packages, or by pretraining.

It is separate from the modules that use the cache, because those count in the code digest of a record.
"""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import SOURCE, base_folder
from qlora_repeat.assets.dataset_builders import corpus_rows, file_rows, json_lines, rows_digest
from qlora_repeat.assets.datasets import ROWS, data_folder
from qlora_repeat.assets.hub import snapshot_folder
from qlora_repeat.assets.hub_lock import Pin
from qlora_repeat.assets.package_files import verified
from qlora_repeat.errors import MissingError
from qlora_repeat.study.data_sources import Hub
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import new_folder, write_json, write_text
from qlora_repeat.system.hashing import MANIFEST, file_digest, folder_digests, text_digest
from qlora_repeat.system.safetensors_file import check_weights


def fetch_base(workspace: Workspace, name: str, pin: Pin | None = None) -> None:
    """Put a base model into the cache, from a hub (`pin`), from a GGUF file, or by pretraining.

    The ``source.json`` of a base from a hub has its pin.

    Raises:
        MissingError: a package is missing, a file has unexpected bytes, or the weights of a repository are
            invalid or contain other pickled objects than tensors.
    """
    study, base = workspace.study, workspace.study.bases[name]
    with new_folder(base_folder(workspace, name)) as folder:
        if base.hub is not None:
            assert pin is not None, "the repository has a pin"
            _from_hub(base.hub, pin, folder)
        else:
            if base.gguf is not None:
                model, tokenizer = _from_gguf(verified(base.gguf))
            else:
                from qlora_repeat.assets.pretrain import pretrain

                assert base.tokenizer is not None, "checked by the study"
                model, tokenizer = pretrain(study, base, verified(base.tokenizer))
            save_plain(model, folder)
            tokenizer.save_pretrained(folder)
        write_json(folder / MANIFEST, folder_digests(folder))


def _from_hub(hub: Hub, pin: Pin, folder: Path) -> None:
    """Link to a repository's files in the hub's cache, and convert pickled weights."""
    snapshot = snapshot_folder(hub, pin)
    pickled = [name for name in pin.files if name.startswith("pytorch_model")]
    for name in pin.files:
        if name not in pickled:
            target = (snapshot / name).resolve()
            (folder / name).symlink_to(os.path.relpath(target, folder.parent.resolve() / folder.name))
    if pickled:
        module = "qlora_repeat.assets.convert_pickle"
        command = [sys.executable, "-m", module, str(snapshot), str(folder), *pickled]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            killed = f"exit code {done.returncode}; it needs memory for twice the largest file"
            reason = (done.stderr.strip().splitlines() or [killed])[-1]
            raise MissingError(f"{hub.repository}: its pickled weights cannot be converted ({reason})")
        converted = {path.name: file_digest(path) for path in sorted(folder.glob("model*.safetensors"))}
        if pin.converted and converted != pin.converted:
            raise MissingError(
                f"{hub.repository}: its pickled weights convert to other bytes than locked; "
                "install the locked packages (`make setup`)"
            )
        pin = replace(pin, converted=converted)
    try:
        check_weights(folder)
    except MissingError as error:
        reason = str(error).replace(f"{folder}/", "").rpartition("; ")[0]
        raise MissingError(
            f"{hub.repository}: {reason}; the study file must name another revision of it"
        ) from None
    write_json(folder / SOURCE, asdict(pin))


def _from_gguf(path: Path) -> tuple[Any, Any]:
    """Return a GGUF model in float16, which keeps 11 bits of each 4-bit value, and its tokenizer."""
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
    """Save a model for plain transformers, without a path of this machine."""
    model.config._name_or_path = ""
    model.save_pretrained(folder)


def prepare_data(workspace: Workspace, name: str, pin: Pin | None = None) -> None:
    """Put rows from a hub's cache (`pin`), a file or a package into the cache, after checking them.

    Raises:
        MissingError: a package or file is missing, or the rows are not the expected ones.
        UsageError: the files lack a column of the study.
    """
    study, data = workspace.study, workspace.study.data[name]
    if data.hub is not None:
        assert pin is not None, "the repository has a pin"
        rows = file_rows(data, [snapshot_folder(data.hub, pin) / file for file in sorted(pin.files)])
    else:
        rows = corpus_rows(data)
        found = rows_digest(rows)
        if data.sha256 is not None and found != data.sha256:
            raise MissingError(
                f"data {name}: the rows' SHA-256 is {found}, study {study.name} expects {data.sha256}; "
                "install the locked packages (`make setup`)"
            )
    text = json_lines(rows)
    with new_folder(data_folder(workspace, name)) as folder:
        write_text(folder / ROWS, text)
        if pin is not None:
            write_json(folder / SOURCE, asdict(pin))
        write_json(folder / MANIFEST, {ROWS: text_digest(text)})
