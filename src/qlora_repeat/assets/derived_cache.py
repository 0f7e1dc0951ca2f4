"""Keep reproducible work in the cache: the base in 4 bits, and the data as token ids.

A copy is a folder with a manifest. Its name has the digest of everything that its content depends on. It is
complete, verified, and safe to delete. Making it again takes far longer than reading it.
"""

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_digest, base_folder, check_base, load_model, load_quantized
from qlora_repeat.assets.datasets import Example, Part, encode_texts, part_rows, text_of
from qlora_repeat.assets.layers import check_finite
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import delete_folder, new_folder, parse_json, read_file, write_json
from qlora_repeat.system.fingerprint import fingerprint, machine_digest, packages
from qlora_repeat.system.hashing import MANIFEST, folder_digests, json_digest, known_digests
from qlora_repeat.system.printable import say
from qlora_repeat.system.safetensors_file import read_weights

_EXAMPLES = "examples.safetensors"
_SHARD = "1GB"
"""The size of the files of a copy, which are hashed in parallel."""


def load_frozen_base(workspace: Workspace, name: str) -> Any:
    """Load a base in 4 bits from its copy, or quantize it and keep a copy. Others are loaded as they are.

    Raises:
        MissingError: there is no copy, and the base is missing from the cache, has changed, or has weights
            that are not finite.
    """
    study, folder = workspace.study, quantized_folder(workspace, name)
    if not study.quantization.in_4_bits:
        check_base(workspace, name)
        return load_quantized(study, base_folder(workspace, name))
    if has_copy(folder):
        with contextlib.suppress(NotImplementedError):  # of Llama 4, transformers initializes 4-bit weights
            return load_model(folder, study.precision.compute)  # its name has the digest of the weights
    check_base(workspace, name)
    check_finite(base_folder(workspace, name))
    model = load_quantized(study, base_folder(workspace, name))
    keep_copy(folder, partial(model.save_pretrained, max_shard_size=_SHARD))
    return model


def quantized_folder(workspace: Workspace, name: str) -> Path:
    """Return the folder for the copy of a base in 4 bits; other machines may quantize to other bytes."""
    study = workspace.study
    settings = [asdict(study.quantization), study.precision.compute, machine_digest(fingerprint())]
    return _copy_folder(workspace, "quantized", name, [base_digest(workspace, name), *settings])


def encoded_part(
    workspace: Workspace, model_name: str, part: Part, seed: int, tokenizer: Any, limit: int | None = None
) -> list[Example]:
    """Return the first examples of a part of the split of a seed, as token ids for a model of the study.

    `tokenizer` belongs to the model's base.
    """
    model = workspace.study.models[model_name]
    rows = part_rows(workspace, model.data, part, seed)[:limit]
    texts = [text_of(tokenizer, model, row) for row in rows]
    settings = [
        json_digest([asdict(each) for each in texts]),
        model.training.max_length,
        model.special_tokens,
        packages(),
        "turns",
    ]
    folder = _copy_folder(workspace, "encoded", model_name, [base_digest(workspace, model.base), *settings])
    if has_copy(folder):
        tensors = {name: tensor.tolist() for name, tensor in read_weights(folder / _EXAMPLES).items()}
        ends = pairwise(accumulate(tensors["lengths"], initial=0))
        turns = _turns(tensors)
        return [
            Example(row, tensors["ids"][start:end], answer, bool(cut), turns[row])
            for row, ((start, end), answer, cut) in enumerate(
                zip(ends, tensors["answer_starts"], tensors["cut"], strict=True)
            )
        ]
    examples = encode_texts(tokenizer, model, texts)
    keep_copy(folder, lambda new: _write_examples(examples, new))
    return examples


def _turns(tensors: dict[str, list[Any]]) -> list[tuple[tuple[int, int], ...]]:
    """Return the answers of each example of chats."""
    found = list[tuple[tuple[int, int], ...]]()
    spans = iter(zip(tensors["turn_starts"], tensors["turn_ends"], strict=True))
    for count in tensors["turns"]:
        found.append(tuple(next(spans) for _ in range(count)))
    return found


def _write_examples(examples: list[Example], folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    columns = {
        "ids": [token for example in examples for token in example.ids],
        "lengths": [len(example.ids) for example in examples],
        "answer_starts": [example.answer_start for example in examples],
        "cut": [example.cut for example in examples],
        "turns": [len(example.answers) for example in examples],
        "turn_starts": [start for example in examples for start, _ in example.answers],
        "turn_ends": [end for example in examples for _, end in example.answers],
    }
    tensors = {name: torch.tensor(values, dtype=torch.int32) for name, values in columns.items()}
    save_file(tensors, folder / _EXAMPLES)


def _copy_folder(workspace: Workspace, kind: str, name: str, depends_on: list[Any]) -> Path:
    return workspace.assets / kind / f"{name}-{json_digest(depends_on)[:16]}"


def has_copy(folder: Path) -> bool:
    """Return whether a copy exists and its bytes are unchanged. Delete a changed copy."""
    if not folder.exists():
        return False
    try:
        manifest = parse_json(read_file(folder / MANIFEST))
        found = known_digests(folder / file for file in manifest.keys())  # noqa: SIM118 (it may be no object)
        damaged = [file for file, digest in manifest.items() if found[folder / file] != digest]
    except (OSError, ValueError, AttributeError):
        damaged = [MANIFEST]
    if damaged:
        say(f"{folder / damaged[0]}: its content has changed; it is written again", error=True)
        with contextlib.suppress(OSError):
            delete_folder(folder)
    return not damaged


def keep_copy(folder: Path, write: Callable[[Path], None]) -> None:
    """Keep what `write` puts into a folder, or no copy if the disk is full.

    A copy that another process has kept in the meantime stays: it has the same content, and may be in use.
    """
    if folder.exists():
        return
    try:
        with new_folder(folder, replace=False) as new:
            write(new)
            write_json(new / MANIFEST, folder_digests(new))
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.is_dir():
            return
        say(f"{folder}: no copy was kept ({error.strerror or error})", error=True)
