"""Records, and how they show that a stage is stale."""

import ast
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.laboratory import Lab
from support.places import at

import qlora_repeat
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.records.record import (
    FORMAT,
    KeptFile,
    Record,
    damaged_file,
    keep,
    read_record,
    write_record,
)
from qlora_repeat.records.stage_inputs import MODULES, changed_inputs, stage_settings
from qlora_repeat.records.trace import read_trace
from qlora_repeat.results.trial_result import read_results
from qlora_repeat.stages.checkpoint import begins_so, read_sealed
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import STAGES
from qlora_repeat.system.files import json_text
from qlora_repeat.system.hashing import json_digest

RECORD = Record(
    stage="evaluate",
    trial="tiny-neox/adamw-8bit/1",
    inputs={"base": "0" * 64, "settings": {"threads": 1}},
    outputs={"perplexity": 12.345678901234567, "responses": [{"text": "\u2028 <b> ő\n"}], "accuracy": None},
    files={"adapter/weights": KeptFile("0" * 64, 7)},
    fingerprint={"python": "3.11.2"},
    started="2026-01-01T00:00:00+00:00",
    finished="2026-01-01T00:00:01+00:00",
    seconds=1.25,
)
KEPT = {"sha256": "0" * 64, "bytes": 7}
PACKAGE = Path(qlora_repeat.__file__).parent


def sealed(**changes: Any) -> bytes:
    """Return the text of a record with changed content and the matching digest."""
    content = {"format": FORMAT, **asdict(RECORD), **changes}
    return json_text({**content, "digest": json_digest(content)}).encode()


def refusal(path: Path) -> str:
    """Return why a file is not a record."""
    with pytest.raises(MissingError) as caught:
        read_record(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a readable record (")
    assert message.endswith(")")
    assert len(message.splitlines()) == 1
    return message


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "evaluate.json", RECORD)
    assert read_record(tmp_path / "evaluate.json") == RECORD
    assert (tmp_path / "evaluate.json").read_bytes() == sealed()


def test_values_that_json_converts_are_read_as_json(tmp_path: Path) -> None:
    outputs = {"losses": {10: math.inf, 9: -0.0}, "pair": (1, 2)}
    write_record(tmp_path / "evaluate.json", replace(RECORD, outputs=outputs))
    found = read_record(tmp_path / "evaluate.json")
    assert found is not None
    assert repr(found.outputs) == repr({"losses": {"10": math.inf, "9": -0.0}, "pair": [1, 2]})


_TEXT = st.text(st.characters(codec="utf-8"))
_PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | _TEXT


@settings(deadline=None)
@given(
    st.dictionaries(
        _TEXT,
        st.recursive(_PLAIN, lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner), max_leaves=9),
    )
)
def test_any_json_outputs_are_read_as_they_were_written(outputs: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "evaluate.json")
        write_record(path, replace(RECORD, outputs=outputs))
        found = read_record(path)
    assert found is not None
    assert json_text(found.outputs) == json_text(outputs)


def test_a_missing_file_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path / "evaluate.json") is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "3", "{}", '{"format": 2}', "\ud800", "[" * 100_000, "1" * 5000],
    ids=lambda content: content[:14] or "empty",
)
def test_a_file_that_is_not_a_record_gives_a_helpful_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluate.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    refusal(path)
    path.unlink()
    path.mkdir()
    assert "Is a directory" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 1}, "format 1; this version of the kit reads format 2"),
        ({"novelty": 1}, "unknown key 'novelty'"),
        ({"seconds": "1.25"}, "seconds is '1.25'"),
        ({"seconds": True}, "seconds is 'True'"),
        ({"stage": None}, "stage is 'None'"),
        ({"outputs": []}, "outputs is '[]'"),
        ({"files": {"/etc/passwd": KEPT}}, "'/etc/passwd' points outside the trial's folder"),
        ({"files": {"adapter/../../x": KEPT}}, "'adapter/../../x' points outside the trial's folder"),
        ({"files": {"": KEPT}}, "'' points outside the trial's folder"),
        ({"files": {"adapter//x": KEPT}}, "'adapter//x' points outside the trial's folder"),
        ({"files": {"x": "0" * 64}}, "file 'x': expected exactly the keys sha256 and bytes"),
        ({"files": {"x": {**KEPT, "bytes": 1.0}}}, "file 'x': expected exactly the keys sha256 and bytes"),
        ({"files": {"x": {**KEPT, "mode": 1}}}, "file 'x': expected exactly the keys sha256 and bytes"),
    ],
)
def test_a_record_with_wrong_keys_or_types_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """Give the record a matching digest, since anyone may have written it."""
    (tmp_path / "evaluate.json").write_bytes(sealed(**changes))
    assert reason in refusal(tmp_path / "evaluate.json")


def test_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    text = sealed().replace(b'  "seconds": 1.25,\n', b'  "seconds": 9.25,\n  "seconds": 1.25,\n')
    (tmp_path / "evaluate.json").write_bytes(text)
    assert "key 'seconds' appears twice" in refusal(tmp_path / "evaluate.json")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"12.345678901234567", b"12.345678901234566"),
        (b"1.25", b"1.250"),
        (b"\n", b" \n"),
        (b'    "settings"', b'   "settings"'),
        (b'{\n      "threads": 1\n    }', b'{"threads": 1}'),
        (b"1.25", b"125e-2"),
    ],
)
def test_a_changed_number_and_a_changed_spelling_of_it_are_noticed(
    old: bytes, new: bytes, tmp_path: Path
) -> None:
    (tmp_path / "evaluate.json").write_bytes(sealed().replace(old, new, 1))
    assert "changed after it was written" in refusal(tmp_path / "evaluate.json")


@settings(deadline=None)
@given(st.integers(0, len(sealed()) * 8 - 1))
def test_one_bit_flipped_anywhere_in_a_record_is_noticed(bit: int) -> None:
    content = bytearray(sealed())
    content[bit // 8] ^= 1 << bit % 8
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "evaluate.json").write_bytes(content)
        refusal(Path(folder) / "evaluate.json")


def test_damage_to_a_kept_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("weights")
    kept = keep(path)
    assert damaged_file(path, kept) is None
    path.write_text("weightz")
    assert damaged_file(path, kept, rehash=False) is None
    assert damaged_file(path, kept) == f"{path}: not the bytes that were recorded"
    path.write_text("weight")
    assert damaged_file(path, kept, rehash=False) == f"{path}: 6 bytes (recorded: 7)"
    path.unlink()
    assert damaged_file(path, kept, rehash=False) == f"{path}: missing"
    path.mkdir()
    assert damaged_file(path, kept, rehash=False) == f"{path}: not a regular file"
    assert damaged_file(tmp_path / "weights" / "below", kept) == f"{tmp_path}/weights/below: missing"


@pytest.mark.parametrize(
    ("recorded", "today", "changed"),
    [
        ({"base": "1"}, {"base": "1"}, []),
        ({"base": "1"}, {"base": "2"}, ["base"]),
        ({"base": "1"}, {"base": None}, []),  # not in this cache, so nothing contradicts the record
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
    settings = stage_settings(at(study, tmp_path).trial("tiny-llama-chat/adamw-8bit/1"), stage)
    write_record(tmp_path / "record.json", Record(**(vars(RECORD) | {"inputs": {"settings": settings}})))
    found = read_record(tmp_path / "record.json")
    assert found is not None
    assert changed_inputs(found.inputs, {"settings": settings}) == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a copy of the kit that can be changed."""
    return Path(
        shutil.copytree(PACKAGE, tmp_path / "qlora_repeat", ignore=shutil.ignore_patterns("__pycache__"))
    )


def digests(package: Path) -> dict[str, str]:
    """Return the digest of each stage's code in a copy of the kit."""
    code_digest = code_digest_of(package)
    return {stage: code_digest(*modules) for stage, modules in MODULES.items()}


def code_digest_of(package: Path) -> Callable[..., str]:
    """Return the function `code_digest` of a copy of the kit."""
    spec = importlib.util.spec_from_file_location("of_the_copy", package / "records" / "code_digest.py")
    assert spec is not None
    assert spec.loader is not None
    copy: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    digest: Callable[..., str] = copy.code_digest
    return digest


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("stages/trainer", ["finetune"]),
        ("stages/merge", ["average", "merge"]),
        ("stages/perplexity", ["evaluate"]),
        ("stages/generate", ["evaluate", "time"]),
        ("stages/timing", ["time"]),
        ("study/randomness", ["finetune", "average", "merge", "evaluate", "time", "benchmark"]),
        ("system/determinism", ["finetune", "average", "merge", "evaluate", "time", "benchmark"]),
        ("stages/checkpoint", ["finetune"]),
        ("assets/base_models", ["finetune", "average", "merge", "evaluate", "time", "benchmark"]),
        ("system/safetensors_file", ["finetune", "average", "merge", "evaluate", "time", "benchmark"]),
        ("records/record", []),
        ("records/record_schema", []),
        ("analysis/integrity", []),
        ("render/tables/write", []),
        ("render/tables/paper_tables", []),
        ("results/collect", []),
        ("execution/process_pool", []),
        ("api/progress", []),
        ("cli/main", []),
        ("cli/commands/stage", []),
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

from qlora_repeat.study.trial import Trial

SIZE = 30  # as many as there are


def told(trial: Trial, size: int = 1) -> str:
    """Tells it."""
    # A word about it.
    return f"{trial.name} of {size * 2}"
'''


def made_stale(package: Path, old: str, new: str) -> list[str]:
    """Return the stages whose code digest changes with this text of a module."""
    assert old in MODULE
    (package / "stages" / "timing.py").write_text(MODULE)
    before = digests(package)
    (package / "stages" / "timing.py").write_text(MODULE.replace(old, new))
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
def test_comments_and_docstrings_make_nothing_stale(old: str, new: str, package: Path) -> None:
    assert made_stale(package, old, new) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [("int = 1", "int = 2"), (" of {", " in {"), ("* 2", "+ 2"), ("SIZE = 30", "SIZE = 31")],
    ids=["default value", "text", "operator", "number"],
)
def test_a_code_change_makes_its_stage_stale(old: str, new: str, package: Path) -> None:
    assert made_stale(package, old, new) == ["time"]


def test_every_form_of_import_is_followed(package: Path) -> None:
    (package / "render" / "deep.py").write_text("VALUE = 1\n")
    for line in (
        "from qlora_repeat.render.deep import VALUE",
        "from qlora_repeat.render import deep",
        "import qlora_repeat.render.deep",
        "def late():\n    from qlora_repeat.render.deep import VALUE",
    ):
        (package / "stages" / "timing.py").write_text(f"{line}\n")
        (package / "render" / "deep.py").write_text("VALUE = 1\n")
        before = digests(package)
        (package / "render" / "deep.py").write_text("VALUE = 2\n")
        after = digests(package)
        assert [stage for stage in before if before[stage] != after[stage]] == ["time"], line


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("from qlora_repeat.records.gone import VALUE", "qlora_repeat.records.gone"),
        ("from qlora_repeat.records import gone", "qlora_repeat.records.gone"),
        ("import qlora_repeat.gone", "qlora_repeat.gone"),
    ],
)
def test_a_module_that_does_not_exist_is_an_error(line: str, missing: str, package: Path) -> None:
    (package / "stages" / "timing.py").write_text(f"def late():\n    {line}\n")
    with pytest.raises(ModuleNotFoundError, match=rf"^{missing}: the kit has no such module$"):
        digests(package)


def test_a_name_of_a_module_that_does_not_exist_is_an_error(package: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^qlora_repeat.stages.gone: "):
        code_digest_of(package)("stages.gone")


def test_packages_have_no_code_of_their_own() -> None:
    """Check `__init__` files; no digest includes them, so a change to code there makes nothing stale."""
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(docstring, ast.Expr), path
            assert isinstance(docstring.value, ast.Constant), path


STALE = {
    "finetune": {
        "finetune": ["code"],
        "merge": ["the finetune stage"],
        "evaluate": ["the merge stage"],
        "time": ["the merge stage"],
    },
    "merge": {"merge": ["code"], "evaluate": ["the merge stage"], "time": ["the merge stage"]},
    "evaluate": {"evaluate": ["code"]},
    "timing": {"time": ["code"]},
}
"""Stages that a change to the module of a stage makes stale, and the reason."""


@pytest.mark.parametrize("module", STALE)
def test_a_changed_line_in_a_stage_makes_its_records_stale(module: str, package: Path, finished: Lab) -> None:
    path = package / "stages" / f"{module}.py"
    path.write_text(
        path.read_text(encoding="utf-8").replace("\n    return ", "\n    assert True\n    return ", 1)
    )
    script = """
import json, sys
from pathlib import Path
from qlora_repeat.records.trial_state import stage_states
from qlora_repeat.study.loading import open_workspace
study, runs, cache = sys.argv[1:]
workspace = open_workspace(study, runs=Path(runs), cache=Path(cache))
states = stage_states(workspace.trial("tiny-neox/adamw-8bit/1"))
print(json.dumps({stage: state.changed for stage, state in states.items() if state.state != "done"}))
"""
    where = [str(each) for each in (finished.study, finished.runs, finished.cache)]
    command = [sys.executable, "-c", script, *where]
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == STALE[module]


def test_the_kits_folder_makes_nothing_stale(package: Path) -> None:
    assert digests(package) == digests(PACKAGE)


@pytest.mark.parametrize("kind", ["fifo", "link", "endless", "folder", "large"])
def test_only_a_regular_file_of_limited_size_is_read(kind: str, tmp_path: Path) -> None:
    """Neither wait for a FIFO, nor follow a link, which could lead anywhere, also to an endless device."""
    path = tmp_path / "evaluate.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(10**12)
    else:
        write_record(tmp_path / "elsewhere.json", RECORD)
        path.symlink_to("/dev/zero" if kind == "endless" else tmp_path / "elsewhere.json")
    with pytest.raises(MissingError, match=r"evaluate\.json: not a readable record \("):
        read_record(path)
    if kind != "large":
        kept = KeptFile("0" * 64, path.stat().st_size)
        assert damaged_file(path, kept) == f"{path}: not a regular file"
        with pytest.raises(UsageError, match=r"evaluate\.json: not a readable trace \("):
            read_trace(path)
        with pytest.raises((MissingError, UsageError), match=r"evaluate\.json"):
            read_results(path)
        assert read_sealed(path) is None
        assert not begins_so(path, 0, sha256(b"").hexdigest())
