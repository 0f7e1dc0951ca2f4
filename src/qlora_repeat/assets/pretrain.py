"""Pretrain the pocket GPT-NeoX with the true architecture and tokenizer, because no package contains one.

It learns a little English from fortunes that the study does not use, and then from questions of another seed.
Because it ends with questions, it can still learn from the study's quotes. It replaces GPT-NeoX-20B in
shape only, and is not Pythia.
"""

import random
from pathlib import Path
from typing import Any

from qlora_repeat.assets.dataset_builders import attributed_quote, corpus_rows, fortunes, plain, question_rows
from qlora_repeat.assets.package_files import verified
from qlora_repeat.study.data_sources import Base, Pretraining
from qlora_repeat.study.study import Study

VOCABULARY = 50432
"""The embedding rows of GPT-NeoX-20B, of which its tokenizer uses 50,277."""


def pretrain(study: Study, base: Base) -> tuple[Any, Any]:
    """Pretrain from the fixed seed, and return the model in float16 and its tokenizer."""
    import torch

    settings = base.pretraining
    assert settings is not None and base.tokenizer is not None, "checked by the study"
    tokenizer = neox_tokenizer(verified(base.tokenizer))
    streams = []
    fortunes_first, then_questions = pretraining_texts(study, settings)
    for steps, texts in ((settings.fortune_steps, fortunes_first), (settings.question_steps, then_questions)):
        tokens = [token for ids in tokenizer(texts)["input_ids"] for token in (*ids, tokenizer.eos_token_id)]
        streams.append((steps, torch.tensor(tokens)))
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        model = _train(settings, streams)
    finally:
        torch.set_num_threads(threads)
    return model.to(torch.float16), tokenizer


def pretraining_texts(study: Study, settings: Pretraining) -> tuple[list[str], list[str]]:
    """Return fortunes and questions for pretraining outside the study's data, shuffled by the seed."""
    quotes: set[str] = set()
    questions: dict[str, str] = {}
    for data in study.data.values():
        if data.source == "fortunes":
            taken = {row["quote"] for row in corpus_rows(data)}
            # The quote of a fortune as in the study, or the whole fortune on one line.
            quotes |= {attributed_quote(text) or " ".join(text.split()) for text in fortunes() if plain(text)}
            quotes = {quote for quote in quotes - taken if len(quote) <= 400}
        elif data.source == "reasoning-gym":
            taken = {_without_options(row["instruction"]) for row in corpus_rows(data)}
            for row in question_rows(data, settings.question_seed, len(taken)):
                if _without_options(row["instruction"]) not in taken:
                    questions[row["instruction"]] = row["answer"]
    asked = {f"{question} {answer}" for question, answer in questions.items()}
    return _shuffled(quotes, settings.seed), _shuffled(asked, settings.seed)


def _without_options(instruction: str) -> str:
    return instruction.partition(" A: ")[0]


def _shuffled(texts: set[str], seed: int) -> list[str]:
    ordered = sorted(texts)
    random.Random(seed).shuffle(ordered)
    return ordered


def neox_tokenizer(file: Path) -> Any:
    """Return the tokenizer of GPT-NeoX-20B from its file."""
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_file=str(file), bos_token=end, eos_token=end, unk_token=end)


def _train(settings: Pretraining, streams: list[tuple[int, Any]]) -> Any:
    """Train with AdamW in float32 on windows of each token stream in turn, with linear decay to zero."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, get_linear_schedule_with_warmup

    torch.manual_seed(settings.seed)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=4 * settings.hidden_size,
            rotary_pct=0.25,
            max_position_embeddings=2048,
            use_parallel_residual=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    steps = sum(count for count, _ in streams)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    starts = torch.Generator().manual_seed(settings.seed)
    model.train()
    for ids in (ids for count, ids in streams for _ in range(count)):
        first = torch.randint(len(ids) - settings.length, (settings.batch_size, 1), generator=starts)
        batch = ids[first + torch.arange(settings.length)]
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()
