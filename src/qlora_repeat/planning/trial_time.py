"""Estimate how long a trial takes on a CPU, before one has run there."""

from qlora_repeat.assets.architecture import base_architecture
from qlora_repeat.assets.pins import data_with_rows
from qlora_repeat.errors import KitError
from qlora_repeat.planning.doctor import CPU_SECONDS
from qlora_repeat.study.data_sources import train_examples
from qlora_repeat.study.workspace import Workspace


def cpu_seconds(workspace: Workspace, name: str) -> float | None:
    """Return the seconds of a fine-tuning by the size of the model; None before model and data are known."""
    from qlora_repeat.planning.memory_estimate import model_config, parameter_count

    model = workspace.study.models[name]
    try:
        config = model_config(base_architecture(workspace, model.base), model.base)
        steps = model.training.total_steps(train_examples(data_with_rows(workspace, model.data)))
    except KitError:
        return None
    return parameter_count(config) * CPU_SECONDS * steps
