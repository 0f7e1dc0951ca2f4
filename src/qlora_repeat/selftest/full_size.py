"""Run models of the paper's size with random weights, which are made on the device."""

import time
from functools import partial
from typing import Any

from qlora_repeat.assets.base_models import base_folder, device, load_tokenizer, quantization_config
from qlora_repeat.assets.datasets import study_prompts
from qlora_repeat.assets.derived_cache import encoded_part
from qlora_repeat.records.trial_state import valid_record
from qlora_repeat.selftest.bench import LENGTH, SOURCES, Bench, fill_cache, self_test_study, with_long_texts
from qlora_repeat.selftest.checks import MOST_MEMORY, Result, finetuned, job
from qlora_repeat.selftest.clock import fastest, now
from qlora_repeat.selftest.jobs import Call, prepare_for
from qlora_repeat.selftest.processes import planned_peaks
from qlora_repeat.stages.finetune import finetune
from qlora_repeat.stages.generate import respond
from qlora_repeat.stages.perplexity import example_losses
from qlora_repeat.study.data_sources import train_examples
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.determinism import set_kernels
from qlora_repeat.system.memory import release_memory, reset_peak_memory

STEPS = 20
TESTED_ROWS = 20


def check_full_size(bench: Bench) -> Result:
    """Compare the memory of models of the paper's size with the plan, and estimate the paper's study."""
    if not bench.gpu:
        return "cannot tell", "models of full size need a GPU", {}
    merged = finetuned(bench, "first", optimizers=1)
    bench.run([job(trial, stages=["merge"]) for trial in merged])
    records = [record for trial in merged if (record := valid_record(trial.record("merge"))) is not None]
    bytes_per_second = min(record.outputs["merged_bytes"] / record.seconds for record in records)
    study = with_long_texts(self_test_study(bench.folder, gpu=True, sizes={}), STEPS)
    trials = bench.trials("full", study, optimizers=1)
    calls = [Call(f"full size {trial.model_name}", bench.folder, run_full_size, (trial,)) for trial in trials]
    plan = Call("plan of full size", bench.folder, planned_peaks, (trials[0].workspace,))
    bench.run([*calls, plan])
    planned, found, figures, worst = plan.result(), dict[str, Any](), list[str](), 0.0
    for trial, call in zip(trials, calls, strict=True):
        name, peaks = trial.model_name, planned[trial.model_name]
        own = found[name] = call.result() | {"merge": 2 * peaks["parameters"] / bytes_per_second}
        shares = {stage: own[f"{stage}_peak"] / peaks[stage] - 1 for stage in ("finetune", "evaluate")}
        worst = max(worst, *map(abs, shares.values()))
        tuning, testing = (f"{100 * shares[stage]:+.1f} %" for stage in ("finetune", "evaluate"))
        figures.append(
            f"{name}: fine-tuning uses {100 * own['share']:.1f} % of the GPU ({tuning} against the plan, "
            f"testing {testing}), {own['step']:.3f} s a step"
        )
    found["hours"] = paper_hours(found)
    figures.append(
        f"the paper's 56 trials, fine-tuned, merged and tested once: about {found['hours']:.0f} hours with "
        f"deterministic kernels, if each text had {LENGTH} tokens"
    )
    return "passed" if worst <= MOST_MEMORY else "failed", "; ".join(figures), found


def paper_hours(measured: dict[str, dict[str, float]]) -> float:
    """Return the hours of the paper's trials, by what was measured for the model of each size."""
    paper, seconds = load_study("paper"), 0.0
    for name, source in SOURCES.items():
        own, size = measured[name], paper.bases[source].architecture
        for model in paper.models.values():
            if paper.bases[model.base].architecture == size:
                data = paper.data[model.data]
                train = train_examples(data)
                answers = len(data.prompts) * len(paper.generation.samplings)
                trial = own["load"] + own["merge"] + model.training.total_steps(train) * own["step"]
                trial += ((data.rows or 0) - train) * own["row"] + answers * own["response"]
                seconds += trial * len(paper.optimizers) * paper.trials
    return seconds / 3600


def run_full_size(trial: Trial) -> dict[str, Any]:
    """Make a model of random weights, fine-tune it, and test one.

    Returns:
        Seconds of loading, of a step, of a test row and of a response; the peak memory of fine-tuning and of
        testing without the context, in bytes (0 on a CPU), and the recorded share of the GPU's memory.
    """
    study = trial.study
    prepare_for(study)
    set_kernels(study.randomness.kernels, study.threads)
    fill_cache(trial.workspace, weights=False)
    began, loaded, times = time.perf_counter(), 0.0, list[float]()

    def load(workspace: Workspace, name: str) -> Any:
        nonlocal loaded
        model = quantized(study, random_model(study, name))
        loaded = now() - began
        return model

    def told(stage: str, done: int, total: int, loss: float | None) -> None:
        times.append(now())

    outputs = finetune(trial, told, {}, load_base=load)
    found = {"load": loaded, "step": fastest(times), "share": outputs["peak_memory_share"] or 0.0}
    found["finetune_peak"] = _peak()
    release_memory()
    reset_peak_memory()
    model = random_model(study, trial.model.base).eval()
    tokenizer = load_tokenizer(base_folder(trial.workspace, trial.model.base))
    examples = encoded_part(trial.workspace, trial.model_name, "train", 0, tokenizer, TESTED_ROWS)
    began = now()
    example_losses(model, examples, study.evaluation.batch_size, tokenizer.pad_token_id, lambda done: None)
    found["row"] = (now() - began) / len(examples)
    prompt, sampling = (
        study_prompts(trial.workspace, trial.model_name, 0, tokenizer)[0],
        study.generation.samplings[0],
    )
    began = now()
    respond(model, tokenizer, prompt, study, trial.model_name, sampling, 1)
    found["response"] = now() - began
    found["evaluate_peak"] = _peak()
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
                del layer.weight  # the list of modules above still has the layer
    model.is_loaded_in_4bit = True
    return model.requires_grad_(False)


def _peak() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
