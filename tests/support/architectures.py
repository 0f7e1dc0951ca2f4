"""Miniatures of public architectures: models of two layers with random weights, and a byte tokenizer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_repeat.assets.fetch import save_plain
from qlora_repeat.system.files import write_json
from qlora_repeat.system.hashing import MANIFEST, folder_digests

VOCABULARY = 384
WIDTH = 64
_USUAL = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": WIDTH // 4}
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_GATED = [*_ATTENTION, "gate_proj", "up_proj", "down_proj"]
_MIXTURE = {"num_experts_per_tok": 2}


@dataclass(frozen=True)
class Architecture:
    """A family of public models, in the size of a test."""

    model_type: str
    targets: list[str]
    """Layers for an adapter, as users name them."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the configuration has besides `_USUAL`, or has otherwise; None leaves a key out."""
    fused_experts: bool = False
    """Whether most weights are experts that are no linear layers."""

    def config(self) -> Any:
        """Return the configuration of transformers."""
        from transformers import AutoConfig

        return AutoConfig.for_model(self.model_type, **_USUAL | self.settings)


ARCHITECTURES = {
    "qwen2": Architecture("qwen2", _GATED, _GROUPED),
    "qwen3": Architecture("qwen3", _GATED, _GROUPED),
    "qwen3-moe": Architecture(
        "qwen3_moe",
        _ATTENTION,
        _GROUPED | _MIXTURE | {"num_experts": 4, "moe_intermediate_size": 2 * WIDTH},
        fused_experts=True,
    ),
    "mistral": Architecture("mistral", _GATED, _GROUPED),
    "mixtral": Architecture(
        "mixtral", _ATTENTION, _GROUPED | _MIXTURE | {"num_local_experts": 4}, fused_experts=True
    ),
    "gemma-2": Architecture(
        "gemma2", _GATED, _GROUPED | {"tie_word_embeddings": True, "query_pre_attn_scalar": 16}
    ),
    "gemma-3": Architecture(
        "gemma3_text", _GATED, _GROUPED | {"tie_word_embeddings": True, "query_pre_attn_scalar": 16}
    ),
    "phi": Architecture("phi", ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]),
    "phi-3": Architecture("phi3", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "opt": Architecture(
        "opt",
        ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
        {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH, "tie_word_embeddings": True},
    ),
    "falcon": Architecture(
        "falcon",
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
        {"tie_word_embeddings": True},
    ),
    "bloom": Architecture(
        "bloom",
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
        {"tie_word_embeddings": True, "n_layer": 2, "n_head": 4},
    ),
    "stablelm": Architecture("stablelm", _GATED, {"num_key_value_heads": 2}),
    "starcoder2": Architecture("starcoder2", [*_ATTENTION, "c_fc", "c_proj"], {"num_key_value_heads": 2}),
    "olmo-2": Architecture("olmo2", _GATED, {"num_key_value_heads": 2}),
    "granite": Architecture("granite", _GATED, {"num_key_value_heads": 2}),
    "llama-3-tied": Architecture("llama", _GATED, _GROUPED | {"tie_word_embeddings": True}),
    "pythia": Architecture(
        "gpt_neox",
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
        {"rotary_pct": 0.25},
    ),
    "gpt-oss": Architecture(
        "gpt_oss", _ATTENTION, _GROUPED | _MIXTURE | {"num_local_experts": 4}, fused_experts=True
    ),
    "gpt-2": Architecture("gpt2", ["c_attn", "c_proj", "c_fc"], {"tie_word_embeddings": True}),
    "gpt-j": Architecture(
        "gptj", ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"], {"rotary_dim": 8}
    ),
    "glm-4": Architecture(
        "glm4", [*_ATTENTION, "gate_up_proj", "down_proj"], _GROUPED | {"partial_rotary_factor": 0.5}
    ),
    "granite-moe": Architecture(
        "granitemoe",
        _ATTENTION,
        _MIXTURE | {"num_key_value_heads": 2, "num_local_experts": 4},
        fused_experts=True,
    ),
    "cohere": Architecture("cohere", _GATED, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
}
"""By the name of the family."""


def miniature(name: str, seed: int = 0) -> Any:
    """Return a model of an architecture with random weights, in float32 on the CPU.

    Weights are larger than transformers initializes them, so that each layer changes the output.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name].config(), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    return model.eval()


def write_base(name: str, folder: Path, dtype: str = "float32") -> Path:
    """Write a miniature with its tokenizer to a folder, as a fetched base is."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    save_plain(miniature(name).to(getattr(torch, dtype)), folder)
    byte_tokenizer().save_pretrained(folder)
    write_json(folder / MANIFEST, folder_digests(folder))
    return folder


def byte_tokenizer() -> Any:
    """Return a tokenizer with a token for each byte, and for the beginning and the end of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(specials + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
