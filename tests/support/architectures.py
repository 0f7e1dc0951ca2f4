"""Miniatures of public architectures: models of two layers with random weights, and a byte tokenizer."""

import math
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.checkout import ROOT

from qlora_repeat.assets.fetch import save_plain
from qlora_repeat.system.files import write_json
from qlora_repeat.system.hashing import MANIFEST, folder_digests, text_digest

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
_TIED = {"tie_word_embeddings": True}
_TWO_KEYS = {"num_key_value_heads": 2}
_NEOX = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_EXPERTS = {"moe_intermediate_size": WIDTH, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
_DENSE_FIRST = _MIXTURE | _EXPERTS | {"first_k_dense_replace": 1, "n_shared_experts": 1}
_LATENT = _DENSE_FIRST | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_COMPRESSED = ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]


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
    usual: dict[str, Any] = field(default_factory=dict)
    """What a configuration of usual size needs besides transformers' defaults."""

    def config(self) -> Any:
        """Return the configuration of transformers."""
        from transformers import AutoConfig

        settings = _USUAL | self.settings
        left_out = [key for key in self.settings if self.settings[key] is None and key in _USUAL]
        return AutoConfig.for_model(
            self.model_type, **{key: value for key, value in settings.items() if key not in left_out}
        )


ARCHITECTURES = {
    "bert-decoder": Architecture("bert", ["query", "key", "value", "dense"], {"is_decoder": True}),
    "bloom": Architecture("bloom", _NEOX, _TIED | {"n_layer": 2, "n_head": 4}),
    "codegen": Architecture("codegen", ["qkv_proj", "out_proj", "fc_in", "fc_out"], {"rotary_dim": 8}),
    "cohere": Architecture("cohere", _GATED, _TWO_KEYS | _TIED),
    "cohere-2": Architecture("cohere2", _GATED, _TWO_KEYS | _TIED),
    "deepseek-v2": Architecture("deepseek_v2", _COMPRESSED, _LATENT | {"q_lora_rank": None}, True),
    "deepseek-v3": Architecture(
        "deepseek_v3", ["q_a_proj", "q_b_proj", *_COMPRESSED], _LATENT | {"q_lora_rank": 16}, True
    ),
    "ernie-4-5": Architecture("ernie4_5", _GATED, _GROUPED),
    "exaone-4": Architecture("exaone4", _GATED, _GROUPED),
    "falcon": Architecture("falcon", _NEOX, _TIED),
    "falcon-h1": Architecture(
        "falcon_h1",
        [*_GATED, "in_proj"],
        _GROUPED
        | {
            "mamba_d_ssm": WIDTH,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
        },
    ),
    "gemma": Architecture("gemma", _GATED, _GROUPED | _TIED),
    "gemma-2": Architecture("gemma2", _GATED, _GROUPED | _TIED | {"query_pre_attn_scalar": 16}),
    "gemma-3": Architecture("gemma3_text", _GATED, _GROUPED | _TIED | {"query_pre_attn_scalar": 16}),
    "gemma-3-vision": Architecture(
        "gemma3",
        _GATED,
        _TIED
        | {
            "text_config": _USUAL | _GROUPED | {"query_pre_attn_scalar": 16},
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
        },
    ),
    "glm-4": Architecture(
        "glm4", [*_ATTENTION, "gate_up_proj", "down_proj"], _GROUPED | {"partial_rotary_factor": 0.5}
    ),
    "glm-4-moe": Architecture("glm4_moe", _ATTENTION, _GROUPED | _DENSE_FIRST, True),
    "gpt-2": Architecture("gpt2", ["c_attn", "c_proj", "c_fc"], _TIED),
    "gpt-bigcode": Architecture("gpt_bigcode", ["c_attn", "c_proj", "c_fc"], _TIED),
    "gpt-j": Architecture(
        "gptj", ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"], {"rotary_dim": 8}
    ),
    "gpt-neo": Architecture(
        "gpt_neo",
        ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"],
        _TIED | {"attention_types": [[["global", "local"], 1]]},
    ),
    "gpt-oss": Architecture("gpt_oss", _ATTENTION, _GROUPED | _MIXTURE | {"num_local_experts": 4}, True),
    "granite": Architecture("granite", _GATED, _TWO_KEYS),
    "granite-hybrid": Architecture(
        "granitemoehybrid",
        _ATTENTION,
        _TWO_KEYS
        | {
            "num_local_experts": 0,
            "shared_intermediate_size": 2 * WIDTH,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
        },
    ),
    "granite-moe": Architecture(
        "granitemoe", _ATTENTION, _TWO_KEYS | _MIXTURE | {"num_local_experts": 4}, True
    ),
    "jamba": Architecture(
        "jamba",
        ["in_proj", "x_proj", "out_proj", "q_proj", "v_proj"],
        _TWO_KEYS
        | {
            "num_experts": 4,
            "use_mamba_kernels": False,
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "mamba_d_state": 8,
        },
        True,
    ),
    "lfm-2": Architecture(
        "lfm2",
        ["q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"],
        _GROUPED | {"layer_types": ["conv", "full_attention"]},
    ),
    "llama-3-tied": Architecture("llama", _GATED, _GROUPED | _TIED),
    "llama-4": Architecture(
        "llama4_text",
        _ATTENTION,
        _GROUPED
        | {"num_local_experts": 4, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 2 * WIDTH},
        True,
    ),
    "mamba": Architecture(
        "mamba", ["in_proj", "x_proj"], _TIED | {"state_size": 8, "num_attention_heads": None}
    ),
    "mistral": Architecture("mistral", _GATED, _GROUPED),
    "mixtral": Architecture("mixtral", _ATTENTION, _GROUPED | _MIXTURE | {"num_local_experts": 4}, True),
    "mpt": Architecture("mpt", ["Wqkv", "out_proj", "up_proj", "down_proj"], _TIED),
    "nemotron": Architecture(
        "nemotron",
        [*_ATTENTION, "up_proj", "down_proj"],
        _TWO_KEYS | {"head_dim": WIDTH // 4},
        usual={"num_key_value_heads": 8},
    ),
    "olmo": Architecture("olmo", _GATED, _TWO_KEYS),
    "olmo-2": Architecture("olmo2", _GATED, _TWO_KEYS),
    "olmoe": Architecture("olmoe", _ATTENTION, _TWO_KEYS | _MIXTURE | {"num_experts": 4}, True),
    "opt": Architecture(
        "opt",
        ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
        _TIED | {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH},
    ),
    "persimmon": Architecture("persimmon", _NEOX),
    "phi": Architecture("phi", ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]),
    "phi-3": Architecture("phi3", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "phi-3-5-moe": Architecture("phimoe", _ATTENTION, _TWO_KEYS | _MIXTURE | {"num_local_experts": 4}, True),
    "pythia": Architecture("gpt_neox", _NEOX, {"rotary_pct": 0.25}),
    "qwen2": Architecture("qwen2", _GATED, _GROUPED),
    "qwen2-moe": Architecture(
        "qwen2_moe",
        _ATTENTION,
        _TWO_KEYS
        | _MIXTURE
        | {"num_experts": 4, "moe_intermediate_size": 2 * WIDTH, "shared_expert_intermediate_size": WIDTH},
        True,
    ),
    "qwen3": Architecture("qwen3", _GATED, _GROUPED),
    "qwen3-moe": Architecture(
        "qwen3_moe",
        _ATTENTION,
        _GROUPED | _MIXTURE | {"num_experts": 4, "moe_intermediate_size": 2 * WIDTH},
        True,
    ),
    "qwen3-next": Architecture(
        "qwen3_next",
        [*_ATTENTION, "in_proj_qkvz", "out_proj"],
        _GROUPED
        | _MIXTURE
        | {
            "num_experts": 4,
            "moe_intermediate_size": WIDTH,
            "shared_expert_intermediate_size": WIDTH,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        True,
    ),
    "recurrent-gemma": Architecture(
        "recurrent_gemma",
        ["q_proj", "v_proj", "linear_x", "linear_y", "linear_out", "up_proj"],
        _TIED | {"num_key_value_heads": 1, "lru_width": WIDTH, "block_types": ["recurrent", "attention"]},
    ),
    "rwkv": Architecture(
        "rwkv",
        ["key", "value", "receptance", "output"],
        {"attention_hidden_size": WIDTH, "num_attention_heads": None, "context_length": 128},
    ),
    "smollm-3": Architecture("smollm3", _GATED, _TWO_KEYS | _TIED),
    "stablelm": Architecture("stablelm", _GATED, _TWO_KEYS),
    "starcoder2": Architecture("starcoder2", [*_ATTENTION, "c_fc", "c_proj"], _TWO_KEYS),
}
"""By the name of the family."""


def chosen(commit: str) -> list[str]:
    """Return a quarter of the families, other ones for each commit; all if the environment asks for them."""
    if os.environ.get("QLORA_REPEAT_ARCHITECTURES") == "all":
        return list(ARCHITECTURES)
    ranked = sorted(ARCHITECTURES, key=lambda name: text_digest(f"{commit} {name}"))
    return sorted(ranked[: math.ceil(len(ranked) / 4)])


def commit() -> str:
    """Return the id of the checkout's commit; of a copy without git, a fixed text."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


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
