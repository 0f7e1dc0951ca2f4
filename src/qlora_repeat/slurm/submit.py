"""A study as jobs on Slurm: an array with a task for each trial that is not complete, then one that renders.

submitit writes the batch files, queues tasks that were preempted or ran out of time again, and keeps what
they print. A task's commands (task.py) run in the image if there is one: submitit itself stays outside, where
there is a ``scontrol`` to queue it again with.
"""

import contextlib
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.execution.jobs import BaseTestJob, TrialJob, open_jobs
from qlora_repeat.planning.plan import DTYPE_BYTES, Plan
from qlora_repeat.slurm.queue import Queue, cluster_name, partition_minutes, read_queue
from qlora_repeat.slurm.task import ImageFile, Task
from qlora_repeat.study.cluster import Cluster
from qlora_repeat.study.loading import split_name
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import STAGES
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.file_lock import exclusive, remove_ended
from qlora_repeat.system.files import read_json, write_json
from qlora_repeat.system.hashing import file_digest

WARNING_SECONDS = 120
"""Seconds before the time limit at which a task is asked to stop; fine-tuning then saves a checkpoint."""
MOST_TIMES = 100
"""How often a task may run out of time and be requeued; it resumes each time."""
FALLBACK_MINUTES = 240
"""The time limit of a task for which the plan has no estimate."""
MARGIN = 1.5
"""Ratio of the time limit to the estimate."""
OTHER_MINUTES = 30
"""Minutes for a trial besides fine-tuning; also the time limit of the job that renders."""
OTHER_GB = 4.0
"""GB of host memory, besides the weights that are loaded and merged there."""


@dataclass(frozen=True)
class Request:
    """The jobs that a study needs from Slurm."""

    tasks: list[str]
    """The names of trials, and of models whose base is tested (``model/base``)."""
    queued: dict[str, str]
    """Those that an earlier submission's jobs still wait for or work on, with the job's number."""
    array: dict[str, Any]
    """The parameters of the array, as submitit names them."""
    render: dict[str, Any]
    """The parameters of the job that renders."""
    estimated: bool
    """Whether time and memory come from the plan."""


def make_request(workspace: Workspace, cluster: Cluster, plan: Plan | None) -> Request:
    """Return the jobs that a study needs from Slurm.

    Raises:
        UsageError: the image does not exist.
    """
    image = image_of(cluster)
    if image is not None and not image.exists():
        raise UsageError(f"--image {cluster.image}: no such file; `make sif` makes one")
    study = workspace.study
    jobs = open_jobs(workspace, STAGES)
    names = list(dict.fromkeys(_task_name(job) for job in jobs))
    queued = queued_tasks(workspace, read_queue())
    minutes, memory = estimates(study, plan)
    minutes = min(minutes, partition_minutes(cluster.partition) or minutes)
    gpus = cluster.gpus if cluster.gpus is not None else default_gpus(cluster)
    common: dict[str, Any] = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "stderr_to_stdout": True,
        # srun, by which submitit starts a task, no longer takes the number of its processors from sbatch.
        "setup": [
            "export HF_HUB_OFFLINE=1 SUBMITIT_PREEMPT_SIGNAL=USR1 SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
        ],
    }
    extra = {"requeue": True} | (cluster.sbatch or {})
    array = common | {
        "job_name": f"qlora-repeat {study.label}",
        "time": cluster.minutes or minutes,
        "mem": f"{math.ceil((cluster.memory or memory) * 1e9 / 2**20)}M",
        "cpus_per_task": cluster.cpus or max(study.threads, 2 if gpus else 1),
        "gres": ":".join(filter(None, ["gpu", cluster.gpu_type, str(gpus)])) if gpus else None,
        "array_parallelism": cluster.concurrent,
        "signal_delay_s": min(WARNING_SECONDS, (cluster.minutes or minutes) * 60 // 4),
        "additional_parameters": _asked(extra),
    }
    other = dict(cluster.tables or {})
    queue = {name: other.pop(name) or None for name in ("partition", "account", "qos") if name in other}
    render = (
        common
        | queue
        | {
            "job_name": f"qlora-repeat {study.label} tables",
            "time": OTHER_MINUTES,
            "mem": f"{math.ceil(min(cluster.memory or OTHER_GB, OTHER_GB) * 1e9 / 2**20)}M",
            "cpus_per_task": 1,
            "signal_delay_s": WARNING_SECONDS,
            "additional_parameters": _asked(extra | other),
        }
    )
    return Request(
        tasks=[name for name in names if name not in queued],
        queued={name: job for name, job in queued.items() if name in names},
        array={name: value for name, value in array.items() if value is not None},
        render={name: value for name, value in render.items() if value is not None},
        estimated=plan is not None,
    )


def _task_name(job: TrialJob | BaseTestJob) -> str:
    """Return the argument of `qlora-repeat trial`: a trial, or MODEL/base for all tests of a base."""
    return job.name if isinstance(job, TrialJob) else f"{job.test.model_name}/base"


def _asked(options: dict[str, str | int | bool]) -> dict[str, Any]:
    """Return sbatch's options without those that are set to false."""
    return {name: value for name, value in options.items() if value is not False}


def image_of(cluster: Cluster) -> Path | None:
    """Return the image that tasks run in."""
    return None if cluster.image is None else Path(cluster.image).expanduser()


def estimates(study: Study, plan: Plan | None) -> tuple[int, float]:
    """Return minutes and GB for the largest task; merging needs the base twice in memory."""
    if plan is None:
        return FALLBACK_MINUTES, OTHER_GB
    seconds = [arm.train_seconds for model in plan.models for arm in model.arms]
    known = [each for each in seconds if each is not None]
    minutes = FALLBACK_MINUTES if len(known) < len(seconds) else 0
    minutes = max([minutes, *(math.ceil(MARGIN * each / 60) + OTHER_MINUTES for each in known)])
    size = DTYPE_BYTES[study.precision.merged]
    return minutes, OTHER_GB + max(2 * size * model.parameters for model in plan.models) / 1e9


def default_gpus(cluster: Cluster) -> int:
    """Return 1, or 0 without an image if torch is the CPU build."""
    from qlora_repeat.system.gpus import on_cpu

    return 0 if cluster.image is None and on_cpu() else 1


def submit(
    request: Request, workspace: Workspace, cluster: Cluster, out: Path
) -> tuple[dict[str, str], str | None]:
    """Submit the jobs to Slurm; the array is submitted as a whole or not at all.

    Returns:
        The job number of each task, and of the job that renders, if there is one.

    Raises:
        MissingError: there is no sbatch here.
        UsageError: Slurm refuses the jobs; the message quotes it.
        BusyError: another process is submitting the same study.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise MissingError(
            "sbatch: not found; `submit` is for a login node of a Slurm cluster, outside of containers. "
            "`qlora-repeat run` needs no scheduler"
        )
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # which submitit reads when it is imported
    folder = jobs_folder(workspace)
    here = str(Path.cwd())
    chosen = "@".join([str(workspace.file.resolve()), *split_name(workspace.given)[1]])
    where = ["--runs", str(workspace.runs.resolve()), "--cache", str(workspace.cache.resolve())]
    with exclusive(folder / "lock.json", f"submitting {workspace.study.label}"):
        clear_locks(workspace)
        queue = read_queue()
        if queue is None:
            raise MissingError(
                "squeue: does not answer, so that what is queued already is unknown; try again later"
            )
        queued = queued_tasks(workspace, queue)
        names = [name for name in request.tasks if name not in queued]
        before = _render_job(folder, queue)
        if not names and (not queued or before is not None):
            return {}, before
        out.mkdir(parents=True, exist_ok=True)
        beside = [workspace.file.parent, workspace.lock.parent]
        kit = launcher(cluster, request, [workspace.runs, workspace.cache, out, *beside])
        image = image_of(cluster)
        pinned = ImageFile.at(image.resolve()) if image is not None and image.is_file() else None
        warning = request.array["signal_delay_s"]
        tasks = [
            Task([[*kit, "trial", name, "--study", chosen, *where]], here, warning, pinned) for name in names
        ]
        jobs = dict(zip(names, _submitted(folder, request.array, tasks), strict=True)) if names else {}
        write_json(folder / "tasks.json", known_tasks(folder) | jobs)
        results = [
            [*kit, "collect", chosen, *where],
            [*kit, "tables", chosen, *where[:2], "--out", str(out.resolve())],
            [*kit, "figures", chosen, *where[:2], "--out", str(out.resolve())],
            [*kit, "report", chosen, *where[:2], "--out", str(out.resolve())],
        ]
        waited = sorted({job.split("_")[0] for job in (queued | jobs).values()})
        render = request.render | {"dependency": f"afterany:{':'.join(waited)}"}
        (number,) = _submitted(folder, render, [Task(results, here, WARNING_SECONDS, pinned)])
        write_json(folder / "render.json", number)
        if before is not None:  # the new one waits for all that it would have waited for
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(["scancel", "--state=PENDING", before], capture_output=True, timeout=60)
    return jobs, number


def _render_job(folder: Path, queue: Queue) -> str | None:
    """Return the rendering job of an earlier submission, if it has not ended."""
    path = folder / "render.json"
    number = str(read_json(path, "delete it")) if path.is_file() else ""
    return number if number in queue.waiting_or_running else None


def _submitted(folder: Path, parameters: dict[str, Any], tasks: Sequence[Task]) -> list[str]:
    """Submit tasks and return their job numbers."""
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=MOST_TIMES)
        executor.update_parameters(**parameters)
        if len(tasks) == 1:
            return [executor.submit(tasks[0]).job_id]
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
        return [job.job_id for job in jobs]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        told = [line.strip() for line in str(error).splitlines() if "error:" in line]
        raise UsageError(f"Slurm refuses the jobs: {(told or str(error).splitlines())[0]}") from None


def launcher(cluster: Cluster, request: Request, folders: Sequence[Path]) -> list[str]:
    """Return the command that starts the kit in a job: directly, or in the image with these folders mounted.

    Raises:
        UsageError: a folder's name has a comma or colon, which Apptainer cannot mount.
    """
    if (image := image_of(cluster)) is None:
        return [str(Path(sys.executable).with_name("qlora-repeat"))]
    from huggingface_hub import constants

    image, hub = image.resolve(), Path(constants.HF_HOME).resolve()  # the latter is where `fetch` puts files
    shown = [path.resolve() for path in (Path.cwd(), *folders, hub) if path.is_dir()]
    if wrong := next((path for path in shown if set(",:") & set(str(path))), None):
        raise UsageError(
            f"{wrong}: a folder that is shown to an image can have no comma or colon in its name"
        )
    told = {"QLORA_REPEAT_IMAGE": image.name, "HF_HOME": str(hub)}
    if image.is_file():  # and not a folder, which has no digest
        told["QLORA_REPEAT_IMAGE_DIGEST"] = f"sha256:{file_digest(image)}"
    options = ["--pwd", str(Path.cwd()), "--bind", ",".join(dict.fromkeys(map(str, shown)))]
    options += ["--env", ",".join(f"{name}={value}" for name, value in told.items())]
    extra = request.array["additional_parameters"]
    nvidia = (
        ["--nv"] if "gres" in request.array or any(key.startswith(("gres", "gpus")) for key in extra) else []
    )
    return ["apptainer", "exec", *nvidia, *options, str(image), "qlora-repeat"]


def jobs_folder(workspace: Workspace) -> Path:
    """Return the folder where submitit keeps a study's jobs and their output."""
    return workspace.folder / "slurm"


def queued_tasks(workspace: Workspace, queue: Queue | None) -> dict[str, str]:
    """Return submitted tasks that have not ended, with their job numbers; none without Slurm."""
    if queue is None:
        return {}
    known = known_tasks(jobs_folder(workspace))
    return {name: job for name, job in known.items() if job in queue.waiting_or_running}


def known_tasks(folder: Path) -> dict[str, str]:
    """Return all tasks that were ever submitted, each with its last job number."""
    path = folder / "tasks.json"
    known: dict[str, str] = read_json(path, "delete it") if path.is_file() else {}
    return known


def clear_locks(workspace: Workspace) -> None:
    """Remove locks of jobs that have ended, for example because a node died.

    Other hosts cannot check a process, but Slurm can: a job that it does not know has ended.
    """
    locks = [trial.lock for trial in workspace.trials()]
    locks += [test.lock for test in workspace.base_tests()]
    held = {path: path.read_bytes() for path in locks if path.is_file()}  # before the queue is read
    queue, cluster = read_queue() if held else None, cluster_name() if held else None
    if queue is not None:
        for path, content in held.items():
            remove_ended(path, content, queue.on_a_node, cluster)
