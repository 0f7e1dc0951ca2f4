"""What checks of the self-test compute in processes of their own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_folder, device, load_full, load_quantized, load_tokenizer
from qlora_repeat.assets.derived_cache import encoded_part
from qlora_repeat.planning.gpu_catalog import Gpu
from qlora_repeat.planning.plan import make_plan
from qlora_repeat.selftest.clock import now
from qlora_repeat.selftest.jobs import prepare_for
from qlora_repeat.stages.merge_check import load_adapted, logits
from qlora_repeat.stages.perplexity import example_losses, perplexity
from qlora_repeat.study.optimizers import Optimizer
from qlora_repeat.study.trial import Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.determinism import (
    DETERMINISTIC_WORKSPACES,
    WORKSPACE,
    prepare_environment,
    set_kernels,
)
from qlora_repeat.system.files import temporary_folder
from qlora_repeat.system.fingerprint import fingerprint
from qlora_repeat.system.gpus import cpu_is_chosen, find_no_gpu
from qlora_repeat.system.memory import release_memory

COMPARED = 8
"""How many rows models are compared with."""


def software() -> dict[str, Any]:
    """Compute with each library on the device, with deterministic kernels.

    Returns:
        ``versions``, and ``problems`` as sentences.
    """
    prepare_environment("deterministic")
    set_kernels("deterministic", 1)
    import bitsandbytes

    found, problems, formats = fingerprint(), list[str](), list[str]()
    if not cpu_is_chosen() and (lacking := find_no_gpu()) is not None and not lacking.is_expected:
        problems.append(f"{lacking.reason} ({lacking.drivers}); {lacking.advice}")
    library: Any = bitsandbytes.cextension.lib
    native = type(library).__name__
    if "ErrorHandler" not in native:  # which has a function for every name
        native = Path(library._lib._name).name
    if "ErrorHandler" in native or (device() != "cpu" and "cuda" not in native):
        problems.append(f"bitsandbytes has no native library for this device ({native})")
    try:
        problems += _wrong_results(formats)
    except RuntimeError as error:
        problems.append(" ".join(str(error).split())[:200])
    workspace = os.environ.get(WORKSPACE)
    if workspace not in DETERMINISTIC_WORKSPACES:
        problems.append(f"{WORKSPACE} is {workspace}")
    versions = {
        "torch": found["packages"].get("torch"),
        "CUDA": found["cuda"],
        "driver": found["driver"],
        "bitsandbytes": f"{found['packages'].get('bitsandbytes')} ({native})",
        "formats": " ".join(formats),
        "workspace": workspace,
    }
    return {"versions": versions, "problems": problems}


def _wrong_results(formats: list[str]) -> Iterator[str]:
    """Yield what computes wrongly; add the number formats whose products are right to `formats`."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weights = torch.linspace(-1, 1, 64 * 64, device=device())
    unpacked = dequantize_4bit(*quantize_4bit(weights, quant_type="nf4"))
    if (error := float((unpacked - weights).abs().max())) > 0.16:  # half of NF4's widest gap is 0.152
        yield f"bitsandbytes unpacks 4-bit weights with an error of {error:.2g}"
    for name in ("float16", "bfloat16"):
        values = weights.view(64, 64).to(getattr(torch, name))
        wide = weights.view(64, 64).double()
        if torch.allclose((values @ values).double(), wide @ wide, atol=0.3):
            formats.append(name)
        else:
            yield f"products in {name} are wrong"


def planned_peaks(workspace: Workspace) -> dict[str, Any]:
    """Return the plan's peaks of each model without the context, in bytes, and its parameters.

    A process of its own plans, because the libraries initialize a GPU where there is one.
    """
    plan = make_plan(workspace, Gpu("any", 10**12, None), 1, [])
    return {
        model.model: {
            "finetune": model.arms[0].finetune_peak - plan.context,
            "optimizer": model.arms[0].optimizer_state,
            "evaluate": model.evaluate_peak - plan.context,
            "parameters": model.parameters,
        }
        for model in plan.models
    }


def compare_models(trial: Trial) -> dict[str, Any]:
    """Compare a merged model with base plus adapter, and its perplexity in batches with single rows.

    Returns:
        ``lost``: the difference of their logits in float32, relative to the adapter's effect on the logits;
        ``batches``: the relative difference of perplexity, in the precision of the study.
    """
    study = trial.study
    prepare_for(study)
    import torch

    set_kernels(study.randomness.kernels, study.threads)
    compute, folder = study.precision.compute, base_folder(trial.workspace, trial.model.base)
    tokenizer = load_tokenizer(folder)
    examples = encoded_part(trial.workspace, trial.model_name, "test", 0, tokenizer, COMPARED)

    def answers(model: Any) -> Any:
        return torch.cat([logits(model, each.ids).flatten() for each in examples])

    adapted = load_adapted(folder, trial.adapter, "float32")
    expected = answers(adapted)
    with adapted.disable_adapter():
        before = answers(adapted)
    merged = load_full(trial.merged, "float32")
    lost = (answers(merged) - expected).norm() / (expected - before).norm()
    del merged
    release_memory()
    merged = load_full(trial.merged, compute)
    single, batches = (
        perplexity(example_losses(merged, examples, size, tokenizer.pad_token_id, lambda done: None))
        for size in (1, 4)
    )
    return {"lost": float(lost), "batches": abs(batches / single - 1), "perplexity": single}


def plain_steps(trial: Trial) -> dict[str, Any]:
    """Fine-tune as a plain script does, by the documents of transformers, peft and bitsandbytes.

    Returns:
        The times after each step.
    """
    study, training = trial.study, trial.model.training
    prepare_for(study)
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    set_kernels(study.randomness.kernels, study.threads)
    folder = base_folder(trial.workspace, trial.model.base)
    tokenizer = load_tokenizer(folder)
    examples = encoded_part(trial.workspace, trial.model_name, "train", 0, tokenizer)
    prepared = prepare_model_for_kbit_training(
        load_quantized(study, folder), use_gradient_checkpointing=training.gradient_checkpointing
    )
    lora = LoraConfig(
        r=study.lora.r,
        lora_alpha=study.lora.alpha,
        lora_dropout=study.lora.dropout,
        target_modules=trial.model.target_modules,
        task_type="CAUSAL_LM",
    )
    times = list[float]()

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(now())

    on_gpu, compute = device() != "cpu", study.precision.compute
    with temporary_folder() as out:
        Trainer(
            model=get_peft_model(prepared, lora),
            args=TrainingArguments(
                output_dir=str(out),
                max_steps=training.steps,
                per_device_train_batch_size=training.batch_size,
                learning_rate=training.learning_rate,
                lr_scheduler_type=training.schedule,
                optim=Optimizer.parse(trial.optimizer).in_transformers,
                max_grad_norm=training.max_grad_norm,
                fp16=on_gpu and compute == "float16",
                bf16=on_gpu and compute == "bfloat16",
                use_cpu=not on_gpu,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=[{"input_ids": each.ids, "labels": each.ids} for each in examples],
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            callbacks=[Clock()],
        ).train()
    return {"times": times}
