"""Records, and how they tell that a stage is stale."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import qlora_repeat
from qlora_repeat.digest import file_digest
from qlora_repeat.errors import UsageError
from qlora_repeat.inputs import MODULES, changed_inputs, stage_settings
from qlora_repeat.record import Record, damaged_file, read_record, write_record
from qlora_repeat.study import Study
from qlora_repeat.trial import STAGES, find_trial

RECORD = Record(
    stage="evaluate",
    trial="tiny-neox/adamw-8bit/1",
    inputs={"base": "0" * 64, "settings": {"threads": 1}},
    outputs={"perplexity": 12.345678901234567, "responses": [{"text": "\u2028 <b> ő\n"}], "accuracy": None},
    files={},
    fingerprint={"python": "3.11.2"},
    started="2026-01-01T00:00:00+00:00",
    finished="2026-01-01T00:00:01+00:00",
    seconds=1.25,
)
PACKAGE = Path(qlora_repeat.__file__).parent


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "evaluate.json", RECORD)
    assert read_record(tmp_path / "evaluate.json") == RECORD


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path / "evaluate.json") is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "3", "{}", '{"format": 1}', '{"format": 2, "stage": "merge"}', "\ud800"],
)
def test_what_is_no_record_is_named_with_the_way_out(content: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluate.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError) as caught:
        read_record(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a readable record")
    assert message.endswith("; delete it to run the stage again")
    assert len(message.splitlines()) == 1


def test_a_record_of_another_version_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "evaluate.json"
    write_record(path, RECORD)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"novelty": 1}))
    with pytest.raises(UsageError, match="novelty"):
        read_record(path)


def test_damage_to_a_kept_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    for name in ("trace.jsonl", "adapter/weights"):
        (tmp_path / name).write_text(name)
    files = {name: file_digest(tmp_path / name) for name in ("trace.jsonl", "adapter/weights")}
    record = Record(**(vars(RECORD) | {"files": files}))
    assert damaged_file(record, tmp_path) is None
    (tmp_path / "adapter/weights").write_text("adapter/weightz")
    assert damaged_file(record, tmp_path) == "adapter/weights"
    (tmp_path / "trace.jsonl").unlink()
    assert damaged_file(record, tmp_path) == "trace.jsonl"


@pytest.mark.parametrize(
    ("recorded", "today", "changed"),
    [
        ({"base": "1"}, {"base": "1"}, []),
        ({"base": "1"}, {"base": "2"}, ["base"]),
        ({"base": "1"}, {"base": None}, []),  # not in this cache: nothing is known against the record
        ({}, {"code": "1"}, ["code"]),
        ({"settings": {"a": 1, "b": 2}}, {"settings": {"a": 1, "b": 3}}, ["b"]),
        ({"settings": {"a": 1, "b": 2}}, {"settings": {"b": 2, "c": 3}}, ["a", "c"]),
        ({}, {"settings": {"a": 1}}, ["a"]),
        ({"data": "1", "lock": "1"}, {"data": "2", "lock": "2"}, ["data", "lock"]),
    ],
)
def test_changes_are_named(recorded: dict[str, Any], today: dict[str, Any], changed: list[str]) -> None:
    assert changed_inputs(recorded, today) == changed


@pytest.mark.parametrize("stage", STAGES)
def test_settings_are_the_same_once_recorded(stage: Any, study: Study, tmp_path: Path) -> None:
    settings = stage_settings(find_trial(study, "tiny-llama-chat/adamw-8bit/1", tmp_path), stage)
    write_record(tmp_path / "record.json", Record(**(vars(RECORD) | {"inputs": {"settings": settings}})))
    found = read_record(tmp_path / "record.json")
    assert found is not None
    assert changed_inputs(found.inputs, {"settings": settings}) == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the kit, to change."""
    return Path(
        shutil.copytree(PACKAGE, tmp_path / "qlora_repeat", ignore=shutil.ignore_patterns("__pycache__"))
    )


def digests(package: Path) -> dict[str, str]:
    """The digest of each stage's code in a copy of the kit."""
    spec = importlib.util.spec_from_file_location("inputs_of_the_copy", package / "inputs.py")
    assert spec is not None
    assert spec.loader is not None
    inputs: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inputs)
    return {stage: inputs.code_digest(*modules) for stage, modules in MODULES.items()}


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("tracing", ["finetune"]),
        ("merge", ["merge"]),
        ("perplexity", ["evaluate"]),
        ("respond", ["evaluate", "time"]),
        ("timing", ["time"]),
        ("randomness", ["finetune", "merge", "evaluate", "time"]),
        ("kernels", ["finetune", "merge", "evaluate", "time"]),
        ("checkpoint", ["finetune"]),
        ("base_model", ["finetune", "merge", "evaluate", "time"]),
        ("render/tables", []),
        ("render/table_content", []),
        ("collect", []),
        ("runner", []),
        ("progress", []),
        ("cli", []),
        ("commands/stage", []),
    ],
)
def test_a_change_to_a_module_makes_stale_what_imports_it(
    module: str, stages: list[str], package: Path
) -> None:
    before = digests(package)
    with (package / f"{module}.py").open("a", encoding="utf-8") as file:
        file.write("\nA_CHANGE = 1\n")
    after = digests(package)
    assert [stage for stage in before if before[stage] != after[stage]] == stages


MODULE = '''"""What this is for."""

from qlora_repeat.trial import Trial

SIZE = 30  # as many as there are


def told(trial: Trial, size: int = 1) -> str:
    """Tells it."""
    # A word about it.
    return f"{trial.name} of {size * 2}"
'''


def made_stale(package: Path, old: str, new: str) -> list[str]:
    """The stages whose code is another if this text in a module of one stage is."""
    assert old in MODULE
    (package / "timing.py").write_text(MODULE)
    before = digests(package)
    (package / "timing.py").write_text(MODULE.replace(old, new))
    after = digests(package)
    return [stage for stage in before if before[stage] != after[stage]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("What this is for", "What is this for"),
        ("    # A word about it.\n", ""),
        ("# as many as there are", "# so many   \n\n\n"),
        ("Tells it.", "Tells it.\n\n    At length.\n    "),
    ],
    ids=["module's docstring", "comment", "comment, spaces and blank lines", "function's docstring"],
)
def test_what_is_said_about_code_makes_nothing_stale(old: str, new: str, package: Path) -> None:
    assert made_stale(package, old, new) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [("int = 1", "int = 2"), (" of {", " in {"), ("* 2", "+ 2"), ("SIZE = 30", "SIZE = 31")],
    ids=["default value", "text", "operator", "number"],
)
def test_what_code_does_makes_its_stage_stale(old: str, new: str, package: Path) -> None:
    assert made_stale(package, old, new) == ["time"]


def test_modules_are_followed_however_they_are_imported(package: Path) -> None:
    (package / "render" / "deep.py").write_text("VALUE = 1\n")
    for line in (
        "from qlora_repeat.render.deep import VALUE",
        "from qlora_repeat.render import deep",
        "import qlora_repeat.render.deep",
        "def late():\n    from qlora_repeat.render.deep import VALUE",
    ):
        (package / "timing.py").write_text(f"{line}\n")
        (package / "render" / "deep.py").write_text("VALUE = 1\n")
        before = digests(package)
        (package / "render" / "deep.py").write_text("VALUE = 2\n")
        after = digests(package)
        assert [stage for stage in before if before[stage] != after[stage]] == ["time"], line


def test_where_the_kit_stands_makes_nothing_stale(package: Path) -> None:
    assert digests(package) == digests(PACKAGE)
