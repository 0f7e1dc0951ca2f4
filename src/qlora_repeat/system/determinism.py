"""Which kernels do a process's arithmetic: torch's defaults, or those that give the same bits each time.

``deterministic`` goes further than torch's own switch where that is silent: it leaves attention to the one
backend that is made of matrix products alone, since the backward pass of the fused ones adds up in an order
of its own, and it keeps to full float32. It does not make CUDA wait after each launch, which changes no bit
and falsifies timings.
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
    """Sets what cuBLAS reads when it starts: to be called before anything touches a device."""
    if kernels == "deterministic" and os.environ.get(WORKSPACE) not in DETERMINISTIC_WORKSPACES:
        os.environ[WORKSPACE] = DETERMINISTIC_WORKSPACES[0]


def set_kernels(kernels: Kernels, threads: int) -> None:
    """Sets the kernels and the CPU threads of this process, before it computes.

    Raises:
        StageError: the device is in use already, without the workspace that deterministic kernels need.
    """
    import torch

    late: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if kernels == "deterministic" and late and os.environ.get(WORKSPACE) not in DETERMINISTIC_WORKSPACES:
        raise StageError(
            f"the GPU was in use before {WORKSPACE} was set, so its kernels are not deterministic; "
            f"set it to {DETERMINISTIC_WORKSPACES[0]} and start again"
        )
    prepare_environment(kernels)
    torch.set_num_threads(threads)
    deterministic = kernels == "deterministic"
    torch.use_deterministic_algorithms(deterministic)
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
    """Leaves attention, for the block, to the backends that `set_kernels` leaves it to."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    with sdpa_kernel([SDPBackend.MATH, *(fused if kernels == "default" else [])]):
        yield


@contextlib.contextmanager
def named_operation(model: str) -> Iterator[None]:
    """Says which operation of which model has no deterministic form, where torch stops at one.

    Raises:
        StageError: so; instead of torch's own error.
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
