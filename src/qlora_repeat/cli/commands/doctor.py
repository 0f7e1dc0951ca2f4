"""`qlora-repeat doctor`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from qlora_repeat.cli.options import cpu_option, output, silence_libraries, workspace_argument
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.printable import one_line, say, say_json

if TYPE_CHECKING:
    from qlora_repeat.planning.machine_checks import Finding


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the whole fingerprint and the findings as JSON.")
@cpu_option
@workspace_argument
def command(workspace: Workspace, as_json: bool) -> None:
    """Show the machine and software, and what would stop a study from running here.

    Each problem comes with advice. No network is used and nothing is written. On a GPU this takes half a
    minute, to measure the memory that the study needs. The exit code is 3 if something stops the study.

    \b
    Example:
      qlora-repeat doctor pocket
    """
    silence_libraries(verbose=False)
    import contextlib
    import dataclasses

    from qlora_repeat.api.colors import LEVELS, with_colored
    from qlora_repeat.errors import MissingError
    from qlora_repeat.planning.doctor import examine
    from qlora_repeat.system.determinism import set_kernels
    from qlora_repeat.system.files import json_text
    from qlora_repeat.system.fingerprint import environment, fingerprint

    study = workspace.study
    given = environment()
    with contextlib.suppress(ImportError, OSError):  # a torch that cannot be imported is a finding
        set_kernels(study.randomness.kernels, study.threads)  # as a trial does, which sets a variable too
    machine = fingerprint()
    findings = examine(workspace, machine | {"environment": given})
    if as_json:
        told = [dataclasses.asdict(finding) for finding in findings]
        content = {"study": study.label, "fingerprint": machine, "findings": told}
        say_json(json_text(content))
    else:
        for line in (*machine_lines(machine), ""):
            say(line)
        out = output()
        for line in finding_lines(findings):
            out.print(with_colored(one_line(line), LEVELS, most=1))
    stops = sum(finding.level == "stops" for finding in findings)
    if stops:
        raise MissingError(f"study {study.label} cannot run here: {stops} of the findings above stop it")
    if not as_json:
        warnings = sum(finding.level == "warning" for finding in findings)
        what = f"Nothing stops study {study.label} from running here"
        say()
        say(what + (f"; warnings: {warnings}." if warnings else "."))


def finding_lines(findings: Sequence["Finding"]) -> Iterator[str]:
    """Yield a line for each finding: its level, its subject, what was found and what to do."""
    width = max((len(finding.subject) for finding in findings), default=0)
    for finding in findings:
        advice = f"; {finding.advice}" if finding.advice else ""
        yield f"{finding.level:<7}  {finding.subject:<{width}}  {finding.text}{advice}"


def machine_lines(machine: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fingerprint in short."""
    shown = _shown(machine)
    width = max(map(len, shown))
    for name, value in shown.items():
        yield f"{name:<{width}}  {value}"


def _shown(machine: Mapping[str, Any]) -> dict[str, str]:
    kernels, image = machine["kernels"] or {}, machine["image"]
    tree = {None: "", True: ", with changes", False: ", clean"}[machine["dirty"]]
    digest = machine["lock"]
    gpu = "none"
    if machine["gpu"]:
        gpu = (
            f"{machine['gpu_count']} x {machine['gpu']}, {machine['gpu_memory'] / 1e9:.1f} GB, "
            f"compute capability {machine['gpu_capability']}, driver {machine['driver'] or 'unknown'}"
        )
    modes = {
        "deterministic": _switch(kernels.get("deterministic")),
        "TF32": _switch(kernels.get("matmul_tf32")),
        "TF32 of cuDNN": _switch(kernels.get("cudnn_tf32")),
        "float32 precision": kernels.get("float32_matmul_precision"),
        "attention": "/".join(kernels.get("attention", ())),
    }
    libraries = f"cuBLAS {machine['cublas'] or 'unknown'}, cuDNN {machine['cudnn'] or 'unknown'}"
    return {
        "packages": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        "lock": digest[:12] if digest else "none",
        "commit": (machine["commit"] or "unknown")[:12] + tree,
        "image": ", ".join(part for part in image.values() if part) or "none",
        "Python": machine["python"],
        "system": f"{machine['os'] or 'unknown'}, Linux {machine['kernel']}, {machine['libc'] or 'no glibc'}",
        "CPU": f"{machine['cpu']} ({machine['cpu_capability']}: {' '.join(machine['cpu_flags']['numeric'])})",
        "cores": f"{machine['usable_cores']} of {machine['cores']} to use",
        "threads": f"{machine['threads']} within an operation, {machine['interop_threads']} between",
        "GPU": gpu,
        "CUDA": f"{machine['cuda']}, {libraries}" if machine["cuda"] else "none",
        "kernels": ", ".join(f"{name} {value}" for name, value in modes.items()) if kernels else "unknown",
        "environment": ", ".join(f"{name}={value}" for name, value in machine["environment"].items()) or "-",
    }


def _switch(value: Any) -> str:
    return {True: "on", False: "off"}.get(value, str(value))
