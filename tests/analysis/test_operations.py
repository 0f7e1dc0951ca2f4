"""The operator that makes two runs differ: planted faults are found, and harmless differences are not."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from qlora_repeat.analysis.operations import Operator, OperatorDifference, Phase, first_difference
from qlora_repeat.analysis.operator_log import OperatorLog

LAYERS = 2
MODULES = [
    f"model.layers.{layer}.{name}"
    for layer in range(LAYERS)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "input_layernorm")
]


def step(log: OperatorLog | None = None, prepare: Callable[[Any], None] | None = None) -> list[Operator]:
    """Return the log of one step of a new model: always the same step, with dropout and AdamW."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24}
    heads: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads, attention_dropout=0.1)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    tokens = torch.arange(12).reshape(2, 6)
    if prepare is not None:
        prepare(model)
    with log or OperatorLog() as log:
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return log.operators


@pytest.fixture(scope="module")
def plain() -> list[Operator]:
    return step()


class Faulty(OperatorLog):
    """Log a step in which the first operator from `number` on that gives floats gives another bit."""

    def __init__(self, number: int, draw: random.Random) -> None:
        super().__init__()
        self.number, self.draw = number, draw
        self.changed: int | None = None

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if self.changed is not None or len(self.operators) < self.number:
            return super().__torch_dispatch__(operator, types, arguments, named)
        return super().__torch_dispatch__(Kernel(operator, self), types, arguments, named)


class Kernel:
    """An operator that adds one unit in the last place to a random element of a result."""

    def __init__(self, operator: Any, log: Faulty) -> None:
        self.operator, self.log = operator, log
        self._schema, self.tags = operator._schema, operator.tags

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        result = self.operator(*arguments, **named)
        aliases = [each.alias_info for each in self._schema.returns]
        is_view = any(each is not None and not each.is_write for each in aliases)
        floats = [
            each
            for each in tree_leaves(result) or tree_leaves(arguments)[:1]  # those that change it return none
            if isinstance(each, torch.Tensor) and each.is_floating_point() and each.isfinite().any()
        ]
        if floats and not is_view and "empty" not in self._schema.name:
            chosen = self.log.draw.choice(floats)
            place = self.log.draw.choice(chosen.isfinite().nonzero().tolist())
            element = chosen[tuple(place)]
            element.copy_(torch.nextafter(element, torch.full_like(element, torch.inf)))
            self.log.changed = len(self.log.operators)
        return result


def test_another_bit_of_any_operator_is_found(plain: list[Operator]) -> None:
    draw, phases = random.Random(20261130), []
    for _ in range(100):
        log = Faulty(draw.randrange(len(plain) - 4), draw)
        found = first_difference(plain, step(log))
        assert log.changed is not None
        expected = plain[log.changed]
        assert found is not None
        assert (found.kind, found.place, found.first) == ("output", log.changed + 1, expected)
        assert found.second is not None
        assert found.second.call == expected.call
        phases.append(expected.phase)
    assert min(phases.count(phase) for phase in ("forward", "backward", "update")) > 10


class Perturb(torch.autograd.Function):
    """Return the next larger floats, in the forward or in the backward pass."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor, phase: Phase) -> torch.Tensor:
        context.phase = phase
        return Perturb.larger(value) if phase == "forward" else value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> Any:
        return Perturb.larger(gradient) if context.phase == "backward" else gradient, None

    @staticmethod
    def larger(value: torch.Tensor) -> torch.Tensor:
        return torch.nextafter(value, torch.full_like(value, torch.inf))


def after(module: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    """Return a preparation of a model that changes the output of a module."""

    def prepare(model: Any) -> None:
        layer = model.get_submodule(module)
        forward = layer.forward
        layer.forward = lambda value: change(forward(value))

    return prepare


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("module", MODULES)
def test_operators_that_only_one_run_has_are_found(plain: list[Operator], module: str, phase: Phase) -> None:
    for runs in (1, -1):
        logs = [plain, step(prepare=after(module, lambda value: Perturb.apply(value, phase)))][::runs]
        found = first_difference(*logs)
        assert found is not None
        assert found.kind == "operator"
        inserted = (found.first, found.second)[::runs][1]
        assert inserted is not None
        assert (inserted.module, inserted.phase) == (module, phase)


@pytest.mark.parametrize("module", MODULES)
def test_other_operators_with_the_same_results_are_no_difference(plain: list[Operator], module: str) -> None:
    harmless = after(module, lambda value: value.neg().neg())
    assert first_difference(plain, step(prepare=harmless)) is None
    draw = random.Random(module)
    for _ in range(3):
        log = Faulty(draw.randrange(len(plain) - 4), draw)
        found = first_difference(plain, step(log, harmless))
        assert log.changed is not None
        changed = log.operators[log.changed]
        if changed.name == "aten::neg":  # can be one that the other run does not have
            continue
        assert found is not None
        assert (found.kind, found.second) == ("output", changed)


def test_memory_without_content_is_no_difference(plain: list[Operator]) -> None:
    def through_new_memory(value: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            torch.empty(1000).fill_(float(len(used)))  # leaves other bytes for the next one
            used.append(torch.empty(1000).add_(1))
        return value

    used: list[torch.Tensor] = []
    first, second = (step(prepare=after(MODULES[0], through_new_memory)) for _ in range(2))
    assert [each.name for each in first if each.name == "aten::add_"]
    again = [each for each in second if each.name != "aten::fill_"]
    assert first_difference([each for each in first if each.name != "aten::fill_"], again) is None


def test_another_seed_is_an_unequal_input(plain: list[Operator]) -> None:
    found = first_difference(plain, step(prepare=lambda model: torch.manual_seed(1)))
    assert found is not None
    assert found.first is not None
    assert (found.kind, found.first.name) == ("input", "aten::bernoulli_")


def test_equal_logs_and_empty_logs() -> None:
    one = Operator("aten::mm", "forward", "model", ("a",), ("b",), (1,), (2,))
    assert first_difference([one], [one]) is None
    assert first_difference([], []) is None
    assert first_difference([one], []) is None
    update = Operator("aten::add_", "update", "weight", ("a",), ("b",), (1,), (1,))
    assert first_difference([update], []) == OperatorDifference("operator", 1, update, None)
