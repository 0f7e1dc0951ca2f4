"""Tests of the old map of 8-bit optimizer state."""

import torch

from qlora_repeat.stages.legacy_qmap import old_map, set_legacy_qmap


def test_the_old_map_equals_the_map_of_the_releases() -> None:
    """Compare the map; only 256 of its 524 values fit, none above a tenth of a block's largest moment."""
    values = old_map()
    assert len(values) == 524
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0, 1)
    assert 0.09 < values[255] < 0.1


def test_todays_map_has_all_of_its_values() -> None:
    from bitsandbytes.functional import create_dynamic_map

    assert create_dynamic_map(signed=False).numel() == 256
    assert create_dynamic_map(signed=False)[255] == 1


def _second_moments(legacy_qmap: str | None) -> torch.Tensor:
    """Return the second moments, relative to the largest, that 8-bit AdamW stores for gradients 0 to 1."""
    from bitsandbytes.functional import dequantize_blockwise
    from bitsandbytes.optim import PagedAdamW8bit

    weight = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = PagedAdamW8bit([weight], lr=1e-3)
    set_legacy_qmap(optimizer, legacy_qmap)
    weight.grad = torch.linspace(0, 1, 4096).view(64, 64)
    optimizer.step()
    state = optimizer.state[weight]
    kept = dequantize_blockwise(
        state["state2"], absmax=state["absmax2"], code=state["qmap2"], blocksize=256
    ).view(-1)
    return kept / kept.new_tensor([0.001])  # 1 - beta2


def test_with_the_old_map_large_moments_are_lost() -> None:
    true = torch.linspace(0, 1, 4096) ** 2
    today, old = _second_moments(None), _second_moments("bitsandbytes-0.41.0")
    last = slice(-256, None)  # the block with the largest moments
    assert torch.allclose(today[last], true[last], rtol=0.05)
    assert (old[last] < true[last] / 9).all()


def test_a_map_is_set_for_one_optimizer_only() -> None:
    """Check that another optimizer in the same process has today's map."""
    before = _second_moments(None)
    assert not torch.equal(_second_moments("bitsandbytes-0.41.0"), before)
    assert torch.equal(_second_moments(None), before)
