"""Fine-tuning by QLoRA (sections VI and VII): a frozen base in NF4, an adapter, paged AdamW, the Trainer."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_repeat.base_model import (
    base_folder,
    check_base,
    hub_commit,
    is_miniature,
    load_quantised,
    load_tokenizer,
)
from qlora_repeat.data import encode, part_rows
from qlora_repeat.digest import weights_digest
from qlora_repeat.files import new_folder, write_text
from qlora_repeat.memory import peak_memory, reset_peak_memory
from qlora_repeat.randomness import stream_seed, torch_stream
from qlora_repeat.trial import Trial
from qlora_repeat.watch import Report

CURVE_POINTS = 30
OPTIMIZERS = {"adamw-8bit": "paged_adamw_8bit", "adamw-32bit": "paged_adamw_32bit"}


def finetune(trial: Trial, cache: Path, report: Report, *, adapter_init: int | None = None) -> dict[str, Any]:
    """Fine-tunes one trial; leaves the adapter in PEFT's own format, and the trace.

    `adapter_init` re-uses a recorded seed instead of drawing one. Training goes on through losses that are
    not finite, as in the paper; the first such step is reported as `diverged_at`.

    Returns:
        The record's outputs: adapter digest, seeds, losses, seconds of training, peak memory.
    """
    study, model = trial.study, trial.model
    check_base(study, model.base, cache)
    folder = base_folder(study, model.base, cache)
    tokenizer = load_tokenizer(folder)
    examples = encode(tokenizer, model, part_rows(study, model.data, "train", cache))
    seeds = {
        "adapter_init": stream_seed(study.randomness.adapter_init, "adapter_init")
        if adapter_init is None
        else adapter_init,
        "data_order": stream_seed(study.randomness.data_order, "data_order"),
        "dropout": stream_seed(study.randomness.dropout, "dropout"),
    }
    reset_peak_memory()
    with torch_stream(seeds["adapter_init"]):
        adapted = with_adapter(trial, load_quantised(study, folder))
    trainer = _trainer(trial, adapted, tokenizer, examples, seeds, report)
    began = time.perf_counter()
    with torch_stream(seeds["dropout"]):
        trainer.train()
    seconds = time.perf_counter() - began
    memory = peak_memory()

    steps = trainer.trace
    trial.record("finetune").unlink(missing_ok=True)  # from here on the files are no longer those it names
    write_text(trial.trace, "".join(json.dumps(step) + "\n" for step in steps))
    _name_base(adapted, trial, folder)
    with new_folder(trial.adapter) as adapter:
        adapted.save_pretrained(adapter, save_embedding_layers=False)  # otherwise it asks a hub
    return {
        "adapter_digest": weights_digest(trial.adapter),
        "seeds": seeds,
        "steps": len(steps),
        "initial_loss": steps[0]["loss"],
        "final_loss": steps[-1]["loss"],
        "loss_curve": loss_curve(steps),
        "diverged_at": next((step["step"] for step in steps if not math.isfinite(step["loss"])), None),
        "train_seconds": seconds,
        "miniature": is_miniature(folder),
        "optimizer_state": _state_types(trainer.optimizer),
        # Without a GPU neither is there, whatever the study asks for.
        "autocast": trainer.args.fp16 or trainer.args.bf16,
        "loss_scaling": trainer.accelerator.scaler is not None,
        **memory,
    }


def loss_curve(steps: Sequence[dict[str, Any]]) -> list[list[float]]:
    """The loss in at most 30 points: [epochs done, mean loss of the steps since the last point]."""
    count = min(len(steps), CURVE_POINTS)
    ends = [len(steps) * (point + 1) // count for point in range(count)]
    parts = [steps[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [[part[-1]["epoch"], sum(step["loss"] for step in part) / len(part)] for part in parts]


def with_adapter(trial: Trial, base: Any) -> Any:
    """The frozen base with a new adapter, all but its 4-bit weights in float32, ready to be trained."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    lora = trial.study.lora
    prepared = prepare_model_for_kbit_training(
        base, use_gradient_checkpointing=trial.model.training.gradient_checkpointing
    )
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=trial.model.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(prepared, config)


def _name_base(adapted: Any, trial: Trial, folder: Path) -> None:
    """Lets the adapter say what its base is, for those who load it elsewhere: no path of this machine."""
    named, hub = adapted.peft_config["default"], trial.study.bases[trial.model.base].hub
    named.base_model_name_or_path = hub.repository if hub else trial.model.base
    named.revision = hub_commit(folder)


def _trainer(
    trial: Trial, model: Any, tokenizer: Any, examples: list[Any], seeds: dict[str, int], report: Report
) -> Any:
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, PrinterCallback

    from qlora_repeat.tracing import TracingTrainer

    rows = [{"input_ids": example.ids, "labels": example.ids} for example in examples]
    trainer = TracingTrainer(
        model=model,
        args=_arguments(trial, len(rows), seeds),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer),  # pads labels with -100; masks no end-of-text token
        report=report,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(trial: Trial, examples: int, seeds: dict[str, int]) -> Any:
    import torch
    from transformers import TrainingArguments

    training = trial.model.training
    on_gpu, compute = torch.cuda.is_available(), trial.study.precision.compute
    arguments = TrainingArguments(
        output_dir=str(trial.folder / "trainer"),  # nothing is saved there
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        use_cpu=not on_gpu,
        fp16=on_gpu and compute == "float16",
        bf16=on_gpu and compute == "bfloat16",
        optim=OPTIMIZERS[trial.optimizer],
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        max_steps=training.total_steps(examples),
        seed=seeds["dropout"],
        data_seed=seeds["data_order"],
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # otherwise a batch is as many times larger as GPUs are visible
    return arguments


def _state_types(optimizer: Any) -> dict[str, int]:
    """How many adapter tensors keep their first moment in which number format."""
    inner = getattr(optimizer, "optimizer", optimizer)
    types = [str(state["state1"].dtype).removeprefix("torch.") for state in inner.state.values()]
    return {name: types.count(name) for name in sorted(set(types))}
