"""A plan as text: three tables, and what they leave out."""

from collections.abc import Callable, Sequence
from typing import Any

from qlora_repeat.planning.gpu_catalog import PAPER_GPU
from qlora_repeat.planning.plan import ArmPlan, ModelPlan, Plan
from qlora_repeat.render.text.layout import prose, table

GB = 1e9
WEIGHTS = {
    "nf4": 'Frozen weights stay in 4 bits while fine-tuning (weights = "nf4").',
    "materialized": 'Frozen weights are unpacked once while fine-tuning (weights = "materialized").',
    "auto": 'The plan assumes unpacked frozen weights (weights = "auto"): a trial unpacks them if they take '
    "at most half of the free memory and give the same bits. In 4 bits they take less.",
}
"""The plan's sentence on the frozen weights."""


def plan_text(plan: Plan) -> str:
    """Return the plan as text; sizes in GB of 1e9 bytes."""
    gpu, disk = plan.gpu, plan.disk
    pace = (
        f"assumed as fast as the paper's {PAPER_GPU}"
        if gpu.bandwidth is None
        else f"{gpu.bandwidth} GB/s, thus {gpu.speed:.2f} times as fast as the paper's {PAPER_GPU}"
    )
    parts = [
        prose(f"Study {plan.study} on {plan.gpus} x {gpu.name}: {gpu.memory / GB:.1f} GB each, {pace}."),
        "GPU memory of fine-tuning on the longest batch, GB:",
        _table(FINETUNE, [(model, arm) for model in plan.models for arm in model.arms]),
        "GPU memory of testing the merged model, GB:",
        _table(EVALUATE, plan.models),
        prose(WEIGHTS[plan.models[0].weights]),
        prose(
            f"Peaks include a nominal {plan.context / GB:.1f} GB for the CUDA context, but not the memory "
            "that torch's allocator reserves beyond live tensors. Column paper: Table 3 (one A100), for "
            "models of the same size. 1 GB is 1e9 bytes."
        ),
        prose(
            f"Disk: {disk.bases / GB:.1f} GB for the bases (more where pickled weights are converted), "
            f"{disk.quantized / GB:.1f} GB for their copies in 4 bits, "
            f"{disk.merged / GB:.1f} GB for merged weights, {disk.adapters / GB:.2f} GB for adapters."
        ),
        "Time of fine-tuning, estimated:",
        _table(HOURS, [arm for model in plan.models for arm in model.arms]),
        prose(_total(plan)),
    ]
    return "\n\n".join(parts)


def _total(plan: Plan) -> str:
    if plan.gpu_hours is None or plan.wall_hours is None:
        return "No estimate: no model has the size of one of the paper's models."
    gpus = "1 GPU" if plan.gpus == 1 else f"{plan.gpus} GPUs"
    left_out = (
        f" {plan.trials_without_estimate} trials of models of other sizes are left out."
        if plan.trials_without_estimate
        else ""
    )
    return (
        f"Total: {plan.gpu_hours:.1f} GPU hours; {plan.wall_hours:.1f} hours on {gpus}, each trial on one."
        f"{left_out} Estimated from the paper's Tables 10 and 11, by number of steps and memory bandwidth. "
        "Loading, merging, testing and base tests are left out, since the paper gives no times for them."
    )


PlanColumn = tuple[str, Callable[..., str]]


def _table(columns: list[PlanColumn], rows: Sequence[Any]) -> str:
    return table([heading for heading, _ in columns], [[cell(row) for _, cell in columns] for row in rows])


def _gb(size: int) -> str:
    return f"{size / GB:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _hours(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds / 3600:.2f}"


def _finetune(heading: str, cell: Callable[[ModelPlan, ArmPlan], str]) -> PlanColumn:
    return heading, lambda row: cell(*row)


FINETUNE = [
    _finetune("arm", lambda model, arm: f"{model.model}/{arm.optimizer}"),
    _finetune("4-bit", lambda model, arm: _gb(model.base_quantized)),
    _finetune("scales", lambda model, arm: _gb(model.base_scales)),
    _finetune("unpacked", lambda model, arm: _gb(model.base_materialized)),
    _finetune("other weights", lambda model, arm: _gb(model.base_unquantized)),
    _finetune("adapter", lambda model, arm: _gb(model.adapter)),
    _finetune("optimizer", lambda model, arm: _gb(arm.optimizer_state)),
    _finetune("saved", lambda model, arm: _gb(model.saved)),
    _finetune("passing", lambda model, arm: _gb(model.passing)),
    _finetune("peak", lambda model, arm: _gb(arm.finetune_peak)),
    _finetune("of GPU", lambda model, arm: _percent(arm.finetune_share)),
    _finetune("paper", lambda model, arm: _percent(arm.paper_share)),
]

EVALUATE: list[PlanColumn] = [
    ("model", lambda model: model.model),
    ("parameters", lambda model: f"{model.parameters:,}"),
    ("weights", lambda model: _gb(model.evaluate_weights)),
    ("work", lambda model: _gb(model.evaluate_work)),
    ("peak", lambda model: _gb(model.evaluate_peak)),
    ("of GPU", lambda model: _percent(model.evaluate_share)),
]

HOURS: list[PlanColumn] = [
    ("arm", lambda arm: f"{arm.model}/{arm.optimizer}"),
    ("trials", lambda arm: str(arm.trials)),
    ("steps", lambda arm: f"{arm.steps:,}"),
    ("hours a trial", lambda arm: _hours(arm.train_seconds)),
    ("hours", lambda arm: _hours(None if arm.train_seconds is None else arm.trials * arm.train_seconds)),
]
