"""The matrix products of a piece of work are logged and timed."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkout import ROOT
from support.places import at
from support.tiny import write_study

from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.study.trial import Trial


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import products

    yield products
    del sys.modules["products"]


class Model(torch.nn.Module):
    """Two layers, and attention by matrix products between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(5, 6), torch.nn.Linear(6, 7, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.second(torch.softmax(hidden @ hidden.transpose(1, 2), -1) @ hidden)


def forms(found: Any) -> list[tuple[str, list[tuple[int, ...]]]]:
    return [
        (operator._schema.name, [each.shape for each in operands if hasattr(each, "shape")])
        for operator, operands, _ in found
    ]


@pytest.mark.parametrize("training", [True, False])
def test_products_are_logged_in_their_order(training: bool, products: Any) -> None:
    model, log = Model(), products.ProductLog()
    with torch.inference_mode(not training), log:
        output = model(torch.ones(2, 3, 5))
        if training:
            output.sum().backward()
        log.keep()
    found = log.logged()
    forward = forms(found)[:4]
    assert [name for name, _ in forward] == ["aten::addmm", "aten::bmm", "aten::bmm", "aten::mm"]
    assert forward[0][1] == [(6,), (6, 5), (5, 6)]
    assert forward[1][1] == [(2, 3, 6), (2, 6, 3)]
    assert len(found) == (4 + 7 if training else 4), "inputs need no gradient"
    weights = {operands[2].storage for _, operands, _ in found[:1]} | {found[3][1][1].storage}
    assert len(weights) == 2
    assert 0 not in weights
    assert found[1][1][0].storage == 0, "it was temporary"


def test_timed_products_have_the_forms_of_the_logged_ones(products: Any) -> None:
    model, log = Model(), products.ProductLog()
    with log:
        model(torch.ones(2, 3, 5)).sum().backward()
        log.keep()
    again = products.ProductLog()
    with again:
        assert products.seconds_of(log.logged(), repeats=1) > 0
    assert forms(again.logged()) == forms(log.logged())
    strides = [
        [[each.strides for each in operands if hasattr(each, "strides")] for _, operands, _ in found.logged()]
        for found in (log, again)
    ]
    assert strides[0] == strides[1]


def test_a_trial_has_the_products_of_its_layers(products: Any, cache: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path, ('profile = "as-published"', 'profile = "bitwise"'))
    trial: Trial = at(study, tmp_path / "runs", cache).trial("tiny-llama-chat/adamw-8bit/1")
    found = products.logged(lambda progress: run_trial(trial, ["finetune", "merge"], progress))
    # Two layers: seven matrices, q_proj and v_proj with A and B, two products of attention; and the output.
    each_step = 2 * (7 + 2 * 2 + 2) + 1
    assert len(found) > 3 * 2 * each_step, "three steps, forward and backward"
    assert products.seconds_of(found, repeats=1) > 0
    seconds = products.measured(trial.workspace, trial.name)
    assert seconds.keys() == {"trial", "base"}
    assert 0 < seconds["base"] < seconds["trial"]
