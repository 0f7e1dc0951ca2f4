"""Submit a study to Slurm: an array with a task for each unfinished trial, then a job that renders results.

submitit writes the batch files, requeues tasks that were preempted or ran out of time, and keeps their
output. The commands of a task (task.py) run in the image if there is one. submitit runs outside, because it
needs ``scontrol`` to requeue the task.
"""

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.execution.jobs import BaseTestJob, TrialJob, open_jobs
from qlora_repeat.planning.plan import DTYPE_BYTES, Plan
from qlora_repeat.slurm.queue import cluster_name, partition_minutes, read_queue
from qlora_repeat.slurm.task import Task, image_state
from qlora_repeat.study.cluster import Cluster
from qlora_repeat.study.finding import split_name
from qlora_repeat.study.selection import Selection
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import ALL_STAGES
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.environment import without_variables
from qlora_repeat.system.file_lock import exclusive, read_lock, remove_ended
from qlora_repeat.system.files import make_folder, write_json
from qlora_repeat.system.fingerprint import command_output
from qlora_repeat.system.gpus import on_cpu
from qlora_repeat.system.hashing import file_digest
from qlora_repeat.system.typed_json import read_as

_Number = Annotated[str, Field(pattern=r"^\d{1,20}(_\d{1,20})?$")]
_JOB: TypeAdapter[str] = TypeAdapter(_Number)
_TASKS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, _Number])
WARNING_SECONDS = 120
"""Seconds before the time limit at which a task is asked to stop; fine-tuning then saves a checkpoint."""
MOST_TIMES = 100
"""The number of times that a task may run out of time; it is requeued and resumes."""
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
    """The tasks that an earlier submission has queued or that are running, with their job numbers."""
    array: dict[str, Any]
    """The parameters of the array, as submitit names them."""
    render: dict[str, Any]
    """The parameters of the job that renders."""
    estimated: bool
    """Whether time and memory come from the plan."""


def make_request(
    workspace: Workspace, cluster: Cluster, plan: Plan | None, chosen: Selection | None = None
) -> Request:
    """Return the jobs that a study, or some of its trials, need from Slurm.

    Raises:
        UsageError: the image does not exist.
    """
    image = image_of(cluster)
    if image is not None and not image.exists():
        raise UsageError(f"--image {cluster.image}: no such file; `make sif` makes one")
    study, queue = workspace.study, read_queue()
    names = list(dict.fromkeys(_task_name(job) for job in open_jobs(workspace, ALL_STAGES, chosen=chosen)))
    queued = {} if queue is None else _queued_tasks(workspace, queue.waiting_or_running)
    minutes, memory = estimates(study, plan)
    minutes = cluster.minutes or min(minutes, partition_minutes(cluster.partition) or minutes)
    # Without an image, torch's CPU build needs no GPU.
    default_gpus = 0 if cluster.image is None and on_cpu() else 1
    gpus = default_gpus if cluster.gpus is None else cluster.gpus
    common: dict[str, Any] = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "stderr_to_stdout": True,
        # srun, by which submitit starts a task, no longer takes the number of its processors from sbatch.
        "setup": [
            "export HF_HUB_OFFLINE=1 SUBMITIT_PREEMPT_SIGNAL=USR1 SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
            "export PYTHONSAFEPATH=1",  # the current folder may be a stranger's: import nothing from it
        ],
    }
    extra = {"requeue": True} | (cluster.sbatch or {})
    array = common | {
        "job_name": _job_name(study),
        "time": minutes,
        "mem": _mebibytes(cluster.memory or memory),
        "cpus_per_task": cluster.cpus or max(study.threads, 2 if gpus else 1),
        "gres": ":".join(filter(None, ["gpu", cluster.gpu_type, str(gpus)])) if gpus else None,
        "array_parallelism": cluster.concurrent,
        "signal_delay_s": min(WARNING_SECONDS, minutes * 60 // 4),
        "additional_parameters": extra,
    }
    other = dict(cluster.tables or {})
    queues = ("partition", "account", "qos")
    render = common | {name: other.pop(name) or None for name in queues if name in other}
    render |= {
        "job_name": f"{_job_name(study)} tables",
        "time": OTHER_MINUTES,
        "mem": _mebibytes(min(cluster.memory or OTHER_GB, OTHER_GB)),
        "cpus_per_task": 1,
        "signal_delay_s": WARNING_SECONDS,
        "additional_parameters": extra | other,
    }
    return Request(
        tasks=[name for name in names if name not in queued],
        queued={name: job for name, job in queued.items() if name in names},
        array=_without_unset(array),
        render=_without_unset(render),
        estimated=plan is not None,
    )


def _task_name(job: TrialJob | BaseTestJob) -> str:
    """Return the argument of `qlora-repeat trial`: a trial, or MODEL/base for all tests of a base."""
    return job.name if isinstance(job, TrialJob) else f"{job.test.model_name}/base"


def _mebibytes(gigabytes: float) -> str:
    return f"{math.ceil(gigabytes * 1e9 / 2**20)}M"


def _without_unset(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters without those that are None or false, also among the additional ones."""
    kept = {name: value for name, value in parameters.items() if value is not None and value is not False}
    if isinstance(more := kept.get("additional_parameters"), dict):
        kept["additional_parameters"] = _without_unset(more)
    return kept


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


def submit(
    request: Request, workspace: Workspace, cluster: Cluster, out: Path
) -> tuple[dict[str, str], str | None]:
    """Submit the jobs to Slurm; the array is submitted as a whole or not at all.

    Returns:
        The job number of each task, and of the job that renders, if there is one.

    Raises:
        MissingError: there is no sbatch here.
        UsageError: Slurm refuses the jobs; the message quotes it. Or a folder's name does not suit it.
        BusyError: another process is submitting the same study.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise MissingError(
            "sbatch: not found; `submit` is for a login node of a Slurm cluster, outside of containers. "
            "`qlora-repeat run` needs no scheduler"
        )
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # which submitit reads when it is imported
    folder, here, results = jobs_folder(workspace), str(Path.cwd()), str(out.resolve())
    # A line break would end submitit's comment for sbatch; Slurm replaces "%j" in the name of a log.
    if not str(folder.resolve()).isprintable() or "%" in str(folder.resolve()):
        raise UsageError(
            f"{folder}: Slurm needs a folder without control characters and without %; give another --runs"
        )
    chosen = "@".join([str(workspace.file.resolve()), *split_name(workspace.given)[1]])
    runs = ["--runs", str(workspace.runs.resolve())]
    where = [*runs, "--cache", str(workspace.cache.resolve())]
    with exclusive(folder / "lock.json", f"submitting {workspace.study.label}"):
        clear_locks(workspace)
        if (queue := read_queue()) is None:
            raise MissingError("squeue: does not answer, so queued tasks are unknown; try again later")
        queued = _queued_tasks(workspace, queue.waiting_or_running)
        names = [name for name in request.tasks if name not in queued]
        path = folder / "render.json"
        before = read_as(_JOB, path, "delete it") if path.is_file() else ""
        if queue.waiting_or_running.get(before) != request.render["job_name"]:
            before = ""  # it has ended; or somebody wrote the number of another job of this user
        if not names and (not queued or before):
            return {}, before or None
        make_folder(out)
        beside = [each.parent for each in (workspace.file, *workspace.parents, workspace.lock)]
        kit = launcher(cluster, request, [workspace.runs, workspace.cache, out, *beside])
        image = image_of(cluster)
        pinned = image_state(image.resolve()) if image is not None and image.is_file() else None
        warning = request.array["signal_delay_s"]
        jobs = dict[str, str]()
        for turn in (False, True):  # averages need the trials that they average
            own = [name for name in names if ("~" in name) is turn]
            tasks = [
                Task([[*kit, "trial", name, "--study", chosen, *where]], here, warning, pinned)
                for name in own
            ]
            after = {"dependency": _after(queued | jobs)} if turn and queued | jobs else {}
            numbers = _submitted(folder, request.array | after, tasks) if own else []
            jobs |= zip(own, numbers, strict=True)
        write_json(folder / "tasks.json", submitted_tasks(folder) | jobs)
        commands = [[*kit, "collect", chosen, *where]]
        commands += [
            [*kit, name, chosen, *runs, "--out", results] for name in ("tables", "figures", "report")
        ]
        render = request.render | {"dependency": _after(queued | jobs)}
        (number,) = _submitted(folder, render, [Task(commands, here, WARNING_SECONDS, pinned)])
        write_json(path, number)
        if before:  # the new job waits for everything that the earlier one waits for
            command_output("scancel", "--state=PENDING", before, seconds=60)
    return jobs, number


def _after(jobs: Mapping[str, str]) -> str:
    """Return the dependency on the end of some tasks, well or not."""
    return f"afterany:{':'.join(sorted({job.split('_')[0] for job in jobs.values()}))}"


def _submitted(folder: Path, parameters: dict[str, Any], tasks: Sequence[Task]) -> list[str]:
    """Submit tasks and return their job numbers."""
    import submitit

    try:
        with _as_outside_a_job(parameters):
            executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=MOST_TIMES)
            executor.update_parameters(**parameters)
            if len(tasks) == 1:
                return [executor.submit(tasks[0]).job_id]
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
            return [job.job_id for job in jobs]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if "error:" in line), lines[0])
        raise UsageError(f"Slurm refuses the jobs: {reason}") from None


@contextlib.contextmanager
def _as_outside_a_job(parameters: Mapping[str, Any]) -> Iterator[None]:
    """Submit in the block as from a login node, and with these parameters, whatever the environment says.

    sbatch hands its environment to the job. In a job, srun would take the memory, cores and GPUs of the
    surrounding one from there, or refuse them. ``SBATCH_*`` count more than the parameters.
    """
    job = os.environ.get("SLURM_JOB_ID")
    asked = {name.replace("-", "_").upper() for name in (*parameters, *parameters["additional_parameters"])}
    defaults = "|".join(sorted({"ACCOUNT", "CONSTRAINT", "PARTITION", "QOS", "RESERVATION"} - asked))
    kept = rf"SLURM_(CONF|CONF_SERVER|CLUSTERS|JWT|SACK_\w+)|SBATCH_(CLUSTERS|EXPORT|GET_USER_ENV|{defaults})"
    names = r"(SLURM|SLURMD|SRUN|SALLOC|SBATCH|SUBMITIT)_\w+"
    if job is not None:
        names += r"|(CUDA|ROCR|HIP|ZE)_(VISIBLE_DEVICES|AFFINITY_MASK)|GPU_DEVICE_ORDINAL"
        names += "".join(f"|{name}" for name in ("TMPDIR", "TMP", "TEMP") if job in os.environ.get(name, ""))
    with without_variables(names, kept=kept):
        yield


def launcher(cluster: Cluster, request: Request, folders: Sequence[Path]) -> list[str]:
    """Return the command that starts the kit in a job: directly, or in the image with these folders mounted.

    Raises:
        UsageError: a folder's name has a comma or colon, which Apptainer cannot mount.
    """
    if (image := image_of(cluster)) is None:
        return [str(Path(sys.executable).with_name("qlora-repeat"))]
    from huggingface_hub import constants

    image, hub = image.resolve(), Path(constants.HF_HOME).resolve()  # the latter is where `fetch` puts files
    mounted = [path.resolve() for path in (Path.cwd(), *folders, hub) if path.is_dir()]
    if wrong := next((path for path in (*mounted, image, hub) if set(",:") & set(str(path))), None):
        raise UsageError(f"{wrong}: Apptainer cannot use a file or folder with a comma or colon in its name")
    variables = {"QLORA_REPEAT_IMAGE": image.name, "HF_HOME": str(hub)}
    if image.is_file():  # a folder has no digest
        variables["QLORA_REPEAT_IMAGE_DIGEST"] = f"sha256:{file_digest(image)}"
    options = ["--pwd", str(Path.cwd()), "--bind", ",".join(dict.fromkeys(map(str, mounted)))]
    options += ["--env", ",".join(f"{name}={value}" for name, value in variables.items())]
    names = (*request.array, *request.array["additional_parameters"])
    if any(name.startswith(("gres", "gpus")) for name in names):
        options.append("--nv")
    return ["apptainer", "exec", "--no-privs", *options, str(image), "qlora-repeat"]


def jobs_folder(workspace: Workspace) -> Path:
    """Return the folder where submitit keeps a study's jobs and their output."""
    return workspace.folder / "slurm"


def submitted_tasks(folder: Path) -> dict[str, str]:
    """Return all tasks that were ever submitted, each with its last job number.

    Raises:
        MissingError: the file that lists them has something else.
    """
    path = folder / "tasks.json"
    return read_as(_TASKS, path, "delete it") if path.is_file() else {}


def _queued_tasks(workspace: Workspace, jobs: Mapping[str, str]) -> dict[str, str]:
    """Return submitted tasks that are among these jobs, by number and with this study's name."""
    submitted = submitted_tasks(jobs_folder(workspace))
    return {name: job for name, job in submitted.items() if jobs.get(job) == _job_name(workspace.study)}


def _job_name(study: Study) -> str:
    return f"qlora-repeat {study.label}"


def clear_locks(workspace: Workspace) -> None:
    """Remove locks of jobs that have ended, for example because a node died.

    Other hosts cannot check a process, but Slurm can: a job that it does not know has ended.
    """
    locks = [trial.lock for trial in workspace.trials()]
    locks += [test.lock for test in workspace.base_tests()]
    held = {path: read_lock(path) for path in locks if path.is_file()}  # before the queue is read
    queue, cluster = read_queue() if held else None, cluster_name() if held else None
    if queue is not None:
        for path, content in held.items():
            remove_ended(path, content, queue.on_a_node, cluster)
