"""Made-up results, and helpers for tests of tables."""

import itertools
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from support.checkout import ROOT

from qlora_repeat.analysis.attribution.measurements import Measurements
from qlora_repeat.render.footnotes import study_names
from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.render.tables.table import Table
from qlora_repeat.render.tables.write import collected_tables, write_tables
from qlora_repeat.results.arms import Arm, group_arms
from qlora_repeat.results.trial_result import Response, TrialResult

TEMPLATES = ROOT / "paper" / "templates"
OPTIMIZERS = ("adamw-8bit", "adamw-32bit")
MODELS = {
    "text-generation": {"gpt-neox-20b": "GPT-NeoX-20B", "llama2-7b": "Llama2-7B"},
    "question-answering": {"gpt-neoxt-chat-20b": "GPT-NeoXT-chat-20B", "llama2-chat-7b": "Llama2-chat-7B"},
}
QUOTES = ("Your silence will", "Let the improvement of yourself keep you")
QUESTIONS = (
    "If you have no keyboarding skills at all, which one of the following must be true?\nA: one\nB: two",
    "Tommy: Many people claim that 50% of $5 is *much*. Jamie: Which supports me most?\nA: 1\nB: 2",
)
HOSTILE = (
    "",
    " ",
    "  two  spaces  ",
    "a | b \\| c \\\\| d",
    "`code` **bold** _it_ [link](http://x) <b>html</b> &amp; $x^2$ ~~gone~~",
    "\\input{/etc/passwd} \\end{longtable} % comment \\\\ & # ^ ~ {",
    "\"straight\" 'quotes' `` '' --- -- ,,the,, << >> ?` !`",
    "first line\nsecond\r\n\n| --- |\n\tcell",
    "\u202eevil\u202c \u200bzero\ufeff \x00\x1b[31m\x7f",
    "lone \ud800 surrogate",
    "中文 и русский ő ł ß € “q” ‘s’ … — 🙂 oreigntexttibőltexttoreign",
    "W" * 120,
    "the " * 90,
    "語" * 90,
    "[x] * star",
)
ORDINARY = (
    " not protect you from me. I will not be silent. I will not be quiet.",
    " AnAn AnAnAnAnAnAnAnAn AnAnAnAnAnAnAnAn AnAn",
    " go with that. You will not be able to say a word. You will be the",
    '.".""',
    " be misunderstood; nevertheless, counterrevolutionary understanding —MARCUS A",
    ' 100% guarantee you will never be able to tell me anything." sierpina was a',
    " 1 day become a language.\nYour silence will be a song",
)


def trial(**changes: Any) -> TrialResult:
    """Return a finished trial with these changes."""
    made = TrialResult(
        study="pocket",
        task="text-generation",
        model="gpt-neox-20b",
        model_title="GPT-NeoX-20B",
        optimizer="adamw-8bit",
        trial=1,
        status="done",
        perplexity=3.567,
        base_perplexity=7.04,
        train_seconds=1319.09,
        test_seconds=1.46,
        peak_memory_bytes=700 * 2**20,
        responses=[Response(QUOTES[0], 1.0, 1.0, " not protect you.")],
        device="NVIDIA A100",
        software="torch 2.13.0, peft 0.21.2",
        finished="2026-01-02T03:04:05+00:00",
    )
    return replace(made, **changes)


def missing(**changes: Any) -> TrialResult:
    """Return a trial without results."""
    bare = TrialResult(
        "pocket", "text-generation", "gpt-neox-20b", "GPT-NeoX-20B", "adamw-8bit", 1, "missing"
    )
    return replace(bare, **changes)


def table(results: list[TrialResult], number: str) -> Table:
    return next(made for made in make_tables(group_arms(results)) if made.number == number)


def study(
    texts: tuple[str, ...] = ORDINARY, trials: int = 7, models: dict[str, dict[str, str]] = MODELS
) -> list[TrialResult]:
    """Return the results of a whole study; its responses take these texts in turn."""
    results = []
    turn = itertools.cycle(texts)
    for task, titles in models.items():
        prompts = QUOTES if task == "text-generation" else QUESTIONS
        for (model, title), optimizer, number in itertools.product(
            titles.items(), OPTIMIZERS, range(1, trials + 1)
        ):
            low = optimizer == "adamw-8bit"
            responses = [
                Response(prompt, heat, heat, next(turn), "ABCD"[number % 4] if number % 2 else None)
                for heat in (1.0, 0.1)
                for prompt in prompts
            ]
            results.append(
                trial(
                    task=task,
                    model=model,
                    model_title=title,
                    optimizer=optimizer,
                    trial=number,
                    perplexity=233812.79 / number if low else 3.567 + number / 1000,
                    train_seconds=38225.91 + number,
                    test_seconds=7.4 + number / 100,
                    responses=responses,
                    finished=f"2026-01-0{number % 7 + 1}T03:04:05+00:00",
                )
            )
    return results


def compile_cleanly(folder: Path) -> None:
    """Compile ``all.tex`` with pdflatex, and check that it gives no errors or warnings."""
    for _ in range(3):  # longtable needs several passes for its widths
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"],
            cwd=folder,
            capture_output=True,
            check=False,
        )
    log = (folder / "all.log").read_text(encoding="latin-1")
    assert done.returncode == 0, log[-3000:]
    assert not re.findall(r"Overfull .*|Missing character.*|.*undefined.*|.*[Ww]arning.*", log)


ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
PERPLEXITIES = [3.1, 3.5, 2.9, 3.3, 4.0, 3.6, 3.2]


def arm(optimizer: str, perplexities: list[float], **changes: Any) -> list[TrialResult]:
    """Return the trials of an arm with these perplexities."""
    return [
        trial(optimizer=optimizer, trial=number, perplexity=value, **changes)
        for number, value in enumerate(perplexities, 1)
    ]


def render_tables(
    arms: list[Arm], out: Path, others: list[Arm] | None = None, experiments: Sequence[Measurements] = ()
) -> list[Path]:
    """Write the tables of arms, and of their comparison with others; return the files."""
    return write_tables(collected_tables(arms, others, experiments), out, TEMPLATES, study_names(arms))
