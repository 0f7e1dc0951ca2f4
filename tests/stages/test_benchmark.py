"""Benchmarks by lm-evaluation-harness, offline, with a task file and rows of the test's own."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from support.own_rows import write_own_study
from support.places import at
from support.trials import outputs, quiet

from qlora_repeat.analysis.verify.verdict import Verdict
from qlora_repeat.api.verification import verify
from qlora_repeat.assets.benchmarks import own_task_files
from qlora_repeat.errors import StageError, UsageError
from qlora_repeat.execution.run_study import require_benchmarks
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.record import read_record, write_record
from qlora_repeat.records.trial_state import measured_state, stage_states, trial_state
from qlora_repeat.results.collect import collect
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Evaluation
from qlora_repeat.study.trial import ALL_STAGES, STAGES, Trial
from qlora_repeat.study.workspace import Workspace

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: `make lm-eval`"
)
TASK = """
task: colors
dataset_path: json
dataset_kwargs: {data_files: {test: asked.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: ["red", "green"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 2.0}
"""
NAME = "own/adamw-8bit/1"


def write_task(folder: Path, text: str = TASK) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "colors.yaml").write_text(text)
    rows = [{"question": f"Thing {number} is", "answer": number % 2} for number in range(7)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def with_benchmarks(workspace: Workspace, *tasks: str, **changes: object) -> Workspace:
    """Write a study's benchmarks into its file, and load it again."""
    text, more = workspace.file.read_text(), [f"lm_eval = {json.dumps(tasks)}"]
    more += [f"{key} = {json.dumps(value)}" for key, value in changes.items()]
    kept = [line for line in text.splitlines() if not line.startswith("lm_eval")]
    place = kept.index("[evaluation]") + 1
    workspace.file.write_text("\n".join([*kept[:place], *more, *kept[place:]]))
    return at(workspace.file, workspace.runs, workspace.cache)


def write_study(folder: Path) -> Workspace:
    """Write a study without benchmarks, and a task next to it."""
    rows = [{"instruction": f"Is color {number} red?", "answer": "red"} for number in range(12)]
    write_task(folder / "tasks")
    bitwise = 'profile = "as-published"', 'profile = "bitwise"'
    return write_own_study(folder, rows, ("steps = 3", "steps = 1"), bitwise)


@pytest.fixture
def plain(tmp_path: Path) -> Workspace:
    return write_study(tmp_path)


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Return a trial that was run before its study named a benchmark, and then again; only for reading."""
    workspace = write_study(tmp_path_factory.mktemp("benchmarked"))
    run_trial(workspace.trial(NAME), STAGES, quiet)
    trial = with_benchmarks(workspace, "tasks/").trial(NAME)
    found = trial_state(trial)
    assert [found.stages[stage].state for stage in ALL_STAGES] == ["done"] * 4 + ["missing"]
    assert measured_state(found) == "done"
    run_trial(trial, ALL_STAGES, quiet)
    return trial


@needs_lm_eval
def test_the_outcome_of_each_example_is_recorded(benchmarked: Trial) -> None:
    assert trial_state(benchmarked).state == "done"
    assert not benchmarked.merged.exists()
    recorded = outputs(benchmarked, "benchmark")["tasks"]["colors"]
    outcomes = recorded["outcomes"]["acc,none"]
    assert (len(outcomes), set(outcomes) <= {0, 1}) == (7, True)
    assert recorded["scores"]["acc,none"] == pytest.approx(sum(outcomes) / 7)
    assert (recorded["version"], recorded["fewshot"]) == ("2.0", 0)
    row = collect(benchmarked.workspace)[0]
    assert row.perplexity is not None
    assert [(each.task, each.metric, each.outcomes) for each in row.benchmarks] == [
        ("colors", "acc", outcomes)
    ]


@needs_lm_eval
def test_changed_rows_of_a_task_make_the_benchmark_stale_alone(benchmarked: Trial, tmp_path: Path) -> None:
    workspace = benchmarked.workspace
    shutil.copytree(workspace.file.parent, tmp_path / "copy")
    copy = at(
        tmp_path / "copy" / workspace.file.name, tmp_path / "copy" / "runs", tmp_path / "copy" / "cache"
    )
    asked = tmp_path / "copy" / "tasks" / "asked.jsonl"
    asked.write_text(asked.read_text().replace('"answer": 1', '"answer": 0'))
    states = stage_states(copy.trial(NAME))
    assert [states[stage].state for stage in ALL_STAGES] == ["done"] * 4 + ["stale"]
    assert states["benchmark"].changed == ["task_files"]
    assert collect(copy)[0].perplexity is not None
    assert collect(copy)[0].benchmarks == []


@needs_lm_eval
def test_verify_runs_benchmarks_again_and_checks_scores(benchmarked: Trial, tmp_path: Path) -> None:
    def verified() -> Verdict:
        return verify(benchmarked, stages="evaluate", scratch=tmp_path / "scratch", quiet=True).found

    found = verified()
    assert found.kind == "bitwise"
    assert not any("benchmark" in each for each in found.cannot_tell)
    path = benchmarked.record("benchmark")
    before = path.read_bytes()
    record = read_record(path)
    assert record is not None
    task = record.outputs["tasks"]["colors"]
    task["outcomes"]["acc,none"][0] ^= 1
    try:
        write_record(path, record)
        assert any("'acc,none' than its outcomes give" in each for each in verified().why)
        task["scores"]["acc,none"] = sum(task["outcomes"]["acc,none"]) / 7
        write_record(path, record)
        forged = verified()
        assert forged.kind == "different"
        assert any("outcomes of benchmarks" in each for each in forged.why)
    finally:
        path.write_bytes(before)


@needs_lm_eval
@pytest.mark.parametrize(
    ("text", "named"),
    [
        (TASK.replace("asked.jsonl", "lost.jsonl"), "lost.jsonl"),
        (TASK.replace("path: json", "path: owner/lost").replace("dataset_kwargs", "x"), "colors.yaml"),
        (TASK.replace("{{question}}", "{{question"), "colors"),
        ("task: [", "colors.yaml"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_one_line_before_training(
    text: str, named: str, plain: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_task(plain.file.parent / "tasks", text)
    workspace = with_benchmarks(plain, "tasks/colors.yaml")
    with pytest.raises(StageError) as caught:
        require_benchmarks(workspace.trials(), ALL_STAGES)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_package_one_line_names_the_command(
    plain: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_repeat.assets.benchmarks.installed_version", lambda name: None)
    trials = with_benchmarks(plain, "arc_easy").trials()
    with pytest.raises(UsageError, match="make lm-eval"):
        require_benchmarks(trials, ALL_STAGES)
    require_benchmarks(trials, STAGES)


def test_a_task_file_from_an_archive_is_not_read(plain: Workspace) -> None:
    workspace = with_benchmarks(plain, "tasks/colors.yaml")
    theirs = dataclasses.replace(workspace, from_archive=True)
    with pytest.raises(UsageError, match=r"colors\.yaml is a task file, which can run any code"):
        require_benchmarks(theirs.trials(), ALL_STAGES)


def test_a_folder_of_tasks_is_found_from_any_study_next_to_it_or_below(
    plain: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_benchmarks(plain, "tasks/")
    monkeypatch.chdir(plain.file.parent)
    Path("more").mkdir()
    for name, parent in (("beside.toml", "own"), ("more/below.toml", "../own.toml")):
        Path(name).write_text(f'extends = "{parent}"')
    for study in ("own.toml", "beside.toml", "more/below.toml"):
        (task,) = load_study(study).evaluation.lm_eval
        assert [path.name for path in own_task_files(task)] == ["colors.yaml"]


def test_a_benchmark_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="duplicate"):
        Evaluation(lm_eval=["arc_easy", "arc_easy"])
