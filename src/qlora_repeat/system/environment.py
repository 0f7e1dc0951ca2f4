"""List the environment variables that change what a trial computes, and keep them out of it.

The study decides about arithmetic, so a variable left over from another program must not. `VARIABLES` lists
what the libraries read (accelerate, transformers, torch and its mathematical libraries, peft, bitsandbytes,
datasets, huggingface_hub), and what the kit does about it. A test compares the list with their sources.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Treatment = Literal["removed", "set", "reported", "left"]


@dataclass(frozen=True)
class Variables:
    """Environment variables that have one purpose, and what the kit does about them."""

    names: str
    """A pattern."""
    purpose: str
    """What they change."""
    treatment: Treatment
    """``removed`` before libraries are imported; ``set`` to `value`; ``reported``, because the user may mean
    it: a line says that it can change bits; ``left``, because they change no bits, or describe the machine.
    The fingerprint has those that can matter."""
    value: str = ""
    read_when_loaded: bool = False
    """Whether libraries read them when they are loaded, so that removing them later changes nothing."""


VARIABLES = (
    Variables(
        r"(ACCELERATE|DEEPSPEED|FSDP|MEGATRON_LM|PARALLELISM_CONFIG)_\w+|FORK_LAUNCHED|FP8_\w+",
        "what `accelerate launch` leaves: precision, device, compiler, accumulation, division of training",
        "removed",
    ),
    Variables(
        r"(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|NPROC|MASTER_(ADDR|PORT)|(TORCHELASTIC|TORCHCOMM)_\w+"
        r"|PMI_\w+|PMIX_RANK|OMPI_(?!MCA_)\w+|MV2_COMM_WORLD_\w+|MPI_LOCAL\w+",
        "what torchrun, mpirun or srun leave: one process would wait for others",
        "removed",
    ),
    Variables(
        r"SM_(FRAMEWORK_PARAMS|HP_MP_PARAMETERS)|SMDATAPARALLEL_\w+|KUBEFLOW_TRAINER_SERVER_URL",
        "services that divide or follow a training",
        "removed",
    ),
    Variables(
        r"XLA_(USE|DOWNCAST)_BF16|PT_HPU_\w+|PJRT_DEVICE|TPU_NAME|NPU_\w+|(ASCEND|HCCL)_\w+"
        r"|PYTORCH_ENABLE_MPS_FALLBACK",
        "precision and kernels of devices that the kit does not use",
        "removed",
    ),
    Variables(
        r"FLASH_ATTENTION_\w+|TRANSFORMERS_(SDPA_FORCE_GQA|DISABLE_DEEPGEMM_LINEAR)",
        "kernels of attention and of linear layers in transformers",
        "removed",
    ),
    Variables(
        r"NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|(ONEDNN|DNNL)_DEFAULT_FPMATH_MODE"
        r"|CUBLAS_EMULAT\w+",
        "multiply float32 with fewer bits than the study says",
        "removed",
        read_when_loaded=True,
    ),
    Variables(
        r"TORCH_(BLAS|LINALG)_PREFER_\w+|TORCH_(CUDNN|MKLDNN|ROCM|NATIVE)_\w+|TORCH_LINEAR_FLATTEN_3D"
        r"|TORCH_DISABLE_NATIVE_JIT|DISABLE_ADDMM_\w+|PYTORCH_(TUNABLEOP|MIOPEN)_\w+",
        "which of several kernels torch prefers",
        "removed",
        read_when_loaded=True,
    ),
    Variables(
        r"(TORCHDYNAMO|AOTINDUCTOR|TORCH_COMPILER?|TORCH_DYNAMO)_\w+|TORCHINDUCTOR_(?!CACHE_DIR)\w+"
        r"|PYTORCH_(JIT|TENSOREXPR)\w*|TRITON_INTERPRET",
        "torch's compilers, which the kit does not use",
        "removed",
    ),
    Variables(
        r"OMP_(DYNAMIC|MAX_ACTIVE_LEVELS|NESTED|SCHEDULE|THREAD_LIMIT)|KMP_DYNAMIC_MODE"
        r"|MKL_(NUM_THREADS|DOMAIN_NUM_THREADS|DYNAMIC|NUM_STRIPES)"
        r"|(OPENBLAS|OPENBLAS_DEFAULT|GOTO|BLIS)_NUM_THREADS",
        "the number of threads, which the study sets; another one adds in another order",
        "removed",
        read_when_loaded=True,
    ),
    Variables(
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD|PYTHONWARNINGS",
        "whether pickle may run code, and whether a warning ends a process",
        "removed",
    ),
    Variables("USE_HUB_KERNELS", "kernels that transformers gets from a hub", "set", "NO"),
    Variables("USE_TORCH_XLA", "whether accelerate uses torch_xla where it is installed", "set", "0"),
    Variables(
        "TORCH_DEVICE_BACKEND_AUTOLOAD", "packages that replace torch's operators on import", "set", "0"
    ),
    Variables(
        r"ATEN_CPU_CAPABILITY|(ONEDNN|DNNL)_(MAX_CPU_ISA|CPU_ISA_HINTS)|MKL_(CBWR|ENABLE_INSTRUCTIONS)"
        r"|MKL_(DEBUG_CPU_TYPE|DISABLE_FAST_MM)|OPENBLAS_CORETYPE|NPY_(DIS|EN)ABLE_CPU_FEATURES|FBGEMM_\w+"
        r"|GLIBC_TUNABLES|LD_PRELOAD|BNB_\w+",
        "which instructions, kernels or libraries compute; useful to imitate another machine",
        "reported",
    ),
    Variables(
        r"OMP_NUM_THREADS|CUBLAS_WORKSPACE_CONFIG",
        "threads and workspace: each trial sets what its study says",
        "left",
    ),
    Variables(
        r"CUDA_\w+|CUBLASL?T?_\w+|CUDNN_\w+|(PYTORCH|TORCH)_\w+|(GOMP|KMP|MKL|OMP|ONEDNN|OPENBLAS|DNNL)_\w+"
        r"|LD_LIBRARY_PATH|PYTHONHASHSEED|NCCL_\w+|(HIP|ROCR)_VISIBLE_DEVICES|TF_CPP_MIN_LOG_LEVEL",
        "which device, memory and places of threads; logs. They change no bits of a deterministic trial",
        "left",
    ),
    Variables(
        r"(HF|HUGGING_?FACE\w*|DATASETS|TRANSFORMERS|TOKENIZERS|TQDM|EAGER)_\w+|USE_(JAX|TF|TORCH)"
        r"|DISABLE_(TELEMETRY|SAFETENSORS_CONVERSION)|DO_NOT_TRACK|NETWORK_DEBUG_REPORT(_PATH)?"
        r"|(ALL|HTTPS?|NO)_PROXY|XDG_\w+|TE?MP(DIR)?|CI|NO_COLOR",
        "where files come from and go to, and what is printed; files are checked by digest",
        "left",
    ),
    Variables(
        r"(CLEARML|COMET|MLFLOW|SWANLAB|TENSORBOARD|WANDB)_\w+|DISABLE_(KUBEFLOW|MLFLOW)_INTEGRATION"
        r"|RAY_SCOPE|(SM|AWS|ECS|SAGEMAKER|TRAINING|DATABRICKS|VSCODE|GITHUB|ACTIONS|OAUTH|OPENID|SPACE)_\w+"
        r"|VERTEX_PRODUCT|WEBHOOK_SECRET|CLAUDE_CONFIG_DIR|BRANCH",
        "services that follow a training from elsewhere, of which the kit uses none by itself",
        "left",
    ),
)
"""The variables that libraries read. The first entry that fits a name counts."""

_removed: dict[str, Variables] = {}
_too_late: list[str] = []


def rule(name: str) -> Variables | None:
    """Return the entry for a variable; None if no library that the kit uses reads it."""
    return next((each for each in VARIABLES if re.fullmatch(each.names, name)), None)


def clear_environment() -> None:
    """Remove variables that would change a trial from this process and its children, and set a few.

    Call this before libraries are imported.
    """
    for name in sorted(os.environ):
        found = rule(name)
        if found is not None and found.treatment == "removed":
            del os.environ[name]
            _removed[name] = found
            if found.read_when_loaded and "torch" in sys.modules:
                _too_late.append(name)
    os.environ.update({each.names: each.value for each in VARIABLES if each.treatment == "set"})


@contextlib.contextmanager
def without_variables(names: str, *, kept: str = "") -> Iterator[None]:
    """Hide variables that fit a pattern from programs that the block starts, except those that fit `kept`."""
    hidden = {
        name: value
        for name, value in os.environ.items()
        if re.fullmatch(names, name) and not re.fullmatch(kept, name)
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def environment_kept(*, but: str = "") -> Iterator[None]:
    """Undo what the block changes in variables that libraries read, except those that fit `but`.

    Optional packages set some when they are imported, such as scikit-learn KMP_INIT_AT_FORK, which would then
    be in records and in other processes.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in {*before, *os.environ}:
            if rule(name) is None or re.fullmatch(but, name):
                continue
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def removed_variables() -> Mapping[str, str]:
    """Return the variables that were removed from this process, each with its purpose."""
    return {name: found.purpose for name, found in sorted(_removed.items())}


def too_late() -> str | None:
    """Return a line if torch was loaded before its variables were removed, so that they still count."""
    if not _too_late:
        return None
    listed = ", ".join(sorted(set(_too_late)))
    return f"{listed}: set when this process imported torch, which may change bits; start again without"


def notes() -> list[str]:
    """Return lines about the variables that were removed, and about those that can change bits."""
    lines = []
    if _removed:
        lines.append(f"Ignores {', '.join(sorted(_removed))}: the study decides, not the environment")
    if found := [name for name in sorted(os.environ) if (is_ := rule(name)) and is_.treatment == "reported"]:
        lines.append(f"Uses {', '.join(found)}: this can change bits, and is recorded")
    return lines
