"""Run QLoRA as a plain script, as the documents of transformers, peft and bitsandbytes show it.

`benchmarks/speed.py` compares the kit with this script. Each call runs one trial: load and quantize the base
model, train, save, merge with peft, measure perplexity one example at a time, answer prompts. It writes no
trace, checkpoint or record, and is as fast as the authors of these libraries would write it.

python benchmarks/baseline.py BASE TRAIN TEST OUT [--trainer sft] [--steps 20] [--seed 1]

BASE is a folder that transformers loads; TRAIN and TEST are JSON lines with a key `text`. The last line of
output is one JSON object: the seconds of each part, perplexity, responses, peak memory of training.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PROMPTS = ["Your silence will", "Let the improvement of yourself keep you"]
SAMPLINGS = [{"temperature": 1.0, "top_p": 1.0}, {"temperature": 0.1, "top_p": 0.1}]
MAX_LENGTH, NEW_TOKENS = 128, 20


def one_by_one(model: Any, tokenizer: Any, texts: Iterable[str]) -> tuple[list[float], int]:
    """Return the negative log-likelihood of each text, and the total number of predicted tokens."""
    import torch

    losses, tokens = [], 0
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt").input_ids
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        losses.append(loss * (ids.shape[1] - 1))
        tokens += ids.shape[1] - 1
    return losses, tokens


def main() -> None:
    """Run one trial."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("out")
    parser.add_argument("--trainer", choices=["transformers", "sft"], default="transformers")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    import datasets
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    if args.trainer == "sft":
        from trl import SFTConfig, SFTTrainer

    def part(name: str) -> None:
        nonlocal began
        seconds[name], began = time.perf_counter() - began, time.perf_counter()

    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    part("import")

    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.base, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = datasets.load_dataset("json", data_files={"train": args.train, "test": args.test})
    quantized = AutoModelForCausalLM.from_pretrained(
        args.base,
        dtype=torch.float32,
        trust_remote_code=False,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    )
    prepared = prepare_model_for_kbit_training(quantized, use_gradient_checkpointing=False)
    lora = LoraConfig(
        r=8, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    options = {
        "output_dir": args.out,
        "max_steps": args.steps,
        "per_device_train_batch_size": 1,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "constant",
        "optim": "paged_adamw_8bit",
        "max_grad_norm": 1.0,
        "seed": args.seed,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
    }
    if args.trainer == "sft":
        arguments = SFTConfig(
            **options,
            max_length=MAX_LENGTH,
            gradient_checkpointing=False,
            bf16=False,
            dataset_text_field="text",
        )
        trainer = SFTTrainer(
            model=prepared,
            args=arguments,
            train_dataset=data["train"],
            processing_class=tokenizer,
            peft_config=lora,
        )
    else:
        rows = data["train"].map(
            lambda row: tokenizer(row["text"], truncation=True, max_length=MAX_LENGTH),
            remove_columns=["text"],
        )
        trainer = Trainer(
            model=get_peft_model(prepared, lora),
            args=TrainingArguments(**options),
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
    part("load")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of training, as in the kit's records
    trainer.train()
    part("train")
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    trainer.model.save_pretrained(f"{args.out}/adapter")
    del trainer, quantized, prepared

    base = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32, trust_remote_code=False)
    merged = PeftModel.from_pretrained(base, f"{args.out}/adapter").merge_and_unload()
    merged.half().save_pretrained(f"{args.out}/merged")
    tokenizer.save_pretrained(f"{args.out}/merged")
    model = merged.float().eval()
    part("merge")

    losses, tokens = one_by_one(model, tokenizer, data["test"]["text"])
    part("perplexity")
    responses = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        for sampling in SAMPLINGS:
            output = model.generate(
                **inputs,
                do_sample=True,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=tokenizer.eos_token_id,
                **sampling,
            )
            responses.append(tokenizer.decode(output[0, inputs.input_ids.shape[1] :]))
    part("responses")
    print(
        json.dumps(
            {
                "seconds": seconds,
                "perplexity": math.exp(sum(losses) / tokens),
                "tokens": tokens,
                "peak_memory_bytes": peak,
                "responses": responses,
            }
        )
    )


if __name__ == "__main__":
    main()
