"""Whether a model can be merged is known before it is trained."""

from pathlib import Path

import pytest
import torch
from support.architectures import ARCHITECTURES, chosen, commit, write_base
from support.places import at
from support.trials import outputs, quiet

from qlora_repeat.assets.layers import base_skeleton, skeleton
from qlora_repeat.errors import KitError, StageError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.planning.doctor import examine
from qlora_repeat.planning.machine_checks import Finding
from qlora_repeat.planning.memory_estimate import quantized_skeleton
from qlora_repeat.stages import mergeable
from qlora_repeat.stages.dequantize import count_weights
from qlora_repeat.stages.finetune import lora_config
from qlora_repeat.stages.mergeable import check_mergeable
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.fingerprint import fingerprint

MODEL = "tiny-llama-chat"


def on_miniature(name: str, study_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return the tiny study with a miniature in place of the base of MODEL."""
    text, targets = study_file.read_text(), str(ARCHITECTURES[name].targets).replace("'", '"')
    study_file.write_text(text.replace('["q_proj", "down_proj"]', targets))
    workspace = at(load_study(str(study_file)), study_file.parent / "runs", cache)
    base = write_base(name, study_file.parent / "base", "bfloat16")
    monkeypatch.setattr(mergeable, "base_folder", lambda *given: base)
    return workspace


@pytest.mark.parametrize("name", chosen(commit()))
def test_all_architectures_can_be_merged(
    name: str, study_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = on_miniature(name, study_file, cache, monkeypatch)
    state = torch.random.get_rng_state()
    check_mergeable(workspace, MODEL, lora_config(workspace.study, ["layer"]))
    assert torch.equal(state, torch.random.get_rng_state()), "training must not notice"


def test_layers_that_the_kit_would_merge_wrongly_are_found(
    study_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = on_miniature("gpt-2", study_file, cache, monkeypatch)
    layers = mergeable.model_targets(workspace, MODEL, base_skeleton(study_file.parent / "base"))
    square = {path: layer for path, layer in layers.items() if path.endswith("attn.c_proj")}
    monkeypatch.setattr(mergeable, "model_targets", lambda *given: square)
    monkeypatch.setattr(mergeable, "is_transposed", lambda layer: False)
    with pytest.raises(
        StageError, match=r"merging an adapter into transformer\.h\.0\.attn\.c_proj changes it by"
    ):
        check_mergeable(workspace, MODEL, lora_config(workspace.study, ["layer"]))


def test_a_trial_ends_before_training_if_its_adapter_cannot_be_merged(
    study_file: Path, cache: Path, tmp_path: Path
) -> None:
    study_file.write_text(study_file.read_text().replace('"down_proj"]', '"embed_tokens"]'))
    trial = at(load_study(str(study_file)), tmp_path / "runs", cache).trial(f"{MODEL}/adamw-32bit/1")
    with pytest.raises(KitError, match=r"model\.embed_tokens is no linear layer but Embedding"):
        run_trial(trial, ["finetune"], quiet)
    assert not trial.unfinished.exists()


def findings(study_file: Path, cache: Path, tmp_path: Path) -> list[Finding]:
    workspace = at(load_study(str(study_file)), tmp_path / "runs", cache)
    return [each for each in examine(workspace, fingerprint()) if each.subject == "layers"]


def test_doctor_says_that_adapters_can_be_merged(study_file: Path, cache: Path, tmp_path: Path) -> None:
    found = findings(study_file, cache, tmp_path)
    assert {each.level for each in found} == {"ok"}
    assert found[-1].text == "adapters can be merged: tiny-neox, tiny-llama-chat"
    (share,) = [each.text for each in found if each.text.startswith("base tiny-llama: ")]
    # 2 layers with 4 attention matrices (two of one head) and 3 of the MLP; 2 embeddings
    layers = 2 * (2 * 192 * 192 + 2 * 192 * 64 + 3 * 192 * 768)
    assert f"{100 * layers / (layers + 2 * 50304 * 192):.0f} % of its weights are in 4 bits" in share


def test_doctor_names_a_wrong_layer(study_file: Path, cache: Path, tmp_path: Path) -> None:
    study_file.write_text(study_file.read_text().replace('["q_proj", "down_proj"]', '["q_prj"]'))
    (wrong,) = [each for each in findings(study_file, cache, tmp_path) if each.level == "stops"]
    assert wrong.text == f"models.{MODEL}.target_modules: the base has no layer q_prj"
    assert wrong.advice.startswith(
        "did you mean q_proj?; its linear layers are q_proj, k_proj, v_proj, o_proj"
    )


UNQUANTIZED = ("falcon", "gemma-3-vision")
"""Layers of a class of their own, and, in a miniature, of images."""


@pytest.mark.parametrize("name", chosen(commit()))
def test_the_share_in_4_bits_is_small_for_fused_experts(name: str) -> None:
    """Compare the plan's count, on a model without memory, with the names of its weights."""
    config = ARCHITECTURES[name].config()
    counts = count_weights(quantized_skeleton(load_study("pocket"), config))
    everything = sum(weight.numel() for weight in skeleton(config).parameters())
    assert counts.in_4_bits + counts.embeddings + counts.other == everything
    if ARCHITECTURES[name].fused_experts:
        assert "expert" in counts.largest or "moe" in counts.largest
        assert counts.share < 0.5
    if ARCHITECTURES[name].fused_experts or name in UNQUANTIZED:
        assert f"{100 * counts.share:.0f} % of its weights are in 4 bits" in str(counts.warning())
    else:
        assert counts.warning() is None


def test_the_record_has_the_share(study_file: Path, cache: Path, tmp_path: Path) -> None:
    trial = at(load_study(str(study_file)), tmp_path / "runs", cache).trial(f"{MODEL}/adamw-32bit/1")
    run_trial(trial, ["finetune", "merge"], quiet)
    layers = 2 * (2 * 192 * 192 + 2 * 192 * 64 + 3 * 192 * 768)
    norms = 5 * 192
    share = layers / (layers + norms + 2 * 50304 * 192)
    assert outputs(trial)["share_in_4_bits"] == pytest.approx(share, rel=1e-12)
    compared = outputs(trial, "merge")["compared"]
    assert compared["layers"] <= compared["layers_bound"]
    assert compared["logits"] <= compared["logits_bound"]
