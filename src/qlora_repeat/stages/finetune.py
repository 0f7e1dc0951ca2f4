"""Fine-tuning by QLoRA (sections VI and VII): a frozen base in NF4, an adapter, paged AdamW, the Trainer.

A study can have the base in 8 bits or unquantized instead.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_folder, check_base, hub_commit, is_miniature, load_tokenizer
from qlora_repeat.assets.datasets import Example, batch_order
from qlora_repeat.assets.derived_cache import encoded_part, load_frozen_base
from qlora_repeat.errors import StageError
from qlora_repeat.records.trace import Step, known_losses, loss_curve, read_trace
from qlora_repeat.stages.checkpoint import Checkpoint, Unfinished, begin, load_checkpoint, reopen
from qlora_repeat.stages.padding import IGNORED, collate_step, padding_id
from qlora_repeat.study.optimizers import Optimizer
from qlora_repeat.study.randomness import draw_seeds, stream_seed, torch_stream
from qlora_repeat.study.study import Loss, Study
from qlora_repeat.study.trial import Progress, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.determinism import named_operation
from qlora_repeat.system.files import copy_file, delete_folder, move_folder, new_folder, remove
from qlora_repeat.system.hashing import weights_digest
from qlora_repeat.system.limits import usable_cores
from qlora_repeat.system.printable import say
from qlora_repeat.system.signals import defer


def finetune(
    trial: Trial,
    progress: Progress,
    inputs: dict[str, Any],
    seeds: dict[str, int] | None = None,
    until_step: int | None = None,
    load_base: Callable[[Workspace, str], Any] | None = None,
    watch: Callable[[Step], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune one trial; write the adapter in PEFT's format, and the trace.

    Resume from the last checkpoint if an earlier attempt had the same `inputs`; the bits are the same as
    without the interruption. `seeds`, if given, replace those that the study would draw. If the loss becomes
    NaN or infinite, training continues, as in the paper; `diverged_at` is the first such step. With
    `until_step`, stop after that step, and leave only the trace and a checkpoint in ``unfinished``.
    `load_base`, if given, returns the frozen base in 4 bits. `watch`, if given, is called after each step.

    Returns:
        The record's outputs: adapter digest, seeds, losses, training seconds, peak memory, frozen weights,
        and the share of the base's weights in 4 bits.
        With `until_step`, only the seeds and the number of steps.

    Raises:
        StoppedError: this process was asked to stop; there is a checkpoint.
        StageError: the profile asks for deterministic kernels, and an operation has none.
    """
    trainer, weights = _begin(trial, progress, inputs, seeds, until_step, load_base)
    trainer.watch = watch
    unfinished, checkpoint = trainer.unfinished, trainer.checkpoint
    defer()
    if trainer.done < trainer.end:
        with named_operation(trial.model_name):
            trainer.train()
    if until_step is not None:
        return {"seeds": unfinished.seeds, "steps": trainer.end}

    folder = base_folder(trial.workspace, trial.model.base)
    _name_base(trainer.model, trial, folder)
    with new_folder(unfinished.folder / "adapter") as adapter:
        trainer.model.save_pretrained(adapter, save_embedding_layers=False)  # otherwise PEFT asks a hub
        remove(adapter / "README.md")  # a template that contains a local path
    # An older record does not fit the files below.
    remove(trial.record("finetune"))
    copy_file(unfinished.trace, trial.trace)
    move_folder(unfinished.folder / "adapter", trial.adapter)
    outputs = _outputs(trial, trainer, unfinished, checkpoint)
    outputs |= _average_of_last_steps(trial, trainer)
    return outputs | weights | {"miniature": is_miniature(folder)}


def _begin(
    trial: Trial,
    progress: Progress,
    inputs: dict[str, Any],
    seeds: dict[str, int] | None,
    steps: int | None,
    load_base: Callable[[Workspace, str], Any] | None,
) -> tuple[Any, dict[str, Any]]:
    """Return the trainer, restored from the last checkpoint if any, and outputs on the frozen weights."""
    workspace, study, model = trial.workspace, trial.study, trial.model
    check_base(workspace, model.base, weights=False)  # `load_frozen_base` checks those that it reads
    folder = base_folder(workspace, model.base)
    unfinished = reopen(trial.unfinished, inputs, seeds)
    if unfinished is None:
        drawn = seeds or draw_seeds(study.randomness, trial.number)
        unfinished = begin(trial.unfinished, inputs, drawn, study.digest_every)
    seeds, checkpoint = unfinished.seeds, load_checkpoint(unfinished)
    tokenizer = load_tokenizer(folder)
    examples = encoded_part(workspace, trial.model_name, "train", seeds["split"], tokenizer)
    order = batch_order(
        len(examples),
        model.training.examples_per_step,
        model.training.total_steps(len(examples)),
        seeds["data_order"],
    )
    base = (load_base or load_frozen_base)(workspace, model.base)
    in_4_bits = _share_in_4_bits(trial, base)
    with torch_stream(stream_seed(seeds["adapter_init"], "adapter_init")):
        adapted = with_adapter(trial, base)
    if study.randomness.nudge:
        nudge(adapted, trial.number)
    if checkpoint:
        _set_adapter(adapted, checkpoint)
    weights = _set_frozen_weights(trial, adapted, examples, order) | in_4_bits
    trainer = make_trainer(
        trial, adapted, tokenizer, examples, order, unfinished, checkpoint, progress, steps
    )
    return trainer, weights


def _share_in_4_bits(trial: Trial, base: Any) -> dict[str, float]:
    """Return the output ``share_in_4_bits`` of a base, and say if it is small although it should be in 4."""
    from qlora_repeat.stages.dequantize import count_weights

    counts = count_weights(base)
    if trial.study.quantization.in_4_bits and (warning := counts.warning()):
        say(f"base {trial.model.base}: {warning}", error=True)
    return {"share_in_4_bits": counts.share}


def _set_frozen_weights(
    trial: Trial, adapted: Any, examples: list[Example], order: list[list[int]]
) -> dict[str, Any]:
    import torch

    from qlora_repeat.stages.dequantize import set_frozen_weights

    if not trial.study.quantization.in_4_bits:
        return {"weights": trial.study.quantization.type, "weights_same_bits": None}
    size = trial.model.training.batch_size
    parts = [step[start : start + size] for step in order for start in range(0, len(step), size)]
    batches = [(len(batch), max(1, *(len(examples[row].ids) for row in batch))) for batch in parts]
    at_once = 1 if torch.cuda.is_available() else max(1, usable_cores() // trial.study.threads)
    return set_frozen_weights(adapted, trial.study.weights, batches, at_once)


def nudge(adapted: Any, number: int) -> None:
    """Increase weight `number` (from 1) of the adapter's first tensor by one unit in the last place."""
    import torch

    with torch.no_grad():
        weights = next(value for value in adapted.parameters() if value.requires_grad).view(-1)
        weight = weights[(number - 1) % weights.numel()]
        weight.copy_(torch.nextafter(weight, torch.full_like(weight, math.inf)))


def _average_of_last_steps(trial: Trial, trainer: Any) -> dict[str, str]:
    """Write the mean of the adapters after the last steps, if the study asks for it; return its digest."""
    from safetensors.torch import save_file

    delete_folder(trial.last_steps)
    if not trainer.last_steps:
        return {}
    with new_folder(trial.last_steps) as folder:
        save_file(trainer.mean_of_last_steps(), folder / "adapter_model.safetensors", {"format": "pt"})
        copy_file(trial.adapter / "adapter_config.json", folder / "adapter_config.json")
    return {"last_steps_digest": weights_digest(trial.last_steps)}


def _outputs(
    trial: Trial, trainer: Any, unfinished: Unfinished, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    steps = read_trace(trial.trace)
    losses = known_losses(steps) or [math.nan]
    return {
        "adapter_digest": weights_digest(trial.adapter),
        "seeds": unfinished.seeds,
        "steps": len(steps) - 1,
        "initial_loss": losses[0],
        "final_loss": losses[-1],
        "loss_curve": loss_curve(steps),
        "diverged_at": next((step.step for step in steps if step.diverged), None),
        "skipped_steps": sum(step.skipped for step in steps),
        "untrained_layers": _untrained(trial, trainer.model),
        "resumed_from": checkpoint.step if checkpoint else None,
        "optimizer_state": _state_types(trainer.checkpoint),
        # Both are off without a GPU.
        "autocast": bool(trainer.accelerator.native_amp),
        "loss_scaling": trainer.accelerator.scaler is not None,
        **trainer.spent_so_far(),
        **trainer.peak_memory(),
    }


def _untrained(trial: Trial, adapted: Any) -> int:
    """Return how many layers have an adapter that training never changed, and name one: B is still zero."""
    named = [(name, value) for name, value in adapted.named_parameters() if ".lora_B." in name]
    left = [name for name, value in named if not value.any()]
    if left:
        layer = left[0].removeprefix("base_model.model.").partition(".lora_B.")[0]
        say(
            f"{trial.name}: training changed nothing in {len(left)} of {len(named)} layers with an adapter, "
            f"such as {layer}; this task does not use them",
            error=True,
        )
    return len(left)


def with_adapter(trial: Trial, base: Any) -> Any:
    """Return the frozen base with a new adapter.

    All weights except the quantized ones are float32; a base that is not quantized stays as it is.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    checkpointing = trial.model.training.gradient_checkpointing
    if trial.study.quantization.type == "none":
        base.requires_grad_(False)
        if checkpointing:
            base.enable_input_require_grads()
    else:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=checkpointing)
    return get_peft_model(base, lora_config(trial.study, trial.model.target_modules))


def lora_config(study: Study, target_modules: list[str] | str) -> Any:
    """Return PEFT's configuration of an adapter on these layers."""
    from peft import LoraConfig

    return LoraConfig(
        r=study.lora.r,
        lora_alpha=study.lora.alpha,
        lora_dropout=study.lora.dropout,
        use_rslora=study.lora.rslora,
        use_dora=study.lora.dora,
        target_modules=target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _name_base(adapted: Any, trial: Trial, folder: Path) -> None:
    """Set the base's name in the adapter's configuration to its hub repository or name, not a local path.

    Also sort its sets, whose order depends on PYTHONHASHSEED, so that equal trials have equal files.
    """
    named, hub = adapted.peft_config["default"], trial.study.bases[trial.model.base].hub
    named.base_model_name_or_path = hub.repository if hub else trial.model.base
    named.revision = hub_commit(folder)
    for name, value in vars(named).items():
        if isinstance(value, set):
            setattr(named, name, sorted(value))


def _set_adapter(adapted: Any, checkpoint: Checkpoint) -> None:
    import torch

    parameters = dict(adapted.named_parameters())
    with torch.no_grad():
        for name, tensor in checkpoint.adapter.items():
            parameters[name].copy_(tensor)


def make_trainer(
    trial: Trial,
    model: Any,
    tokenizer: Any,
    examples: list[Example],
    order: list[list[int]],
    unfinished: Unfinished,
    checkpoint: Checkpoint | None,
    progress: Progress,
    steps: int | None,
) -> Any:
    from transformers import PrinterCallback

    from qlora_repeat.stages.trainer import TracingTrainer

    end, training = min(steps or len(order), len(order)), trial.model.training
    trainer = TracingTrainer(
        model=model,
        args=_arguments(trial, end - (checkpoint.step if checkpoint else 0), training.warmup(len(order))),
        train_dataset=[{"input_ids": each.ids, "labels": _labels(each, training.loss)} for each in examples],
        data_collator=partial(  # does not mask end-of-text
            collate_step, padding=padding_id(model, tokenizer), batch_size=training.batch_size
        ),
        order=order,
        end=end,
        legacy_qmap=Optimizer.parse(trial.optimizer).legacy_qmap,
        steps_per_epoch=training.steps_per_epoch(len(examples)),
        unfinished=unfinished,
        checkpoint=checkpoint,
        checkpoint_every=trial.study.checkpoint_every,
        last_steps=trial.study.averaging.last_steps or 0,
        progress=progress,
    )
    trainer.remove_callback(PrinterCallback)
    _require_asked(trainer, trial)
    return trainer


def _labels(example: Example, loss: Loss) -> list[int]:
    """Return the token to predict at each place, or `IGNORED`."""
    if loss == "all-tokens":
        return example.ids
    return [
        token if is_target else IGNORED
        for token, is_target in zip(example.ids, example.is_target(loss), strict=True)
    ]


def _require_asked(trainer: Any, trial: Trial) -> None:
    """Check that accelerate does what the study says, whatever it read in the environment.

    Raises:
        StageError: it would use another precision, several processes, or a compiler.
    """
    args, accelerator = trainer.args, trainer.accelerator
    asked = {
        "precision": "fp16" if args.fp16 else "bf16" if args.bf16 else "no",
        "processes": 1,
        "division of the model": "NO",
        "compiler": "NO",
    }
    found = {
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "division of the model": accelerator.distributed_type.value,
        "compiler": accelerator.state.dynamo_plugin.backend.value,
    }
    if wrong := [name for name in asked if asked[name] != found[name]]:
        listed = ", ".join(f"{name} {found[name]} instead of {asked[name]}" for name in wrong)
        raise StageError(
            f"{trial.name}: accelerate would use {listed}; unset what a launcher left in the environment"
        )


def _arguments(trial: Trial, steps: int, warmup: int) -> Any:
    import torch
    from transformers import TrainingArguments

    training = trial.model.training
    on_gpu, compute = torch.cuda.is_available(), trial.study.precision.compute
    arguments = TrainingArguments(
        output_dir=str(trial.unfinished / "trainer"),  # created, stays empty
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        use_cpu=not on_gpu,
        fp16=on_gpu and compute == "float16",
        bf16=on_gpu and compute == "bfloat16",
        optim=Optimizer.parse(trial.optimizer).in_transformers,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=1,  # for the Trainer, the batches of a step are one
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=warmup,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        max_steps=steps,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # otherwise the batch size is multiplied by the visible GPUs
    return arguments


def _state_types(last: Checkpoint) -> dict[str, int]:
    """Return how many adapter tensors keep their first moment in each dtype."""
    moments = [value for name, value in last.optimizer.items() if name.endswith(":state1")]
    types = [str(value.dtype).removeprefix("torch.") for value in moments]
    return {name: types.count(name) for name in sorted(set(types))}
