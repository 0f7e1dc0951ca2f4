"""Log the matrix products of a block of code, and time them alone, as the limit of what the block can reach.

python benchmarks/products.py STUDY TRIAL FOLDER [--together N]

N processes run the trial (fine-tuning, merge, perplexity and responses) and the test of its base, with the
cache FOLDER/cache, and then time the products of both three times. The last line of output is the least
seconds of each as JSON, of the slowest process.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from places import at
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import qlora_repeat.execution.preload  # noqa: F401
from qlora_repeat.execution.run_trial import run_base_test, run_trial
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.determinism import set_kernels

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}


@dataclass(frozen=True)
class Operand:
    """A tensor of a product: its storage, and where it begins there; its type and form."""

    storage: int
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


Product = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An operator, and its arguments with operands in place of tensors."""


class ProductLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Log the matrix products of a block, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self._storages: dict[int, StorageWeakRef] = {}
        self._kept: set[int] = set()

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        name = operator._schema.name
        made = NotImplemented
        if name in PRODUCTS:
            operands = (self._operand(each) if isinstance(each, torch.Tensor) else each for each in arguments)
            self.products.append((operator, tuple(operands), named))
        elif not name.startswith("prim::"):
            with self:  # without gradients, operators such as `linear` come whole
                made = operator.decompose(*arguments, **named)
        return operator(*arguments, **named) if made is NotImplemented else made

    def _operand(self, tensor: torch.Tensor) -> Operand:
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._storages.setdefault(reference.cdata, reference)
        place = reference.cdata, tensor.storage_offset()
        return Operand(*place, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))

    def keep(self) -> None:
        """Let the operands that exist now, such as weights, have memory of their own in `seconds_of`."""
        self._kept |= {key for key, reference in self._storages.items() if not reference.expired()}

    def logged(self) -> list[Product]:
        """Return the products; all operands that were not kept share memory with those of the same form."""

        def shared(each: Any) -> Any:
            is_gone = isinstance(each, Operand) and each.storage not in self._kept
            return replace(each, storage=0, start=0) if is_gone else each

        return [
            (operator, tuple(map(shared, operands)), named) for operator, operands, named in self.products
        ]


def seconds_of(products: list[Product], repeats: int = 3) -> float:
    """Return the least seconds that the products take in this order, with operands of the same form.

    Operands in one storage stay in one. All have the values of a normal distribution.
    """
    sizes: dict[tuple[Any, ...], int] = {}
    for _, operands, _ in products:
        for each in operands:
            if isinstance(each, Operand):
                sizes[_key(each)] = max(sizes.get(_key(each), 0), _end(each))
    memory = {key: torch.randn(size).to(key[1]) for key, size in sizes.items()}

    def tensor(each: Any) -> Any:
        if not isinstance(each, Operand):
            return each
        return torch.as_strided(memory[_key(each)], each.shape, each.strides, each.start)

    calls = [(operator, tuple(map(tensor, operands)), named) for operator, operands, named in products]
    best = float("inf")
    with torch.inference_mode():
        for _ in range(repeats):
            began = time.perf_counter()
            for operator, arguments, named in calls:
                operator(*arguments, **named)
            best = min(best, time.perf_counter() - began)
    return best


def _key(each: Operand) -> tuple[Any, ...]:
    return (each.storage, each.dtype) if each.storage else (0, each.dtype, each.shape, each.strides)


def _end(each: Operand) -> int:
    """Return the number of elements from the start of the storage to the last one of the operand."""
    if 0 in each.shape:
        return each.start
    return each.start + 1 + sum((n - 1) * step for n, step in zip(each.shape, each.strides, strict=True))


def logged(work: Callable[[Callable[..., None]], object]) -> list[Product]:
    """Return the products of some work, which gets a function to report progress to."""
    log = ProductLog()

    def progress(stage: str, done: int, total: int, loss: float | None) -> None:
        if done and done == total:
            log.keep()  # while the model of this stage exists

    with log:
        work(progress)
    return log.logged()


def measured(workspace: Workspace, name: str, ready: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Return the seconds of the products of a trial and of a test of its base; call `ready` before timing."""
    trial = workspace.trial(name)
    tests = workspace.base_tests(trial.model_name)
    found = {
        "trial": logged(partial(run_trial, trial, ["finetune", "merge", "evaluate"], force=True)),
        "base": logged(partial(run_base_test, tests[0])),
    }
    set_kernels(trial.study.randomness.kernels, trial.study.threads)
    ready()
    return {key: seconds_of(products) for key, products in found.items()}


def _measure(study: str, name: str, folder: Path, number: int, barrier: Any, results: Any) -> None:
    workspace = at(load_study(study), folder / f"products-{number}", folder / "cache")
    results.put(measured(workspace, name, barrier.wait))


def main() -> None:
    """Time the products of a trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("trial")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--together", type=int, default=1)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(args.together), context.Queue()
    processes = [
        context.Process(target=_measure, args=(args.study, args.trial, args.folder, number, barrier, results))
        for number in range(args.together)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    print(json.dumps({key: max(each[key] for each in found) for key in ("trial", "base")}))


if __name__ == "__main__":
    main()
