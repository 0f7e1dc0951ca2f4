"""DoRA and rsLoRA on any layout of a layer, "all-linear", and combinations that are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.architectures import ARCHITECTURES
from support.own_rows import write_own_study

from qlora_repeat.assets.layers import model_targets, skeleton
from qlora_repeat.errors import UsageError
from qlora_repeat.stages.finetune import lora_config
from qlora_repeat.stages.mergeable import check_mergeable

ROWS = [{"quote": f"Is {number}"} for number in range(10)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_learned_magnitudes_are_merged_as_peft_does(architecture: str, tmp_path: Path) -> None:
    """GPT-2 keeps its weights transposed."""
    workspace = write_own_study(tmp_path, ROWS, architecture=architecture)
    lora = replace(workspace.study.lora, dora=True, rslora=True)
    check_mergeable(workspace, "own", lora_config(replace(workspace.study, lora=lora), ["layer"]))


@pytest.mark.parametrize("name", ["llama-3-tied", "gpt-2", "phi"])
def test_all_linear_adapts_what_peft_does(name: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    workspace = write_own_study(tmp_path, ROWS, ('["q_proj"]', '"all-linear"'))
    found = model_targets(workspace, "own", skeleton(ARCHITECTURES[name].config()))
    with torch.device("meta"):
        adapted = get_peft_model(
            skeleton(ARCHITECTURES[name].config()), LoraConfig(target_modules="all-linear")
        )
    assert set(found) == set(adapted.base_model.targeted_module_names)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('type = "nf4"', 'type = "none"', "weights is nf4, which is for a base in 4 bits"),
        ("dropout = 0.05", "dropout = 0.05\ndora = true", "lora.dora needs a base in 4 bits"),
        ("warmup_steps = 0", "warmup_steps = 1\nwarmup_ratio = 0.1", "either warmup_steps or warmup_ratio"),
        ("warmup_steps = 0", "warmup_ratio = 0.1", "schedule constant has no warm-up"),
        ("max_grad_norm", 'loss = "answer"\nmax_grad_norm', "rows for text-generation have none"),
    ],
)
def test_what_cannot_be_is_refused_before_training(old: str, new: str, reason: str, tmp_path: Path) -> None:
    changes = [(old, new)]
    if "nf4" in reason:
        changes.append(("threads = 1", 'threads = 1\nweights = "nf4"'))
    if "dora" in reason:
        changes.append(('type = "nf4"', 'type = "int8"'))
    with pytest.raises(UsageError) as error:
        write_own_study(tmp_path, ROWS, *changes)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
