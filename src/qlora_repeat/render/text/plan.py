"""A plan as text: three tables, and what they leave out."""

from collections.abc import Iterable

from qlora_repeat.planning.gpu_catalog import PAPER_GPU
from qlora_repeat.planning.plan import ArmPlan, ModelPlan, Plan
from qlora_repeat.render.footnotes import NOTES
from qlora_repeat.render.text.layout import prose, table

GB = 1e9


def plan_text(plan: Plan) -> str:
    """Return the plan as text; sizes in GB of 1e9 bytes."""
    gpu, disk = plan.gpu, plan.disk
    pace = f"assumed as fast as the paper's {PAPER_GPU}"
    if gpu.bandwidth is not None:
        pace = f"{gpu.bandwidth} GB/s, thus {gpu.speed:.2f} times as fast as the paper's {PAPER_GPU}"
    parts = [
        prose(f"Study {plan.study} on {plan.gpus} x {gpu.name}: {gpu.memory / GB:.1f} GB each, {pace}."),
        "GPU memory of fine-tuning on the longest batch, GB:",
        _table(_finetuning(model, arm) for model in plan.models for arm in model.arms),
        "GPU memory of testing the merged model, GB:",
        _table(map(_evaluation, plan.models)),
        prose(NOTES["plan"][plan.models[0].weights]),
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
        _table(_hours(arm) for model in plan.models for arm in model.arms),
        prose(_total(plan)),
    ]
    return "\n\n".join(parts)


def _table(rows: Iterable[dict[str, str]]) -> str:
    cells = list(rows)
    return table(list(cells[0]), [list(row.values()) for row in cells])


def _finetuning(model: ModelPlan, arm: ArmPlan) -> dict[str, str]:
    return {
        "arm": f"{model.model}/{arm.optimizer}",
        "8-bit" if model.weights == "int8" else "4-bit": _gb(model.base_quantized),
        "scales": _gb(model.base_scales),
        "unpacked": _gb(model.base_materialized),
        "other weights": _gb(model.base_unquantized),
        "adapter": _gb(model.adapter),
        "optimizer": _gb(arm.optimizer_state),
        "saved": _gb(model.saved),
        "passing": _gb(model.passing),
        "peak": _gb(arm.finetune_peak),
        "of GPU": _percent(arm.finetune_share),
        "paper": _percent(arm.paper_share),
    }


def _evaluation(model: ModelPlan) -> dict[str, str]:
    return {
        "model": model.model,
        "parameters": f"{model.parameters:,}",
        "in 4 bits": _percent(model.share_in_4_bits),
        "weights": _gb(model.evaluate_weights),
        "work": _gb(model.evaluate_work),
        "peak": _gb(model.evaluate_peak),
        "of GPU": _percent(model.evaluate_share),
    }


def _hours(arm: ArmPlan) -> dict[str, str]:
    hours = None if arm.train_seconds is None else arm.train_seconds / 3600
    return {
        "arm": f"{arm.model}/{arm.optimizer}",
        "trials": str(arm.trials),
        "steps": f"{arm.steps:,}",
        "hours a trial": "-" if hours is None else f"{hours:.2f}",
        "hours": "-" if hours is None else f"{arm.trials * hours:.2f}",
    }


def _gb(size: int) -> str:
    return f"{size / GB:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _total(plan: Plan) -> str:
    if plan.gpu_hours is None or plan.wall_hours is None:
        return "No estimate: no model has the size of one of the paper's models."
    gpus = "1 GPU" if plan.gpus == 1 else f"{plan.gpus} GPUs"
    lacking = plan.trials_without_estimate
    left_out = f" {lacking} trials of models of other sizes are left out." if lacking else ""
    return (
        f"Total: {plan.gpu_hours:.1f} GPU hours; {plan.wall_hours:.1f} hours on {gpus}, each trial on one."
        f"{left_out} Estimated from the paper's Tables 10 and 11, by number of steps and memory bandwidth. "
        "Loading, merging, testing and base tests are left out, since the paper gives no times for them."
    )
