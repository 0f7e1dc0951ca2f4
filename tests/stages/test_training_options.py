"""Every option of training: two trials have the same bits, and a stopped one resumes to them."""

from pathlib import Path
from typing import Any

import pytest
from support.own_rows import write_own_study
from support.places import at
from support.trials import outputs, quiet

from qlora_repeat.analysis.verify.rerun import read_recorded
from qlora_repeat.errors import StoppedError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.stage_inputs import stage_settings
from qlora_repeat.records.trace import read_trace
from qlora_repeat.study.trial import Trial

ROWS = [
    {"instruction": f"Is {number} even?", "answer": "no" if number % 2 else "yes"} for number in range(20)
]
CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"Is {number} even?"},
            {"role": "assistant", "content": "no" if number % 2 else "yes"},
            {"role": "user", "content": "Is that so?"},
            {"role": "assistant", "content": "It is so."},
        ]
    }
    for number in range(20)
]
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
NAME = "own/adamw-8bit/1"
PINNED = ('adapter_init = "fresh"', "adapter_init = 7")

OPTIONS: dict[str, list[tuple[str, str]]] = {
    "accumulation": [
        ("batch_size = 1\nmax", "batch_size = 2\ngradient_accumulation_steps = 3\nmax"),
        ("\nsteps = 3", "\nepochs = 1.4"),
    ],
    "loss on the answer": [("max_grad_norm", 'loss = "answer"\nmax_grad_norm')],
    "answers of chats": [
        ('task = "text-generation"', 'task = "question-answering"'),
        ("[models.own]", "[models.own]\nspecial_tokens = false"),
        ("max_grad_norm", 'loss = "answer"\nmax_grad_norm'),
    ],
    "a share of steps warms up": [
        ('schedule = "constant"', 'schedule = "linear"'),
        ("warmup_steps = 0", "warmup_ratio = 0.5"),
    ],
    "DoRA and rsLoRA on all linear layers": [
        ("dropout = 0.05", "dropout = 0.05\nrslora = true\ndora = true"),
        ('target_modules = ["q_proj"]', 'target_modules = "all-linear"'),
    ],
    "a base in 8 bits": [('type = "nf4"', 'type = "int8"')],
    "a base in 16 bits": [('type = "nf4"', 'type = "none"'), ('compute = "float32"', 'compute = "bfloat16"')],
}


def stopping(step: int) -> Any:
    def progress(stage: str, done: int, total: int, loss: float | None) -> None:
        if loss is not None and done == step:
            raise StoppedError("enough")

    return progress


@pytest.mark.parametrize("option", OPTIONS)
def test_a_trial_repeats_resumes_and_ends(option: str, tmp_path: Path) -> None:
    rows, more = (CHATS, {"template": "chat", "chat": TEMPLATE}) if "chat" in option else (ROWS, {})
    workspace = write_own_study(tmp_path, rows, PINNED, *OPTIONS[option], **more)
    whole = workspace.trial(NAME)
    stopped = at(workspace.study, tmp_path / "others", workspace.cache).trial(NAME)
    run_trial(whole, ["finetune", "merge", "evaluate"], quiet)
    with pytest.raises(StoppedError):
        run_trial(stopped, ["finetune"], stopping(2))
    run_trial(stopped, ["finetune"], quiet)
    assert outputs(stopped)["resumed_from"] == 2
    assert outputs(stopped)["adapter_digest"] == outputs(whole)["adapter_digest"]
    assert stopped.trace.read_bytes() == whole.trace.read_bytes()
    assert read_trace(whole.trace)[-1].adapter == outputs(whole)["adapter_digest"]
    assert outputs(whole, "merge")["compared"]
    other = tmp_path / "other"
    other.mkdir()
    recorded = read_recorded(whole, whole.folder, other, "evaluation")
    assert recorded.contradictions == []
    for stage in ("finetune", "evaluate"):
        assert stage_settings(recorded.again, stage) == stage_settings(whole, stage), "verify uses them"


def tuned(folder: Path, *changes: tuple[str, str]) -> Trial:
    no_dropout = ("dropout = 0.05", "dropout = 0.0")
    trial = write_own_study(folder, ROWS, PINNED, no_dropout, *changes).trial(NAME)
    run_trial(trial, ["finetune"], quiet)
    return trial


def test_accumulated_batches_equal_a_larger_batch(tmp_path: Path) -> None:
    """Rows have different lengths, so a mean of the batches' means would differ."""
    many = ("batch_size = 1\nmax", "batch_size = 2\ngradient_accumulation_steps = 3\nmax")
    parts = tuned(tmp_path / "parts", many)
    whole = tuned(tmp_path / "whole", ("batch_size = 1\nmax", "batch_size = 6\nmax"))
    ours, theirs = (read_trace(trial.trace)[1:] for trial in (parts, whole))
    assert [step.examples for step in ours] == [step.examples for step in theirs]
    assert [step.epoch for step in ours] == [step.epoch for step in theirs]
    assert [len(step.examples or []) for step in ours] == [6, 6, 4], "an epoch ends with what is left"
    for one, other in zip(ours, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


def test_a_share_of_steps_warms_up(tmp_path: Path) -> None:
    changes = OPTIONS["a share of steps warms up"]
    rates = [step.learning_rate for step in read_trace(tuned(tmp_path / "own", *changes).trace)[1:]]
    assert rates == pytest.approx([0.0, 0.0005, 0.001]), "half of 3 steps, rounded up"


def test_dora_has_the_same_bits_with_dequantized_weights(tmp_path: Path) -> None:
    dora = ("alpha = 32", "alpha = 32\ndora = true")
    packed, kept = (
        tuned(
            tmp_path / name,
            dora,
            ("[precision]", f"[precision]\n# {name}"),
            ("threads = 1", f'threads = 1\nweights = "{name}"'),
        )
        for name in ("nf4", "materialized")
    )
    assert outputs(packed)["weights"] != outputs(kept)["weights"]
    assert outputs(packed)["adapter_digest"] == outputs(kept)["adapter_digest"]
