"""A study small enough to run completely in a test: two architectures, tasks and optimizers, real NF4.

Width 192 is the smallest for which an 8-bit optimizer keeps 8-bit state for an adapter's tensors.
"""

import functools
from pathlib import Path
from typing import Any

from support.places import NO_RUNS, at

from qlora_repeat.assets.base_models import base_folder
from qlora_repeat.assets.dataset_builders import corpus_rows, json_lines
from qlora_repeat.assets.fetch import prepare_data, save_plain
from qlora_repeat.assets.package_files import locate
from qlora_repeat.study.data_sources import Data
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.system.files import new_folder, write_json
from qlora_repeat.system.hashing import MANIFEST, folder_digests, text_digest

TINY = Path(__file__).with_name("tiny.toml")


@functools.cache
def tiny_text() -> str:
    """Return the text of the study file, with the digests of the rows from the installed packages."""
    text = TINY.read_text(encoding="utf-8")
    quotes = Data("text-generation", "fortunes", 60, 4, seed=1, sha256="0" * 64)
    questions = Data(
        "question-answering",
        "reasoning-gym",
        60,
        4,
        seed=1,
        sha256="0" * 64,
        families=["gcd"],
        families_with_options=["leg_counting"],
    )
    for name, data in (("QUOTES", quotes), ("QUESTIONS", questions)):
        text = text.replace(f"SHA256-OF-{name}", text_digest(json_lines(corpus_rows(data))))
    return text


def write_study(folder: Path, *replacements: tuple[str, str]) -> Path:
    """Write the tiny study to a file after these replacements in its text; return its path."""
    text = tiny_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


def fill_cache(study: Study, cache: Path) -> None:
    """Fill the cache with data and random base models of real architectures with GPT-NeoX's tokenizer."""
    import torch

    for name in study.data:
        prepare_data(at(study, NO_RUNS, cache), name)
    kinds = _tiny_models()
    for name, (kind, config) in kinds.items():
        torch.manual_seed(len(name))
        with new_folder(base_folder(at(study, NO_RUNS, cache), name)) as folder:
            save_plain(kind(config).to(torch.float16), folder)
            tiny_tokenizer().save_pretrained(folder)
            write_json(folder / MANIFEST, folder_digests(folder))


def write_model(folder: Path) -> None:
    """Write a tiny Llama with its tokenizer, as a user may have it."""
    import torch

    torch.manual_seed(0)
    kind, config = _tiny_models()["tiny-llama"]
    save_plain(kind(config).to(torch.float16), folder)
    tiny_tokenizer().save_pretrained(folder)


def _tiny_models() -> dict[str, Any]:
    """Return the class and configuration of each tiny model."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 50304,
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return {
        "tiny-llama": (LlamaForCausalLM, LlamaConfig(**shape, num_key_value_heads=1, pad_token_id=None)),
        "tiny-neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**shape, rotary_pct=0.25)),
    }


def tiny_tokenizer() -> Any:
    """Return GPT-NeoX-20B's tokenizer from its package."""
    from qlora_repeat.assets.pretrain import neox_tokenizer

    tokenizer = load_study("pocket").bases["neox-pocket"].tokenizer
    assert tokenizer is not None
    return neox_tokenizer(locate(tokenizer))
