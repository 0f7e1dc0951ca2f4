"""`make rehearsal` runs the paper's unmodified study file on miniatures under the real repository names."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.places import at
from support.slurm_cluster import slurm

from qlora_repeat.records.stage_inputs import stage_settings
from qlora_repeat.results.trial_result import TrialResult, read_results
from qlora_repeat.study.loading import load_study

STUDY = load_study("paper")
BASE_TESTS = [f"{model}/base/test-{number}.json" for model in STUDY.models for number in range(1, 8)]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `make rehearsal` writes."""
    folder = tmp_path_factory.mktemp("rehearsal")
    before = repository()
    command = ["make", "rehearsal", f"KIT_PYTHON={sys.executable}", f"REHEARSAL={folder}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "QLORA_"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert repository() == before, "the rehearsal writes only to its folder"
    return folder


def repository() -> list[Path]:
    return sorted(path for folder in ("studies", "runs", "paper") for path in (ROOT / folder).glob("*"))


@pytest.fixture(scope="module")
def runs(rehearsal: Path) -> Path:
    (folder,) = rehearsal.glob("paper@*")
    return folder


@pytest.fixture(scope="module")
def results(runs: Path) -> list[TrialResult]:
    return read_results(runs / "results.jsonl")


def outputs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["outputs"]
    return found


def test_every_trial_of_the_paper_ran_all_stages(results: list[TrialResult]) -> None:
    assert [f"{row.model}/{row.optimizer}/{row.trial}" for row in results] == [
        trial.name for trial in at(STUDY, Path()).trials()
    ]
    assert {row.status for row in results} == {"done"}


def test_the_study_file_was_only_shortened(runs: Path, results: list[TrialResult]) -> None:
    """Check for three epochs of the rows in the name; everything else is from the file."""
    steps, rows = map(int, re.findall(r"(\d+)-", runs.name))
    for trial in at(STUDY, Path()).trials():
        record = json.loads(
            (runs / Path(*trial.name.split("/")[:2]) / f"trial-{trial.number}" / "finetune.json").read_text()
        )
        settings, asked = record["inputs"]["settings"], stage_settings(trial, "finetune")
        assert record["outputs"]["steps"] == steps == 3 * rows
        assert settings["training"].pop("max_steps") == steps
        assert settings["training"] == {k: v for k, v in asked["training"].items() if k != "max_steps"}
        assert settings["lora"] == asked["lora"] and settings["quantization"] == vars(STUDY.quantization)
    assert {len(row.loss_curve) for row in results} == {min(steps, 30)}
    assert {row.loss_curve[-1][0] for row in results} == {3.0}


def test_every_record_says_what_a_cpu_cannot_test(runs: Path) -> None:
    records = sorted(runs.glob("*/*/trial-*/finetune.json"))
    assert len(records) == 56
    found = [outputs(path) for path in records]
    assert {(each["autocast"], each["loss_scaling"], each["miniature"]) for each in found} == {
        (False, False, True)
    }


def test_adapters_differ(results: list[TrialResult]) -> None:
    assert len({row.adapter_digest for row in results}) == len(results)


def test_only_eight_bit_trials_have_eight_bit_states(runs: Path) -> None:
    for path in runs.glob("*/*/trial-*/finetune.json"):
        expected = "uint8" if path.parts[-3] == "adamw-8bit" else "float32"
        assert list(outputs(path)["optimizer_state"]) == [expected], path


def test_both_instructions_of_the_paper_were_used(results: list[TrialResult]) -> None:
    for row in (row for row in results if row.task == "question-answering"):
        prompts = list(dict.fromkeys(response.prompt for response in row.responses))
        asked = STUDY.data["instructions"].prompts
        assert [prompt.startswith(start) for prompt, start in zip(prompts, asked, strict=True)] == [
            True,
            True,
        ]


def test_the_ablations_of_section_ix(runs: Path, results: list[TrialResult]) -> None:
    """Check for seven tests of one model at each sampling with fresh seeds, and seven of each base."""
    for row in results:
        assert len(row.base_perplexities) == 7
        asked = [(one.prompt, one.temperature) for one in row.repeated_responses]
        assert len(asked) == (7 * 2 * 2 if row.trial == 1 else 0)
        assert {asked.count(one) for one in asked} <= {7}
        seeds = [response.seed for response in row.repeated_responses]
        assert len(set(seeds)) == len(seeds)
    records = [json.loads((runs / name).read_text()) for name in BASE_TESTS]
    assert {record["fingerprint"]["threads"] for record in records} == {STUDY.threads}


def test_the_lock_holds_every_repository(rehearsal: Path) -> None:
    lock = json.loads((rehearsal / "paper.lock").read_text())
    hubs = [each.hub for each in (*STUDY.bases.values(), *STUDY.data.values())]
    assert sorted(lock) == sorted(hub.repository for hub in hubs if hub)
    pickled = lock["togethercomputer/GPT-NeoXT-Chat-Base-20B"]
    assert pickled["converted"]
    assert any(name.endswith(".bin") for name in pickled["files"])


def test_all_tables_and_the_figure_exist_and_describe_themselves(rehearsal: Path) -> None:
    tables = rehearsal / "tables"
    for number in (*(f"{number:02}" for number in range(1, 12)), "S0", "S1", "S1b", "S4"):
        text = (tables / f"table-{number}.md").read_text(encoding="utf-8")
        assert "miniature" in text, number
        assert "paper@" in text, number
        assert (tables / f"table-{number}.tex").is_file()
    for suffix in ("pdf", "png"):
        assert (tables / f"figure-04.{suffix}").stat().st_size > 0


@pytest.mark.slurm
def test_on_slurm_each_trial_is_a_task_and_tables_come_last(
    rehearsal: Path, runs: Path, tmp_path: Path
) -> None:
    environment = os.environ | {
        "HF_HOME": str(rehearsal / "hub"),
        "HF_HUB_OFFLINE": "1",
        "QLORA_REPEAT_CACHE": str(rehearsal / "cache"),
        "QLORA_REPEAT_LOCK": str(rehearsal / "paper.lock"),
    }
    with slurm(tmp_path / "slurm"):
        asked = ["--memory", "2", "--time", "1:00:00", "--sbatch", "hold", "--runs", str(tmp_path / "runs")]
        done = subprocess.run(
            [str(Path(sys.executable).with_name("qlora-repeat")), "submit", runs.name, *asked],
            cwd=ROOT,
            env=environment | {"SLURM_CONF": os.environ["SLURM_CONF"]},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        listed = subprocess.run(
            ["squeue", "--array", "--noheader", "--format=%j|%l|%m|%E"], capture_output=True, text=True
        )
    jobs = [line.split("|") for line in listed.stdout.splitlines()]
    tasks = [job for job in jobs if job[0] == f"qlora-repeat {runs.name}"]
    assert len(tasks) == 56 + len(STUDY.models)
    assert {(limit, memory) for _, limit, memory, _ in tasks} == {("1:00:00", "1908M")}
    ((_, _, _, after),) = [job for job in jobs if job[0] == f"qlora-repeat {runs.name} tables"]
    assert after.startswith("afterany:")
    assert done.stdout.count(": job ") == 56 + len(STUDY.models) + 1
