"""A trial in a hostile environment has the same bits, and says what it ignores."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.checkout import ROOT
from support.places import at
from support.tiny import write_study
from support.trials import quiet

from qlora_repeat.errors import StageError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.record import read_record
from qlora_repeat.stages import finetune
from qlora_repeat.system.environment import rule
from qlora_repeat.system.hashing import folder_digests

LEFT_BY_LAUNCHERS = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "ACCELERATE_BYPASS_DEVICE_MAP": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_OFFLOAD_PARAMS": "true",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "9",
    "TORCHELASTIC_RUN_ID": "x",
    "PMI_RANK": "1",
    "PMI_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "MV2_COMM_WORLD_SIZE": "2",
    "MPI_LOCALRANKID": "1",
    "KUBEFLOW_TRAINER_SERVER_URL": "http://127.0.0.1:9",
    "SM_FRAMEWORK_PARAMS": "{",
}
OF_LIBRARIES = {
    "TRANSFORMERS_SDPA_FORCE_GQA": "1",
    "XLA_USE_BF16": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "NVIDIA_TF32_OVERRIDE": "1",
    "TORCH_MKLDNN_MATMUL_MIN_DIM": "1",
    "TORCH_LINEAR_FLATTEN_3D": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCH_COMPILE_DEBUG": "1",
    "PYTORCH_JIT": "0",
    "TRITON_INTERPRET": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_THREAD_LIMIT": "1",
    "OMP_DYNAMIC": "true",
    "MKL_NUM_THREADS": "1",
    "MKL_DOMAIN_NUM_THREADS": "MKL_DOMAIN_ALL=1",
    "OPENBLAS_NUM_THREADS": "1",
    "USE_HUB_KERNELS": "1",
    "USE_TORCH_XLA": "1",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "1",
    "PYTHONHASHSEED": "3",
    "PYTHONWARNINGS": "error",
    "CUBLAS_WORKSPACE_CONFIG": ":0:0",
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_IS_CI": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    "USE_TF": "1",
    "USE_TORCH": "0",
}


def kit(variables: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("qlora-repeat")), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_a_hostile_environment_changes_no_byte_and_is_named(cache: Path, tmp_path: Path) -> None:
    study = f"{write_study(tmp_path, ('threads = 1', 'threads = 2'))}@bitwise"
    name, found = "tiny-llama-chat/adamw-8bit/1", dict[str, Any]()
    environments: dict[str, dict[str, str]] = {
        "plain": {"PYTHONHASHSEED": "1"},
        "hostile": LEFT_BY_LAUNCHERS | OF_LIBRARIES,
    }
    for label, variables in environments.items():
        done = kit(variables, "trial", name, "--study", study, "--runs", tmp_path / label, "--cache", cache)
        assert done.returncode == 0, done.stderr
        trial = at(study, tmp_path / label, cache).trial(name)
        record = read_record(trial.record("finetune"))
        assert record is not None and record.outputs["autocast"] is False
        tests = read_record(trial.record("evaluate"))
        assert tests is not None
        found[label] = (
            folder_digests(trial.adapter),
            record.outputs["adapter_digest"],
            tests.outputs["examples"],
        )
        if label == "hostile":
            removed = [each for each in variables if (is_ := rule(each)) and is_.treatment == "removed"]
            assert len(removed) > 30
            line = f"Ignores {', '.join(sorted(removed))}: the study decides, not the environment"
            assert done.stderr.splitlines().count(line) == 1
            assert set(record.fingerprint["environment"]).isdisjoint(removed)
        else:
            assert "Ignores" not in done.stderr
    assert found["plain"] == found["hostile"]


def test_a_precision_that_the_study_does_not_say_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a variable that is not removed would leave it."""
    trial = at(write_study(tmp_path), tmp_path / "runs", cache).trial("tiny-neox/adamw-8bit/1")
    monkeypatch.setattr(
        "qlora_repeat.execution.device.clear_environment",
        lambda: monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16"),
    )
    with pytest.raises(StageError) as caught:
        run_trial(trial, ["finetune"], quiet)
    assert "would use precision bf16 instead of no; unset what a launcher left" in str(caught.value)
    assert not trial.record("finetune").exists()


def test_autocast_is_what_accelerate_did_and_not_what_was_asked(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = at(write_study(tmp_path), tmp_path / "runs", cache).trial("tiny-neox/adamw-8bit/1")
    monkeypatch.setattr(finetune, "_require_asked", lambda trainer, trial: None)
    monkeypatch.setattr(
        "qlora_repeat.execution.device.clear_environment",
        lambda: monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16"),
    )
    run_trial(trial, ["finetune"], quiet)
    record = read_record(trial.record("finetune"))
    assert record is not None and record.outputs["autocast"] is True


def test_more_than_one_process_is_refused() -> None:
    accelerator = SimpleNamespace(
        mixed_precision="no",
        num_processes=2,
        distributed_type=SimpleNamespace(value="MULTI_CPU"),
        state=SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=SimpleNamespace(value="NO"))),
    )
    trainer = SimpleNamespace(args=SimpleNamespace(fp16=False, bf16=False), accelerator=accelerator)
    with pytest.raises(StageError, match="processes 2 instead of 1, division of the model MULTI_CPU"):
        finetune._require_asked(trainer, SimpleNamespace(name="m/o/1"))  # type: ignore[arg-type]
