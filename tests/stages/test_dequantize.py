"""Frozen weights that are unpacked once give the same bits as 4-bit layers, or are not used."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from support.places import NO_RUNS, at

from qlora_repeat.assets.base_models import base_folder, load_quantized
from qlora_repeat.records.trace import read_trace
from qlora_repeat.stages import dequantize
from qlora_repeat.stages.dequantize import Materialized, gives_same_bits, materialize, materialized_bytes
from qlora_repeat.stages.finetune import finetune, with_adapter
from qlora_repeat.study.study import Dtype, FrozenWeights, Study
from qlora_repeat.study.trial import Trial
from qlora_repeat.system import memory
from qlora_repeat.system.determinism import set_kernels
from qlora_repeat.system.hashing import weights_digest

BATCHES = [(1, 1), (1, 7), (2, 19), (1, 64)]


@pytest.fixture
def bitwise(study: Study) -> Study:
    """Return the tiny study with fixed seeds."""
    return dataclasses.replace(study, profile="bitwise")


def trials_with(study: Study, weights: FrozenWeights, runs: Path, cache: Path) -> list[Trial]:
    return at(dataclasses.replace(study, weights=weights), runs / weights, cache).trials()


def adapted(study: Study, cache: Path) -> Any:
    """Return a tiny model with an adapter, as in fine-tuning."""
    trial = at(study, NO_RUNS, cache).trials()[0]
    base = load_quantized(study, base_folder(trial.workspace, trial.model.base))
    return with_adapter(trial, base)


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "adamw-32bit"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_and_traces_do_not_depend_on_the_kind_of_frozen_weights(
    optimizer: str, checkpointing: bool, bitwise: Study, cache: Path, tmp_path: Path
) -> None:
    """Compare both architectures, also with gradient checkpointing."""
    models = {
        name: dataclasses.replace(
            model,
            training=dataclasses.replace(
                model.training, gradient_checkpointing=checkpointing, batch_size=1 + checkpointing
            ),
        )
        for name, model in bitwise.models.items()
    }
    study = dataclasses.replace(bitwise, models=models)
    set_kernels("deterministic", study.threads)
    plain, kept = (trials_with(study, weights, tmp_path, cache) for weights in ("nf4", "materialized"))
    for trial, other in zip(plain, kept, strict=True):
        if trial.number > 1 or trial.optimizer != optimizer:
            continue
        first, second = (finetune(each, lambda *progress: None, {}) for each in (trial, other))
        assert (first["weights"], second["weights"]) == ("nf4", "materialized")
        assert first["weights_same_bits"] is None
        assert second["weights_same_bits"] is True
        assert weights_digest(trial.adapter) == weights_digest(other.adapter)
        assert read_trace(trial.trace) == read_trace(other.trace)


@pytest.mark.parametrize("compute", get_args(Dtype))
def test_unpacked_layers_give_the_same_bits_in_every_precision(
    compute: Dtype, study: Study, cache: Path
) -> None:
    study = dataclasses.replace(study, precision=dataclasses.replace(study.precision, compute=compute))
    model = adapted(study, cache).train()
    assert gives_same_bits(model, BATCHES)
    size = materialized_bytes(model)
    materialize(model)
    kept = [module.weight for module in model.modules() if isinstance(module, Materialized)]
    assert sum(weight.nbytes for weight in kept) == size
    assert not any(type(module) is Linear4bit for module in model.modules())


def test_a_bias_is_added_as_in_the_4_bit_layer() -> None:
    torch.manual_seed(3)
    layer = Linear4bit(128, 64, bias=True, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(64, 128), "bias": torch.randn(64)})
    layer.to("cpu")
    given = torch.randn(1, 5, 128, requires_grad=True)
    assert torch.equal(layer(given), Materialized(layer)(given))


def test_a_difference_in_one_bit_is_noticed(study: Study, cache: Path) -> None:
    model = adapted(study, cache)

    class Nudged(Materialized):
        def __init__(self, layer: Any) -> None:
            super().__init__(layer)
            with torch.no_grad():
                self.weight[0, 0] = torch.nextafter(self.weight[0, 0], torch.tensor(9.0))

    layer = next(module for module in model.modules() if type(module) is Linear4bit)
    assert dequantize._products_agree(layer, Materialized(layer), (1, 7))
    assert not dequantize._products_agree(layer, Nudged(layer), (1, 7))


def test_auto_unpacks_if_memory_allows(study: Study, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(study, cache)
    room = 2 * 2 * materialized_bytes(model)  # each of two trials gets half of it, and may use half of that
    monkeypatch.setattr(dequantize, "free_memory", lambda: room - 1)
    assert dequantize.set_frozen_weights(model, "auto", BATCHES, 2) == {
        "weights": "nf4",
        "weights_same_bits": None,
    }
    assert any(type(module) is Linear4bit for module in model.modules())
    monkeypatch.setattr(dequantize, "free_memory", lambda: room)
    assert dequantize.set_frozen_weights(model, "auto", BATCHES, 2)["weights"] == "materialized"
    assert not any(type(module) is Linear4bit for module in model.modules())


def test_auto_keeps_4_bits_if_the_results_would_differ(
    study: Study, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change one bit, as fused kernels on a GPU may; a setting by name still dequantizes and is recorded."""
    model = adapted(study, cache)
    monkeypatch.setattr(dequantize, "gives_same_bits", lambda *given: False)
    assert dequantize.set_frozen_weights(model, "auto", BATCHES, 1) == {
        "weights": "nf4",
        "weights_same_bits": False,
    }
    assert dequantize.set_frozen_weights(model, "materialized", BATCHES, 1) == {
        "weights": "materialized",
        "weights_same_bits": False,
    }


def test_free_memory_can_really_be_used() -> None:
    free = memory.free_memory()
    assert 10**8 < free < 10**13
    held = torch.ones(free // 8, dtype=torch.uint8)
    assert memory.free_memory() < free - held.nbytes // 2


def test_on_a_gpu_each_number_of_tokens_is_tested_once_and_on_a_cpu_a_few_shapes() -> None:
    batches = [(1, tokens) for tokens in range(1, 513)] * 3 + [(2, 64), (4, 32), (2, 256)]
    on_gpu = dequantize._shapes_to_test(batches, on_gpu=True)
    assert sorted(examples * tokens for examples, tokens in on_gpu) == list(range(1, 513))
    assert set(on_gpu) <= set(batches)
    on_cpu = dequantize._shapes_to_test(batches, on_gpu=False)
    assert len(on_cpu) == dequantize.TESTED_ON_CPU
    assert set(on_cpu) <= set(batches)


def test_a_layer_of_each_size_is_unpacked_once_for_all_batches(
    study: Study, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(study, cache)
    sizes = {
        (layer.in_features, layer.out_features) for layer in model.modules() if type(layer) is Linear4bit
    }
    unpacked: list[tuple[int, int]] = []

    class Counted(Materialized):
        def __init__(self, layer: Any) -> None:
            super().__init__(layer)
            unpacked.append((layer.in_features, layer.out_features))

    monkeypatch.setattr(dequantize, "Materialized", Counted)
    assert gives_same_bits(model, BATCHES)
    assert sorted(unpacked) == sorted(sizes)


def test_inputs_are_drawn_on_the_device_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    asked: list[Any] = []
    draw = torch.randn

    def randn(*shape: int, **options: Any) -> torch.Tensor:
        asked.append((options["device"], options["generator"].device))
        return draw(*shape, **options)

    monkeypatch.setattr(torch, "randn", randn)
    assert dequantize._products_agree(layer, Materialized(layer), (1, 7))
    assert asked == [(torch.device("cpu"), torch.device("cpu"))] * 2
