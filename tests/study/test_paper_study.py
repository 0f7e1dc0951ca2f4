"""The paper's study file agrees with the paper: tests read each stated value from its text.

The text is not part of the repository; QLORA_REPEAT_PAPER_TEXT names a file with it.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT

from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Model

PAPER = load_study("paper")
NEOX = PAPER.models["gpt-neox-20b"]
NUMBERS = {"three": 3, "seven": 7}


@pytest.fixture(scope="module")
def text() -> str:
    """Return the paper's text on one line."""
    path = os.environ.get("QLORA_REPEAT_PAPER_TEXT")
    if not path:
        pytest.skip("QLORA_REPEAT_PAPER_TEXT does not name a file with the paper's text")
    return " ".join(Path(path).read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def neox(text: str) -> str:
    """Return section VII-A, on GPT-NeoX."""
    return text.partition("For fine-tuning the GPT-NeoX-20B model")[2].partition("B. Llama2-7b-Hf")[0]


@pytest.fixture(scope="module")
def llama(text: str) -> str:
    """Return section VII-B, on Llama."""
    return text.partition("B. Llama2-7b-Hf")[2].partition("SECTION VIII")[0]


def stated(text: str, pattern: str) -> set[Any]:
    """Return everything in the text that matches the pattern (pairs for two groups); require a match."""
    found = set(re.findall(pattern, text, re.IGNORECASE))
    assert found, f"the text has nothing like {pattern}"
    return found


def numbers(text: str, pattern: str) -> set[float]:
    return {NUMBERS.get(word.lower()) or float(word) for word in stated(text, pattern)}


def by_data(name: str) -> list[Model]:
    return [model for model in PAPER.models.values() if model.data == name]


def marked(mark: str) -> set[str]:
    """Return the lines of the study file with a setting and this mark."""
    lines = (ROOT / "studies/paper.toml").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if " = " in line and mark in line.partition("#")[2]}


def of_kind(kind: str) -> list[Model]:
    """Return the models whose base has this architecture."""
    bases = {name for name, base in PAPER.bases.items() if (base.architecture or {})["model_type"] == kind}
    return [model for model in PAPER.models.values() if model.base in bases]


def test_rank_alpha_and_dropout(neox: str, llama: str) -> None:
    for section in (neox, llama):
        assert numbers(section, r"\br was set to (\d+)") == {PAPER.lora.r}
        assert numbers(section, r"lora alpha was set to (\d+)") == {PAPER.lora.alpha}
    assert numbers(neox, r"lora dropout ratio was set to ([\d.]+\d)") == {PAPER.lora.dropout}


def test_epochs_and_trials(text: str) -> None:
    assert {model.training.epochs for model in PAPER.models.values()} == numbers(text, r"\b(three) epochs")
    assert {model.training.steps for model in PAPER.models.values()} == {None}
    assert numbers(text, r"(seven) (?:trials|runs)\b") == {PAPER.trials}


def test_batch_size_and_length(neox: str, llama: str) -> None:
    trainings = [model.training for model in PAPER.models.values()]
    assert {training.batch_size for training in trainings} == numbers(neox, r"batch size of (\d+)")
    assert {training.max_length for training in trainings} == numbers(
        llama, r"maximum sequence size was set to (\d+)"
    )


def test_learning_rates_and_schedule(neox: str, llama: str) -> None:
    for kind, section in (("gpt_neox", neox), ("llama", llama)):
        said = stated(section, r"learning rate (?:of|was set to) \$(\d)e\^\{(-\d)\}\$")
        models = of_kind(kind)
        assert len(models) == 2
        assert {model.training.learning_rate for model in models} == {float(f"{a}e{b}") for a, b in said}
    schedule = stated(llama, r"learning rate scheduling was set to (\w+)")
    assert {model.training.schedule for model in of_kind("llama")} == schedule


def test_quantization_and_precision(neox: str) -> None:
    assert stated(neox, r"loading the model in (\d) bits") == {"4"}
    assert {PAPER.quantization.type} == {word.lower() for word in stated(neox, r"\((NF\d)\)")}
    assert PAPER.quantization.double is bool(stated(neox, r"using (double) quantization"))
    assert {PAPER.precision.compute} == stated(neox, r"computation precision was set to (\w+)")
    assert {PAPER.precision.compute} == stated(neox, r"fine-tuning in half-precision \(i\.e\., (\w+)\)")


def test_optimizers(text: str) -> None:
    widths = stated(text, r"paged AdamW (\d+) ?bits")
    assert set(PAPER.optimizers) == {f"adamw-{width}bit" for width in widths}
    assert len(PAPER.optimizers) == 2


def test_rows_and_split(text: str) -> None:
    assert numbers(text, r"dataset contains (\d+) quotes") == {PAPER.data["quotes"].rows}
    (rounded,) = numbers(text, r"dataset contains (\d+) rows")
    assert round(PAPER.data["instructions"].rows, -2) == rounded
    shares = stated(text, r"into train \((\d+)%\) and test \((\d+)%\)")
    assert {
        (round(100 - 100 * each.test_share), round(100 * each.test_share)) for each in PAPER.data.values()
    } == {(int(train), int(test)) for train, test in shares}
    assert list(PAPER.data["quotes"].columns.values()) == list(
        stated(text, r"while keeping the (\w+) column")
    )


def test_prompts(text: str) -> None:
    (quoted,) = stated(text, r'complete the quotes "([^"]+)" and "([^"]+)"')
    assert PAPER.data["quotes"].prompts == list(quoted)
    one, two = PAPER.data["instructions"].prompts
    assert stated(text, rf'Instruction 1 is "({re.escape(one)})')
    assert stated(text, rf'instruction 2 is "({re.escape(two)})')


def test_tags(neox: str, llama: str) -> None:
    chat = {model.base: model.template for model in by_data("instructions")}
    ((first, last),) = stated(neox, r"beginning of sentence tag (\S+) and the end of sentence tag (\S+?)\.")
    ((instruction, answer),) = stated(neox, r"the instruction tag (\S+) and the response tag (\S+)")
    assert (instruction, answer) == ("<human>", "<both>")
    # The response tag is read as a slip for the model's own: studies/paper.toml.
    assert chat["gpt-neoxt-chat-20b"] == f"{first}{instruction} {{instruction}} <bot> {{answer}}{last}"
    ((opening, closing),) = stated(llama, r"the two tags (\S+) and (\S+)\.")
    (begin,) = stated(llama, r"starting of sentence tag (\S+) at the beginning")
    (end,) = stated(llama, r"and (\S+) at the end of the sentence")
    assert chat["llama2-chat-7b"] == f"{begin}{opening} {{instruction}} {closing} {{answer}}{end}"
    assert {model.stop for model in by_data("instructions")} == {last, end} == {"</s>"}
    assert {model.template for model in by_data("quotes")} == {"{quote}"}, (
        "the paper does not mention tags for quotes"
    )


def test_samplings_and_the_ablation(text: str) -> None:
    (values,) = stated(
        text, r"value for these two parameters is (\d), and we have set the value to ([\d.]+\d)"
    )
    default, lowered = map(float, values)
    samplings = [(each.temperature, each.top_p) for each in PAPER.generation.samplings]
    assert samplings == [(default, default), (lowered, lowered)]
    assert PAPER.ablation is not None
    assert numbers(text, r"for (seven) test runs") == {PAPER.ablation.base_tests}
    # How often one model was tested, and at which temperature the tables were made, is not said.
    assert stated(text, r"same fine-tuned model (\w+) times") == {"multiple"}
    assert {line for line in marked("stated") if line.startswith(("responses", "samplings"))} == set()
    assert len({line for line in marked("our reading") if line.startswith("responses")}) == 1


def test_models(text: str) -> None:
    """Check which model learns which dataset; titles are those of the paper, without -hf."""
    assert [model.title for model in by_data("quotes")] == ["GPT-NeoX-20B", "Llama2-7B"]
    for model in PAPER.models.values():
        data = {"quotes": "English quotes", "instructions": "Open-Platypus"}[model.data]
        sentences = [
            part for part in text.split(". ") if model.title.lower() in part.lower() and data in part
        ]
        assert sentences, f"{model.title} on {data}"
