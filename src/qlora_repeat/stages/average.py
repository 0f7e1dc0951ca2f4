"""Average the adapters of trials, or of the last steps of a trial.

The mean of products B A is an adapter itself, whose rank is the sum of the ranks: for k adapters

    (B1 A1 + ... + Bk Ak) / k = [B1 ... Bk] / k  x  [A1; ...; Ak].

The mean of A times the mean of B would be another product, and mean nothing: each trial draws its own A.
"""

import math
from collections.abc import Sequence
from typing import Any

from qlora_repeat.errors import StageError
from qlora_repeat.stages.merge import adapter_config
from qlora_repeat.study.randomness import draw_seed
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.files import copy_file, new_folder, parse_json, read_file, write_json
from qlora_repeat.system.hashing import weights_digest
from qlora_repeat.system.safetensors_file import read_weights

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def average(trial: Trial, seeds: Sequence[dict[str, int]]) -> dict[str, Any]:
    """Write the adapter of a trial that averages others, in PEFT's format.

    `seeds` are from the records of these trials.

    Returns:
        The record's outputs: the digest of the adapter, the names of the averaged trials, and the seeds that
        later stages need. A mean of several trials has a seed of responses of its own.

    Raises:
        StageError: the trials were trained on different rows, or their adapters have different layers.
    """
    if len({each["split"] for each in seeds}) > 1:
        raise StageError(f"{trial.name}: the trials that it averages have different splits of the rows")
    with new_folder(trial.adapter) as folder:
        if trial.averages_steps:
            for name in (_WEIGHTS, _CONFIG):
                copy_file(trial.sources[0].last_steps / name, folder / name)
        else:
            _write_mean(trial, folder)
    return {
        "adapter_digest": weights_digest(trial.adapter),
        "trials": [source.name for source in trial.sources],
        "seeds": dict(seeds[0])
        if trial.averages_steps
        else {
            "split": seeds[0]["split"],
            "generation": draw_seed(trial.study.randomness.generation, "generation", trial.number),
        },
    }


def _write_mean(trial: Trial, folder: Any) -> None:
    """Write the adapter whose product is the mean of the products of several adapters."""
    import torch
    from safetensors.torch import save_file

    adapters = [read_weights(source.adapter / _WEIGHTS) for source in trial.sources]
    if len({frozenset(each) for each in adapters}) > 1:
        raise StageError(f"{trial.name}: the trials that it averages have adapters of different layers")
    count, mean = len(adapters), {}
    for name in adapters[0]:
        parts = [each[name] for each in adapters]
        of_a = ".lora_A." in name
        mean[name] = torch.cat(parts, dim=0) if of_a else torch.cat(parts, dim=1) / count
    first = trial.sources[0].adapter
    known = adapter_config(first)
    grows = math.sqrt(count) if known.get("use_rslora") else count  # so that the scale stays the same
    config = parse_json(read_file(first / _CONFIG))
    config |= {"r": known["r"] * count, "lora_alpha": known["lora_alpha"] * grows}
    save_file(mean, folder / _WEIGHTS, {"format": "pt"})
    write_json(folder / _CONFIG, config)
