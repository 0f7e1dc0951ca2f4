"""Run models of the paper's size with random weights, which are made on the device."""

import time
from functools import partial
from typing import Any

from qlora_repeat.assets.base_models import base_folder, device, load_tokenizer, quantization_config
from qlora_repeat.assets.datasets import study_prompts
from qlora_repeat.assets.derived_cache import encoded_part
from qlora_repeat.selftest.bench import fill_cache
from qlora_repeat.stages.finetune import finetune
from qlora_repeat.stages.generate import respond
from qlora_repeat.stages.perplexity import example_losses
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.determinism import set_kernels

TESTED_ROWS = 20


def run_full_size(trial: Trial) -> dict[str, Any]:
    """Load, fine-tune and test a model of random weights; merging is measured on a smaller one.

    Returns:
        Seconds of loading, of a step, of a test row and of a response; the peak memory of fine-tuning and of
        testing, and the memory of the GPU, in bytes (0 on a CPU).
    """
    import torch

    study = trial.study
    set_kernels(study.randomness.kernels, study.threads)
    fill_cache(trial.workspace, weights=False)
    began, loaded = time.perf_counter(), 0.0

    def load(workspace: Workspace, name: str) -> Any:
        nonlocal loaded
        model = quantized(study, random_model(study, name))
        _reset_peak()  # of the weights before they were quantized
        loaded = time.perf_counter() - began
        return model

    outputs = finetune(trial, lambda *told: None, {}, load_base=load)
    found = {"load": loaded, "step": outputs["train_seconds"] / outputs["steps"], "finetune_peak": _peak()}
    _reset_peak()
    model = random_model(study, trial.model.base).eval()
    tokenizer = load_tokenizer(base_folder(trial.workspace, trial.model.base))
    examples = encoded_part(trial.workspace, trial.model_name, "train", 0, tokenizer, TESTED_ROWS)
    began = time.perf_counter()
    example_losses(model, examples, study.evaluation.batch_size, tokenizer.pad_token_id, lambda done: None)
    found["row"] = (time.perf_counter() - began) / len(examples)
    prompt, sampling = study_prompts(trial.workspace, trial.model_name, 0)[0], study.generation.samplings[0]
    began = time.perf_counter()
    respond(model, tokenizer, prompt, study, trial.model_name, sampling, 1)
    found["response"] = time.perf_counter() - began
    found["evaluate_peak"] = _peak()
    found["gpu_memory"] = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0
    del model
    torch.cuda.empty_cache()
    return found


def random_model(study: Study, base: str) -> Any:
    """Return a model of random weights on the device, in the precision of arithmetic."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(study.bases[base].architecture or {})
    config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
    compute = getattr(torch, study.precision.compute)
    with torch.device(device()):
        return AutoModelForCausalLM.from_config(config, dtype=compute, trust_remote_code=False)


def quantized(study: Study, model: Any) -> Any:
    """Quantize the layers of a model in place, one after another, as loading does."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    settings = quantization_config(study)
    quantizer = Bnb4BitHfQuantizer(settings, pre_quantized=False)
    kept = quantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    options = {
        "compress_statistics": settings.bnb_4bit_use_double_quant,
        "quant_type": settings.bnb_4bit_quant_type,
    }
    make = partial(Linear4bit, compute_dtype=settings.bnb_4bit_compute_dtype, device="meta", **options)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear and name not in kept:
                new = make(layer.in_features, layer.out_features, bias=layer.bias is not None)
                new.weight = Params4bit(layer.weight.data, requires_grad=False, module=new, **options).to(
                    layer.weight.device
                )
                new.bias = layer.bias
                setattr(parent, name, new)
    model.is_loaded_in_4bit = True
    return model.requires_grad_(False)


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
