"""Choose the kernels of a process: torch's defaults, or kernels that give the same bits each time.

``deterministic`` sets more than torch's own switch. Attention uses only the backend made of matrix products,
because the backward pass of fused kernels adds in an arbitrary order, and float32 keeps its full precision.
New tensors are not filled with NaN, and CUDA does not wait after each launch: both would change no bit, and
take time.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Literal

from qlora_repeat.errors import StageError

Kernels = Literal["default", "deterministic"]
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")


def prepare_environment(kernels: Kernels) -> None:
    """Set the variable that cuBLAS reads when it starts; call this before anything uses a device."""
    if kernels == "deterministic" and os.environ.get(WORKSPACE) not in DETERMINISTIC_WORKSPACES:
        os.environ[WORKSPACE] = DETERMINISTIC_WORKSPACES[0]


def set_kernels(kernels: Kernels, threads: int) -> None:
    """Set the kernels and the number of CPU threads of this process, before it computes.

    Raises:
        StageError: the GPU was used before the workspace of deterministic kernels was set.
    """
    import torch

    late: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if kernels == "deterministic" and late and os.environ.get(WORKSPACE) not in DETERMINISTIC_WORKSPACES:
        raise StageError(
            f"the GPU was used before {WORKSPACE} was set, so its kernels are not deterministic; "
            f"set it to {DETERMINISTIC_WORKSPACES[0]} and start again"
        )
    prepare_environment(kernels)
    torch.set_num_threads(threads)
    deterministic = kernels == "deterministic"
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.mkldnn.deterministic = deterministic  # type: ignore[assignment]
    torch.backends.cuda.enable_math_sdp(True)
    for fused in (
        torch.backends.cuda.enable_flash_sdp,
        torch.backends.cuda.enable_mem_efficient_sdp,
        torch.backends.cuda.enable_cudnn_sdp,
    ):
        fused(not deterministic)


@contextlib.contextmanager
def attention_kernels(kernels: Kernels) -> Iterator[None]:
    """Use the attention backends that `set_kernels` allows, during the block."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    with sdpa_kernel([SDPBackend.MATH, *(fused if kernels == "default" else [])]):
        yield


@contextlib.contextmanager
def named_operation(model: str) -> Iterator[None]:
    """Replace torch's error about an operation without a deterministic form.

    Raises:
        StageError: names the operation and the model.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if found is None:
            raise
        raise StageError(
            f"model {model}: the operation {found[1]} has no deterministic form on this device; "
            'use a profile with kernels = "default" (--randomness seeded), or another version of torch'
        ) from error
