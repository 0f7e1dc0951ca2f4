"""`qlora-repeat diff` compares trials whose traces, adapters and records tests write."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from support.checkout import ROOT, kit

from qlora_repeat.cli.main import cli
from qlora_repeat.records.record import Record, keep, read_record, write_record
from qlora_repeat.records.trace import Step, trace_line
from qlora_repeat.system.hashing import folder_digests

ONE, TWO = "tiny-neox/adamw-8bit/1", "tiny-neox/adamw-8bit/2"
STEPS = 12

Diff = Callable[..., Result]


def steps(count: int = STEPS, **last: Any) -> list[Step]:
    """Return a trace with changes to its last step."""
    made = [
        Step(0, adapter="digest 0"),
        *(
            Step(
                number,
                number / 4,
                [number],
                30,
                3 - number / 8,
                1 / number,
                2e-4,
                adapter=f"digest {number}" if number % 4 == 0 else None,
            )
            for number in range(1, count + 1)
        ),
    ]
    return [*made[:-1], replace(made[-1], **last)]


def write_trace(path: Path, trace: list[Step]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(map(trace_line, trace)))


def write_records(
    folder: Path,
    *,
    settings: dict[str, Any] | None = None,
    fingerprint: dict[str, Any] | None = None,
    seed: int = 1,
    perplexity: float = 20.0,
) -> None:
    """Write records of fine-tuning, merge and evaluation that follow from each other."""
    settings = {"threads": 1, "lora": {"r": 8, "alpha": 32}} | (settings or {})
    fingerprint = {"cpu": "A CPU", "packages": {"torch": "2.13.0", "peft": "0.21"}} | (fingerprint or {})
    inputs: dict[str, Any] = {"settings": settings, "code": "c" * 64, "packages": fingerprint["packages"]}
    stages: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("finetune", {}, {"adapter_digest": folder.name, "seeds": {"adapter_init": seed}}),
        ("merge", {"adapter_digest": folder.name}, {"merged_digest": folder.name}),
        ("evaluate", {"merged_digest": folder.name}, {"perplexity": perplexity}),
    ]
    kept = {name: keep(folder / name) for name in folder_digests(folder) if not name.endswith(".json")}
    for stage, upstream, outputs in stages:
        files = kept if stage == "finetune" else {}
        record = Record(stage, ONE, inputs | upstream, outputs, files, fingerprint, "", "", 1.0)
        write_record(folder / f"{stage}.json", record)


def write_adapter(folder: Path, shift: float = 0.0) -> None:
    (folder / "adapter").mkdir(parents=True)
    tensors = {
        f"layers.0.q.lora_{kind}.weight": np.full((4, 2), 1 + shift, np.float32)
        for kind, shift in (("A", 0), ("B", shift))
    }
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture
def trials(tmp_path: Path) -> tuple[Path, Path]:
    """Return the folders of two identical trials."""
    folders = [tmp_path / "runs/tiny/tiny-neox/adamw-8bit" / f"trial-{number}" for number in (1, 2)]
    for folder in folders:
        write_trace(folder / "trace.jsonl", steps())
        write_adapter(folder)
        write_records(folder)
    return folders[0], folders[1]


@pytest.fixture
def diff(study_file: Path, tmp_path: Path) -> Diff:
    """Return a function that runs `qlora-repeat diff` with the tiny study."""

    def run(*arguments: object) -> Result:
        given = ["diff", *map(str, arguments), "--study", str(study_file), "--runs", str(tmp_path / "runs")]
        return CliRunner().invoke(cli, given)

    return run


def test_identical_trials_end_in_0(trials: tuple[Path, Path], diff: Diff) -> None:
    done = diff(ONE, TWO)
    assert (done.exit_code, done.exception) == (0, None)
    assert "Identical bit for bit: 12 steps and the adapter." in done.output
    assert "no difference" in done.output
    assert "Not compared" not in done.output
    found = json.loads(diff(ONE, TWO, "--json").output)
    assert (found["verdict"], found["divergence"], found["differences"]) == ("alike", None, [])
    assert (found["not_compared"], found["unlike"], found["compared_steps"]) == ([], [], 12)


def test_the_first_difference_is_named_with_its_step(trials: tuple[Path, Path], diff: Diff) -> None:
    second = trials[1]
    write_trace(
        second / "trace.jsonl", [*steps()[:-4], replace(steps()[-4], loss=9.0), *steps(loss=2.0)[-3:]]
    )
    (second / "adapter" / "adapter_model.safetensors").unlink()
    (second / "adapter").rmdir()
    write_adapter(second, 0.5)
    write_records(
        second,
        settings={"threads": 2, "lora": {"r": 8, "alpha": 16}},
        fingerprint={"packages": {"torch": "2.14.0", "peft": "0.21"}},
        seed=2,
        perplexity=21.5,
    )
    done = diff(ONE, TWO)
    assert done.exit_code == 7
    assert "They first differ at step 9, in the loss: 1.875 and 9.0." in done.output
    assert "dropout" in done.output
    rows = [line.split() for line in done.output.splitlines()]
    assert ["final", "loss", "1.5", "2", "0.5"] in rows
    assert ["perplexity", "20", "21.5", "1.5"] in rows
    assert ["lora_A", "8", "8", "0", "0", "0"] in rows
    assert ["lora_B", "8", "0", "0.5", "1.41421", "0.5"] in rows
    sentence = r"The adapters are \d+ % of the first adapter's size apart; unrelated adapters of equal size"
    assert re.search(sentence, " ".join(done.output.split()))
    assert ["setting", "lora.alpha", "32", "16"] in rows
    assert ["seed", "adapter_init", "1", "2"] in rows
    assert sum("packages.torch" in line for line in done.output.splitlines()) == 1, "reported once"

    result = diff(ONE, TWO, "--json")
    found = json.loads(result.output)
    assert result.exit_code == 7
    assert (found["verdict"], found["divergence"]["step"], found["divergence"]["kind"]) == (
        "different",
        9,
        "loss",
    )
    assert (found["divergence"]["first"], found["divergence"]["second"]) == (1.875, 9.0)
    assert found["divergence"]["alike_after"] == 8
    assert (found["first"]["final_loss"], found["second"]["perplexity"]) == (1.5, 21.5)
    assert found["adapters"]["all"]["equal"] == 8
    assert {(each["what"], each["key"], each["first"], each["second"]) for each in found["differences"]} == {
        ("setting", "threads", 1, 2),
        ("setting", "lora.alpha", 32, 16),
        ("input", "packages.torch", "2.13.0", "2.14.0"),
        ("seed", "adapter_init", 1, 2),
    }


def test_operators_are_not_compared_where_the_settings_cannot_both_be_had(
    trials: tuple[Path, Path], diff: Diff
) -> None:
    assert "Not compared, operators: no step differs." in diff(ONE, TWO, "--operations").output
    write_trace(trials[1] / "trace.jsonl", steps(loss=9.0))
    write_records(trials[1])
    done = diff(ONE, TWO, "--operations")
    assert done.exit_code == 7
    assert f"Not compared, operators: tiny:{ONE} ran with cpu A CPU, and here it is" in done.output
    write_trace(trials[1] / "trace.jsonl", steps(examples=[9]))
    write_records(trials[1])
    found = json.loads(diff(ONE, trials[1], "--operations", "--json").output)
    assert "before any operator of a step runs" in found["operations"]["reason"]
    (trials[0] / "finetune.json").unlink()
    write_trace(trials[1] / "trace.jsonl", steps(loss=9.0))
    (trials[1] / "finetune.json").unlink()
    assert f"tiny:{ONE} has no record of its fine-tuning" in diff(ONE, TWO, "--operations").output


def test_trials_are_named_by_study_or_by_folder(
    trials: tuple[Path, Path], diff: Diff, study_file: Path, tmp_path: Path
) -> None:
    second = trials[1]
    other = tmp_path / "runs/tiny@3-steps/tiny-neox/adamw-8bit/trial-1"
    write_trace(other / "trace.jsonl", steps(loss=9.0))
    for given in (f"{study_file}@3-steps:{ONE}", str(other)):
        done = diff(ONE, given)
        assert done.exit_code == 7
        assert "They first differ at step 12" in done.output
    named = json.loads(diff(f"{study_file}@3-steps:{ONE}", second, "--json").output)
    assert (named["first"]["name"], named["second"]["name"]) == (f"tiny@3-steps:{ONE}", str(second))


def test_the_help_names_the_exit_code() -> None:
    assert "7 compared trials differ" in " ".join(kit("--help").stdout.split())


def test_a_folder_needs_no_study(trials: tuple[Path, Path]) -> None:
    done = kit("diff", *trials, "--study", "nonesuch")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_an_unfinished_trial_is_compared_up_to_its_last_step(
    cut: int, trials: tuple[Path, Path], diff: Diff, tmp_path: Path
) -> None:
    going = tmp_path / "going"
    write_trace(going / "unfinished/trace.jsonl", steps(5))
    if cut:
        with (going / "unfinished/trace.jsonl").open("a") as file:
            file.write(trace_line(steps(6)[-1])[:cut])
    done = diff(ONE, going)
    assert done.exit_code == 0
    assert "Identical bit for bit in what could be compared: 5 steps." in done.output
    assert "Not compared:" in done.output
    assert f"steps after 5, and the adapter: the fine-tuning of {going} is not finished" in done.output
    assert ["loss", "of", "step", "5", "2.375", "2.375", "0"] in [
        line.split() for line in done.output.splitlines()
    ]
    assert json.loads(diff(ONE, going, "--json").output)["verdict"] == "alike as far as compared"

    write_trace(going / "unfinished/trace.jsonl", steps(5, loss=9.0))
    done = diff(going, ONE)
    assert done.exit_code == 7
    assert "They first differ at step 5, in the loss: 9.0 and 2.375." in done.output


def test_trials_of_different_length_differ(trials: tuple[Path, Path], diff: Diff, tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    write_trace(longer / "trace.jsonl", steps(14))
    done = diff(ONE, longer)
    assert done.exit_code == 7
    assert "The 12 common steps are identical bit for bit, but the trials differ." in done.output
    assert "Different: one has 12 steps, the other 14." in done.output
    write_trace(tmp_path / "going/unfinished/trace.jsonl", steps(14))
    assert "Different: one has 12 steps, the other 14." in diff(tmp_path / "going", ONE).output


def test_adapters_may_differ_after_identical_traces(trials: tuple[Path, Path], diff: Diff) -> None:
    for path in sorted((trials[1] / "adapter").iterdir()):
        path.unlink()
    (trials[1] / "adapter").rmdir()
    write_adapter(trials[1], 0.5)
    write_records(trials[1])
    done = diff(ONE, TWO)
    assert done.exit_code == 7
    assert "Different: the adapters, in 8 of 16 values." in done.output


def test_what_cannot_be_compared_is_listed(trials: tuple[Path, Path], diff: Diff, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    write_trace(bare / "trace.jsonl", [replace(step, tokens=None) for step in steps()])
    found = json.loads(diff(ONE, bare, "--json").output)
    assert (found["verdict"], found["adapters"], found["differences"]) == (
        "alike as far as compared",
        None,
        [],
    )
    not_compared = "\n".join(found["not_compared"])
    assert f"settings, seeds and fingerprint: {bare} has no record of its fine-tuning" in not_compared
    assert f"perplexity: {bare} is not evaluated" in not_compared
    assert f"adapters: {bare}/adapter: has no adapter" in not_compared
    assert "numbers of tokens: no step has them in both traces" in not_compared
    shown = diff(ONE, bare)
    assert shown.exit_code == 0
    assert all(f"- {line}" in shown.output.splitlines() for line in found["not_compared"])


def test_the_perplexity_of_an_earlier_adapter_does_not_count(trials: tuple[Path, Path], diff: Diff) -> None:
    path = trials[1] / "merge.json"
    record = read_record(path)
    assert record is not None
    write_record(path, replace(record, inputs=record.inputs | {"adapter_digest": "earlier"}))
    found = json.loads(diff(ONE, TWO, "--json").output)
    assert (found["first"]["perplexity"], found["second"]["perplexity"]) == (20.0, None)
    assert found["not_compared"] == [f"perplexity: tiny:{TWO} is not evaluated with this adapter"]


def test_adapters_of_other_models_differ(trials: tuple[Path, Path], diff: Diff, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_trace(other / "trace.jsonl", steps())
    (other / "adapter").mkdir()
    save_file({"layers.0.v.lora_A.weight": np.ones(2, np.float32)}, other / "adapter" / "a.safetensors")
    done = diff(ONE, other)
    assert done.exit_code == 7
    assert (
        "Different: the adapters have different tensors: only one has layers.0.q.lora_A.weight"
        in " ".join(done.output.split())
    )


def test_json_has_no_numbers_that_json_lacks(trials: tuple[Path, Path], diff: Diff) -> None:
    for folder, loss in zip(trials, (math.nan, math.inf), strict=True):
        write_trace(folder / "trace.jsonl", steps(loss=loss))
        write_records(folder, perplexity=loss)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(diff(ONE, TWO, "--json").output, parse_constant=refuse)
    assert (found["divergence"]["first"], found["divergence"]["second"]) == ("nan", "inf")
    assert (found["first"]["final_loss"], found["first"]["diverged_at"]) == ("nan", STEPS)
    assert f"{STEPS} steps, loss not finite from step {STEPS}" in diff(ONE, TWO).output


def test_different_seeds_explain_a_difference(trials: tuple[Path, Path], diff: Diff) -> None:
    write_trace(trials[1] / "trace.jsonl", [Step(0, adapter="another"), *steps()[1:]])
    write_records(trials[1])
    done = " ".join(diff(ONE, TWO).output.split())
    assert "They differ before training starts, in the initial adapter: digest 0 and another." in done
    assert "points to their seeds" in done, "the recorded seeds are the same"
    write_records(trials[1], seed=2)
    done = " ".join(diff(ONE, TWO).output.split())
    assert "Their seeds differ (1, 2), which explains it. Same in both: packages." in done


def test_skipped_updates_are_counted(trials: tuple[Path, Path], diff: Diff) -> None:
    write_trace(trials[1] / "trace.jsonl", steps(skipped=True))
    write_records(trials[1])
    done = diff(ONE, TWO)
    assert "They first differ at step 12, in whether the update was skipped: false and true." in done.output
    assert "12 steps, updates skipped: 1" in done.output


def cut_trace(folder: Path) -> None:
    text = (folder / "trace.jsonl").read_text()
    (folder / "trace.jsonl").write_text(text[:-20])
    (folder / "finetune.json").unlink()


def damage_trace(folder: Path) -> None:
    write_trace(folder / "trace.jsonl", steps(loss=9.0))


def damage_adapter(folder: Path) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def no_trace(folder: Path) -> None:
    (folder / "trace.jsonl").unlink()


def no_safetensors(folder: Path) -> None:
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"pickle")
    (folder / "finetune.json").unlink()


def no_record(folder: Path) -> None:
    (folder / "evaluate.json").write_text("{")


def no_step(folder: Path) -> None:
    (folder / "trace.jsonl").write_text("")
    (folder / "finetune.json").unlink()


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (no_trace, 3, "trial-2: has neither trace.jsonl nor unfinished/trace.jsonl"),
        (cut_trace, 2, "trial-2/trace.jsonl:13: not a step of a trace"),
        (no_step, 2, "trial-2/trace.jsonl: the trace has no step yet"),
        (damage_trace, 3, "were recorded; restore it, or give another copy of trial tiny-neox/adamw-8bit/1"),
        (damage_adapter, 3, "adapter_model.safetensors: not the bytes that were recorded"),
        (no_safetensors, 2, "adapter_model.safetensors: not a safetensors file"),
        (no_record, 3, "trial-2/evaluate.json: not a readable record"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(
    harm: Callable[[Path], None],
    code: int,
    words: str,
    trials: tuple[Path, Path],
    study_file: Path,
    tmp_path: Path,
) -> None:
    harm(trials[1])
    done = kit("diff", ONE, TWO, "--study", study_file, "--runs", tmp_path / "runs")
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ("tiny-neox/adamw-8bit/3", 2, "numbers its trials 1 to 2"),
        ("nonesuch:tiny-neox/adamw-8bit/1", 3, "nonesuch: no such study file"),
        ("elsewhere/trial-1", 3, "elsewhere/trial-1: no such folder; give that of a trial, or its name"),
        ("tiny-neox", 2, "a trial is named model/optimizer/number"),
    ],
)
def test_a_wrong_trial_name_is_an_error(
    given: str, code: int, words: str, trials: tuple[Path, Path], study_file: Path, tmp_path: Path
) -> None:
    done = kit("diff", ONE, given, "--study", study_file, "--runs", tmp_path / "runs")
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_diff_loads_no_torch(trials: tuple[Path, Path]) -> None:
    script = (
        "import sys; from qlora_repeat.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, "diff", *map(str, trials)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False\n")
