"""Estimate how long a trial takes on a CPU, before one has run there."""

from qlora_repeat.assets.fetch import needed
from qlora_repeat.assets.pins import data_with_rows
from qlora_repeat.errors import KitError
from qlora_repeat.planning.doctor import CPU_SECONDS, item_info
from qlora_repeat.study.data_sources import train_examples
from qlora_repeat.study.workspace import Workspace


def cpu_seconds(workspace: Workspace, name: str) -> float | None:
    """Return the seconds of a fine-tuning by the size of the model; None before model and data are known."""
    model = workspace.study.models[name]
    try:
        (base,) = (item for item in needed(workspace, [name]) if item.kind == "base")
        weights = item_info(workspace, base).weights  # 2 bytes for each parameter
        steps = model.training.total_steps(train_examples(data_with_rows(workspace, model.data)))
    except KitError:
        return None
    return None if weights is None else weights / 2 * CPU_SECONDS * steps
