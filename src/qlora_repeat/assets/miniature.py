"""Write a miniature hub for the rehearsal: small models and data under their true names.

The models have the true architectures and special tokens, random weights, and width 512. With a smaller width
and r = 8, adapter tensors would have fewer than 4096 elements, and an 8-bit optimizer keeps 32-bit state for
those. The data have the true columns and numbers of rows, with generated texts. The folder has the layout of
the hub's cache, so that huggingface_hub finds it offline under ``HF_HOME``.
"""

import hashlib
import json
import random
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import device
from qlora_repeat.assets.convert_pickle import INDEX
from qlora_repeat.errors import UsageError
from qlora_repeat.study.data_sources import MOST_GENERATED, Data, Hub
from qlora_repeat.study.study import Study
from qlora_repeat.system.files import new_folder
from qlora_repeat.system.hashing import file_digest

PICKLED = ("togethercomputer/GPT-NeoXT-Chat-Base-20B",)
"""Repositories that have only PyTorch's pickles."""
VOCABULARY = 1024
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
"""The sizes of a miniature."""
_SHARD_BYTES = 5_000_000
_ROWS = 1000
"""Rows of a data set whose number the study does not give."""
"""The size of a file of a small model; the weights of a larger one are in three files."""
_MARK = "miniature.txt"
"""The file that marks a folder written by this module, which may be replaced."""
ENDS = {"gpt_neox": (0, 0), "llama": (1, 2)}
"""The ids of the first and last token of a text, by architecture."""


def write_hub(study: Study, home: Path) -> None:
    """Write a folder for ``HF_HOME`` with everything that a study uses from a hub.

    Raises:
        UsageError: the study uses nothing from a hub, an architecture has no miniature, or the folder has
            other content.
    """
    if home.is_dir() and any(home.iterdir()) and not (home / _MARK).is_file():
        raise UsageError(
            f"{home}: contains other files than miniatures, so it is not replaced; name another folder"
        )
    rows = {name: _rows(data) for name, data in study.data.items()}
    if not any(base.hub for base in study.bases.values()) and not any(rows.values()):
        raise UsageError(f"study {study.name} uses nothing from a hub, so there is nothing to rehearse")
    values = [value for each in rows.values() for row in each[:3000] for value in row.values()]
    texts = [value for value in values if isinstance(value, str)]
    with new_folder(home) as folder, tempfile.TemporaryDirectory() as scratch:
        for seed, (name, base) in enumerate(study.bases.items()):
            if base.hub is not None:
                if (kind := (base.architecture or {}).get("model_type")) not in ENDS:
                    key, known = f"bases.{name}.architecture.model_type", " or ".join(ENDS)
                    raise UsageError(f"{key} must be {known} (found {kind!r})")
                files = Path(scratch, "models", name)
                architecture = _small(base.architecture or {})
                pickled = base.hub.repository in PICKLED
                write_model(files, architecture, texts, seed, pickled=pickled)
                _add_repository(folder, base.hub, "models", files)
        for name, data in study.data.items():
            if data.hub is not None:
                files, pattern = Path(scratch, "datasets", name), data.hub.files
                part = "train-00000-of-00001" if pattern.endswith(".parquet") else "quotes"
                _write_rows(files / pattern.replace("*", part), rows[name])
                _add_repository(folder, data.hub, "datasets", files)
        (folder / _MARK).write_text(f"Miniatures of what study {study.name} uses from a hub.\n", "utf-8")


def _small(architecture: dict[str, Any]) -> dict[str, Any]:
    """Return an architecture with small sizes; what is not a size stays as it is."""
    kept = {key: value for key, value in architecture.items() if isinstance(value, bool | float)}
    return {"model_type": architecture["model_type"], **SMALL, **kept}


def write_model(
    folder: Path,
    architecture: Mapping[str, Any],
    texts: list[str],
    seed: int,
    *,
    pickled: bool = False,
    weights: bool = True,
) -> None:
    """Write a model of random weights in shards, like the true one, and a tokenizer trained on texts.

    Args:
        architecture: `model_type`, which is ``gpt_neox`` or ``llama``, and the sizes.
        pickled: in PyTorch's older format.
        weights: otherwise only the configuration and the tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(architecture)
    kind = str(settings.pop("model_type"))
    begin, end = ENDS[kind]
    config = AutoConfig.for_model(kind, **settings, bos_token_id=begin, eos_token_id=end, miniature=True)
    _tokenizer(kind, texts).save_pretrained(folder)
    if not weights:
        config.save_pretrained(folder)
        return
    torch.manual_seed(seed)
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16, trust_remote_code=False)
    if not pickled:
        size = sum(each.nbytes for each in model.parameters())
        model.save_pretrained(folder, max_shard_size=max(size // 3, _SHARD_BYTES))
        return
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tensors = list(model.state_dict().items())
    half, weight_map = len(tensors) // 2, dict[str, str]()
    for number, part in enumerate((tensors[:half], tensors[half:]), 1):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({key: value.clone() for key, value in part}, folder / name)
        weight_map |= {key: name for key, _ in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def _tokenizer(kind: str, texts: list[str]) -> Any:
    """Return a tokenizer trained on texts: Llama's, which begins each text with ``<s>``, or GPT-NeoX's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPTNeoXTokenizer, LlamaTokenizer

    tokenizer, alphabet = Tokenizer(models.BPE()), list[str]()
    if kind == "llama":
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        tokens, alphabet = ["<|endoftext|>", "<|padding|>"], pre_tokenizers.ByteLevel.alphabet()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    vocabulary = {"vocab": trained["vocab"], "merges": [tuple(merge) for merge in trained["merges"]]}
    if kind == "llama":
        return LlamaTokenizer(**vocabulary, add_bos_token=True)
    return GPTNeoXTokenizer(**vocabulary)


def _rows(data: Data) -> list[dict[str, Any]]:
    """Return the study's number of rows, with the columns of the true dataset.

    Raises:
        UsageError: they are too many.
    """
    count = data.rows or _ROWS
    draw, columns = random.Random(count), data.columns
    if data.hub is None:
        return []
    if count > MOST_GENERATED:
        raise UsageError(f"data: {count} rows; a miniature has at most {MOST_GENERATED}")
    if data.task == "text-generation":
        more = {"author": "the kit", "tags": ["rehearsal"]}
        return [{columns["quote"]: random_quote(draw), **more} for _ in range(count)]
    rows = [
        {"input": "", columns["answer"]: answer, columns["instruction"]: question, "data_source": "kit"}
        for question, answer in (_question(draw) for _ in range(count))
    ]
    if data.task == "classification":  # the answers begin with "The sum" or "The larger"
        rows = [row | {columns["answer"]: row[columns["answer"]].split()[1]} for row in rows]
    for place, beginning in enumerate(data.prompts, 1):
        asked = rows[place * count // (len(data.prompts) + 1)]
        options = "A: the first. B: the second. C: the third. D: the fourth."
        asked[columns["instruction"]] = f"{beginning}, which of these follows?\n{options}"
        asked[columns["answer"]] = draw.choice("ABCD")
    return rows


def random_quote(draw: random.Random) -> str:
    kinds = ("patient", "hasty", "gentle", "stubborn", "curious", "tired", "honest", "quiet", "brave", "idle")
    things = ("mind", "hand", "garden", "river", "teacher", "neighbor", "winter", "letter", "door", "song")
    deeds = ("mends", "forgets", "outlives", "teaches", "carries", "invites", "follows", "answers")
    one, two = draw.sample(things, 2)
    return f"“A {draw.choice(kinds)} {one} {draw.choice(deeds)} a {draw.choice(kinds)} {two}.”"


def _question(draw: random.Random) -> tuple[str, str]:
    one, two = draw.randrange(100), draw.randrange(100)
    if draw.random() < 0.5:
        return f"What is {one} plus {two}?", f"The sum of {one} and {two} is {one + two}."
    return f"Which is larger, {one} or {two}?", f"The larger of {one} and {two} is {max(one, two)}."


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True)
    if path.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")


def _add_repository(home: Path, hub: Hub, kind: str, files: Path) -> None:
    """Put files into a hub cache: blobs, a snapshot of links to them, and the branch's reference."""
    folder = home / "hub" / f"{kind}--{hub.repository.replace('/', '--')}"
    commit = hub.revision
    if re.fullmatch(r"[0-9a-f]{40}", commit) is None:
        commit = hashlib.sha1(hub.repository.encode(), usedforsecurity=False).hexdigest()
        reference = folder / "refs" / hub.revision
        reference.parent.mkdir(parents=True)
        reference.write_text(commit, encoding="utf-8")
    blobs = folder / "blobs"
    blobs.mkdir(parents=True)
    for path in sorted(path for path in files.rglob("*") if path.is_file()):
        name = path.relative_to(files)
        blob = path.replace(blobs / file_digest(path))
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(name.parts) + 1), "blobs", blob.name))
