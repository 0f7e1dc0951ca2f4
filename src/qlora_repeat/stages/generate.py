"""A model's responses to the study's prompts (sections VII and VIII)."""

import re
from typing import Any

from qlora_repeat.assets.datasets import Prompt, prompt_ids
from qlora_repeat.study.randomness import torch_stream
from qlora_repeat.study.study import Sampling, Study


def respond(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    study: Study,
    model_name: str,
    sampling: Sampling,
    seed: int,
) -> str:
    """Return one sampled response, without the prompt; `seed` is the seed of its random stream."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    wanted = study.models[model_name]
    stop = wanted.stop
    ids = torch.tensor([prompt_ids(tokenizer, wanted, prompt.fed)], device=model.device)
    length = ids.shape[1]

    def stopped(ids: Any, scores: Any, **kwargs: Any) -> Any:
        done = stop is not None and stop in tokenizer.decode(ids[0, length:])
        return torch.full((ids.shape[0],), done, device=ids.device)

    options: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": study.generation.top_k,
    }
    processors = [finite_scores]
    if torch.are_deterministic_algorithms_enabled():
        processors += [on_cpu(warper) for warper in warpers(**options)]
        options = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    with torch_stream(seed), torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **options,
            do_sample=True,
            max_new_tokens=study.data[wanted.data].max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([stopped]),
        )
    text: str = tokenizer.decode(output[0, length:], skip_special_tokens=True)
    return text.partition(stop)[0] if stop else text


def finite_scores(ids: Any, scores: Any) -> Any:
    """Return finite scores, so that a diverged model can be sampled at any temperature."""
    return scores.nan_to_num(nan=0.0).clamp(-1e30, 1e30)


def warpers(temperature: float, top_p: float, top_k: int) -> list[Any]:
    """Return the processors that `generate` would apply for these options, in its order."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    found: list[Any] = []
    if temperature != 1:
        found.append(TemperatureLogitsWarper(temperature))
    if top_k:
        found.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        found.append(TopPLogitsWarper(top_p))
    return found


def on_cpu(warper: Any) -> Any:
    """Return a warper that runs on the CPU: the cumulative sum of top-p is not deterministic on a GPU."""
    return lambda ids, scores: warper(ids.cpu(), scores.cpu()).to(scores.device)


def answer_letter(response: str) -> str | None:
    """Return the option that a response gives: its first single letter A to D that is not the article "A"."""
    found = re.search(r"(?<![^\W_])(?:A(?!\s+[a-z])|[BCD])(?!['’]?[^\W_])", response)
    return found[0] if found else None
