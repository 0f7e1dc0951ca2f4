"""Log every operator of one optimizer step, with exact digests of all that it reads and writes.

torch sends each operator of a thread, and of the backward pass that the thread starts, to a dispatch mode.
Operators that only allocate are not logged, and their memory is filled with zeros, because it has no defined
content. Neither are views, which compute nothing.
"""

import bisect
import hashlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qlora_repeat.analysis.operations import Operator, Phase
from qlora_repeat.study.trial import Progress

_ALLOCATES = {
    "aten::empty", "aten::empty_like", "aten::empty_permuted", "aten::empty_strided", "aten::new_empty",
    "aten::new_empty_strided",
}  # fmt: skip
_WRAPPERS = "base_model.model."
"""The names that PEFT's model and its tuner put before the names of the model's modules."""


class OperatorLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Log the operators of this thread during a ``with`` block.

    `begins` says for an outermost module, when its forward pass starts, whether the log begins there.
    """

    def __init__(self, begins: Callable[[Any], bool] = lambda module: True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []
        self.recording = False
        self._begins = begins
        self._backward_seen = False
        self._names: dict[int, str] = {}
        """Names of modules and parameters, by identity."""
        self._parameters: dict[int, str] = {}
        """Names of trained parameters, by the address of their memory."""
        self._storages: dict[int, StorageWeakRef] = {}
        """The memory of every tensor so far. While torch has a weak reference, it does not reuse the key."""
        self._path: list[str] = []
        """The modules whose forward pass is running, outermost first."""
        self._starts: list[int] = []
        self._modules: list[str] = []
        """For each start of `_starts`: the module that makes the autograd nodes numbered from there."""

    def __enter__(self) -> Self:
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._enter_module),
            hooks.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _enter_module(self, module: Any, arguments: Any) -> None:
        if not self._path and not self.recording and self._begins(module):
            self.recording = True
            before = _WRAPPERS if hasattr(module, "peft_config") else ""
            for found in (module.named_modules(), module.named_parameters()):
                self._names |= {id(each): _without(before, name) for name, each in found}
            self._parameters = {
                each.untyped_storage().data_ptr(): self._names[id(each)]
                for each in module.parameters()
                if each.requires_grad
            }
        if self.recording:
            if not self._path:  # a step may have several forward passes
                self._backward_seen = False
            self._path.append(self._names.get(id(module), type(module).__name__))
            self._note_module()

    def _leave_module(self, module: Any, arguments: Any, output: Any) -> None:
        if self._path:
            self._path.pop()
            self._note_module()

    def _note_module(self) -> None:
        self._starts.append(torch._C._autograd._get_sequence_nr())
        self._modules.append(self._path[-1] if self._path else "")

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if not self.recording:
            return operator(*arguments, **named)
        schema = operator._schema
        if schema.name in _ALLOCATES:
            made = operator(*arguments, **named)
            return made.zero_() if made.device.type != "meta" else made
        if _is_view(schema):
            return operator(*arguments, **named)
        given = tree_leaves((arguments, named))
        written = tree_leaves(_written(schema, arguments, named))
        generator = _generator(operator, given)
        inputs = (*map(_digest, given), *_state(generator))
        phase, module = self._where(given)
        result = operator(*arguments, **named)
        made = written + [each for each in tree_leaves(result) if not any(each is other for other in written)]
        outputs = (*map(_digest, made), *_state(generator))
        reads, writes = self._memory(given), self._memory(made)
        self.operators.append(Operator(schema.name, phase, module, inputs, outputs, reads, writes))
        return result

    def _memory(self, values: list[Any]) -> tuple[int, ...]:
        found = []
        for each in values:
            if isinstance(each, torch.Tensor):
                reference = StorageWeakRef(each.untyped_storage())  # type: ignore[no-untyped-call]
                found.append(reference.cdata)
                self._storages.setdefault(reference.cdata, reference)
        return tuple(found)

    def _where(self, given: list[Any]) -> tuple[Phase, str]:
        """Return the part of the step that is running, and the module or trained parameter that it is for."""
        if torch._C._current_graph_task_id() != -1:
            self._backward_seen = True
            node: Any = torch._C._current_autograd_node()
            if self._path or node is None:  # a forward pass is repeated, to save memory
                return "backward", self._path[-1] if self._path else ""
            if (parameter := getattr(node, "variable", None)) is not None:
                return "backward", self._names.get(id(parameter), "")
            place = bisect.bisect_right(self._starts, node._sequence_nr()) - 1
            return "backward", self._modules[place] if place >= 0 else ""
        if self._path:
            return "forward", self._path[-1]
        if not self._backward_seen:
            return "forward", ""
        stored = (each.untyped_storage().data_ptr() for each in given if isinstance(each, torch.Tensor))
        return "update", next((self._parameters[key] for key in stored if key in self._parameters), "")


class StepLog(OperatorLog):  # type: ignore[no-untyped-call]
    """Log the operators of one step (from 1) of a fine-tuning that reports its progress to `progress`.

    The step begins with the forward pass of the whole model, and ends when it is reported as done.
    """

    def __init__(self, step: int, progress: Progress) -> None:
        super().__init__(lambda module: self._done == step - 1 and hasattr(module, "peft_config"))
        self._step, self._done, self._progress = step, 0, progress

    def progress(self, stage: str, done: int, total: int, loss: float | None) -> None:
        self._done = done
        if done >= self._step:
            self.recording = False
        self._progress(stage, done, total, loss)


def _without(before: str, name: str) -> str:
    return "" if before.startswith(f"{name}.") else name.removeprefix(before)


def _is_view(schema: Any) -> bool:
    """Return whether an operator returns its argument, or a view of it, unchanged."""
    returned = [each.alias_info for each in schema.returns]
    return bool(returned) and all(each is not None and not each.is_write for each in returned)


def _written(schema: Any, arguments: Any, named: dict[str, Any]) -> list[Any]:
    """Return the arguments that an operator changes."""
    found = []
    for place, each in enumerate(schema.arguments):
        if each.alias_info is not None and each.alias_info.is_write:
            found.append(arguments[place] if place < len(arguments) else named.get(each.name))
    return found


def _generator(operator: Any, given: list[Any]) -> Any:
    """Return the random generator that an operator uses, or None."""
    if torch.Tag.nondeterministic_seeded not in operator.tags:
        return None
    if (own := next((each for each in given if isinstance(each, torch.Generator)), None)) is not None:
        return own
    devices = [each.device for each in given if isinstance(each, torch.Tensor)]
    devices += [each for each in given if isinstance(each, torch.device)]
    if devices and devices[0].type == "cuda":
        return torch.cuda.default_generators[devices[0].index or 0]
    return torch.default_generator


def _state(generator: Any) -> tuple[str, ...]:
    return () if generator is None else (_digest(generator.get_state()),)


def _digest(value: Any) -> str:
    """Return a digest of a tensor's type, shape and bytes, or another value as text."""
    if isinstance(value, torch.Tensor):
        content = hashlib.sha256(f"{value.dtype} {list(value.shape)}".encode())
        if value.device.type != "meta":
            with torch._C.DisableTorchFunctionSubclass():  # bitsandbytes has subclasses
                flat = value.detach().cpu().contiguous().flatten()
                content.update(flat.view(torch.uint8).numpy().data)
        return content.hexdigest()
    if isinstance(value, float):
        return value.hex()
    known = (bool, int, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
    return str(value) if isinstance(value, known) else type(value).__name__
