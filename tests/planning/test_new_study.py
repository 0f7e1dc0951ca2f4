"""`init` writes a study file that runs, explains its choices, and overwrites nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.checkout import copy_folder, kit
from support.tiny import write_model

from qlora_repeat.cli.main import cli
from qlora_repeat.errors import KitError
from qlora_repeat.planning.new_study import choose_length
from qlora_repeat.study.loading import load_study

QUESTIONS = [
    {"question": f"What is {each} plus {each}?", "id": str(each), "answer": f"It is {2 * each}."}
    for each in range(200)
]
CHATS = [
    {"conversations": [{"from": "human", "value": f"What is {each}?"}, {"from": "gpt", "value": "A number."}]}
    for each in range(30)
]
CHAT_TEMPLATE = (
    "{% for each in messages %}<|{{ each.role }}|>{{ each.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    write_model(folder)
    return folder


@pytest.fixture
def here(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, which has only a model and rows."""
    copy_folder(model, tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QLORA_REPEAT_LOCK", raising=False)
    return tmp_path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def init(*options: str, name: str = "mine", model: str = "model", data: str = "rows.jsonl") -> Result:
    return CliRunner().invoke(cli, ["init", name, "--model", model, "--data", data, "--cpu", *options])


def test_a_study_is_written_from_a_folder_and_a_file(here: Path) -> None:
    done = init("--trials", "2")
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.output.endswith("mine.toml: written. Read it, then: qlora-repeat run mine\n")
    study, text = load_study("mine"), (here / "mine.toml").read_text("utf-8")
    used, data = study.models["mine"], study.data["rows"]
    assert (study.trials, study.precision.compute, study.precision.merged) == (2, "float32", "float16")
    assert (data.task, data.columns) == (
        "question-answering",
        {"instruction": "question", "answer": "answer"},
    )
    assert used.target_modules == ["q_proj", "v_proj"]
    assert (used.template, used.stop) == ("{instruction}\n{answer}<|endoftext|>", "<|endoftext|>")
    assert (used.training.max_length, used.training.steps) == (32, 32)
    assert "k_proj, o_proj, gate_proj, up_proj, down_proj" in text
    assert re.search(r"max_length = 32 # tokens median \d+, 95 % \d+, longest \d+; none is cut", text)
    assert text.startswith("#:schema ./study.schema.json\n") and (here / "study.schema.json").is_file()
    assert "not used: id" in text and len(text.splitlines()) < 40


def test_the_study_that_was_written_runs(here: Path) -> None:
    assert init("--trials", "2").exit_code == 0
    text = (here / "mine.toml").read_text("utf-8").replace("steps = 32", "steps = 2")
    (here / "mine.toml").write_text(text.replace("examples = 48", "examples = 4"))
    done = kit("run", here / "mine.toml", "--runs", here / "runs", "--cache", here / "cache", "--jobs", 1)
    assert done.returncode == 0, done.stderr
    assert (here / "runs/mine/results.jsonl").is_file()


def test_no_file_is_overwritten(here: Path) -> None:
    (here / "mine.toml").write_text("mine")
    (here / "study.schema.json").write_text("{}")
    failed = init()
    assert isinstance(failed.exception, KitError) and "mine.toml: already exists" in str(failed.exception)
    assert (here / "mine.toml").read_text() == "mine"
    (here / "mine.toml").rename(here / "elsewhere")
    (here / "mine.toml").symlink_to(here / "elsewhere")
    assert init().exit_code != 0 and (here / "elsewhere").read_text() == "mine"
    assert init(name="other").exit_code == 0
    assert (here / "study.schema.json").read_text() == "{}"


def test_texts_of_any_one_column_are_for_text_generation(here: Path) -> None:
    write_rows(here / "rows.jsonl", [{"song": f'A "song" {{of}} {each}.'} for each in range(30)])
    assert init().exit_code == 0
    study = load_study("mine")
    assert (study.data["rows"].task, study.data["rows"].columns) == ("text-generation", {"quote": "song"})
    assert study.models["mine"].template == "{quote}"


def test_columns_can_be_given(here: Path) -> None:
    write_rows(here / "rows.jsonl", [{"a": "Why?", "b": "So.", "c": "x"} for _ in range(30)])
    failed = init()
    assert "which of its columns (a, b, c) to learn is not clear" in str(failed.exception)
    assert init("--column", "instruction=a", "--column", "answer=b").exit_code == 0
    assert load_study("mine").data["rows"].columns == {"instruction": "a", "answer": "b"}
    assert init("--column", "quote=c", name="other").exit_code == 0
    assert load_study("other").data["rows"].task == "text-generation"


WRONG = {
    "no model": (
        {"model": "nowhere"},
        "nowhere: there is no such folder; expected a folder with config.json",
    ),
    "an empty folder": ({"model": "empty"}, "empty: it has no config.json"),
    "no rows": (
        {"data": "nowhere.jsonl"},
        "nowhere.jsonl: there is no such file; expected a file that ends in",
    ),
    "a missing file in a folder": ({"data": "model/rows.jsonl"}, "model/rows.jsonl: there is no such file"),
    "a folder of rows": ({"data": "empty"}, "empty: it is no file; expected a file that ends in"),
    "semicolons": ({"data": "semicolons.csv"}, "semicolons.csv: semicolons separate its columns"),
    "chats for a model without": ({"data": "chats.jsonl"}, "the tokenizer of the base has no chat template"),
    "chats without an answer": ({"data": "asked.jsonl"}, "row 1, column messages: the last message is not"),
    "odd columns": ({"data": "odd.jsonl"}, "(a⏎b, \\u{202e}c) to learn is not clear"),
    "no rows at all": ({"data": "none.jsonl"}, "none.jsonl: cannot be read as json (it is empty)"),
    "another format": ({"data": "model/config.json.bak"}, "rows are read from"),
    "few rows": ({"data": "few.jsonl"}, "it has 3 rows; expected at least 5"),
    "a name with capitals": ({"name": "Mine"}, "Mine: expected lowercase letters"),
    "a path": ({"name": "../mine"}, "../mine: expected lowercase letters"),
    "the paper's numbers": ({"name": "published"}, "published: expected"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_unsuitable_ends_in_one_line_and_leaves_no_file(case: str, here: Path) -> None:
    (here / "empty").mkdir()
    (here / "model/config.json.bak").write_text("{}")
    write_rows(here / "few.jsonl", QUESTIONS[:3])
    write_rows(here / "chats.jsonl", CHATS)
    write_rows(here / "asked.jsonl", [{"messages": chat["conversations"][:1]} for chat in CHATS])
    write_rows(here / "odd.jsonl", [{"a\nb": "Why?", "\u202ec": "So."}] * 9)
    (here / "none.jsonl").touch()
    (here / "semicolons.csv").write_text("question;answer\n" + "Why?;So.\n" * 9)
    given, words = WRONG[case]
    before = sorted(here.rglob("*"))
    failed = init(**given)
    assert isinstance(failed.exception, KitError), failed.output
    assert words in str(failed.exception) and "\n" not in str(failed.exception)
    assert sorted(here.rglob("*")) == before


def test_the_study_and_its_files_can_be_moved_together(here: Path) -> None:
    assert init(model=str(here / "model"), data=str(here / "rows.jsonl")).exit_code == 0
    assert str(here) not in (here / "mine.toml").read_text("utf-8")


def test_a_model_that_names_code_is_refused(here: Path) -> None:
    config = json.loads((here / "model/config.json").read_text())
    (here / "model/config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    assert "auto_map names Python code" in str(init().exception)


def with_template(folder: Path, template: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


def test_the_template_of_a_chat_model_is_its_own(here: Path) -> None:
    with_template(here / "model", CHAT_TEMPLATE)
    assert init().exit_code == 0
    used = load_study("mine").models["mine"]
    assert (used.template, used.stop, used.special_tokens) == ("chat", "<|endoftext|>", False)
    write_rows(here / "chats.jsonl", CHATS)
    done = init(data="chats.jsonl", name="chats")
    assert "conversations (messages)" in done.output, done.exception
    data = load_study("chats").data["rows"]
    assert (data.task, data.columns) == ("question-answering", {"messages": "conversations"})


def test_a_template_that_refuses_a_question_is_not_used(here: Path) -> None:
    with_template(here / "model", "{{ raise_exception('no roles') }}")
    assert init().exit_code == 0
    assert load_study("mine").models["mine"].template == "{instruction}\n{answer}<|endoftext|>"


@pytest.mark.parametrize(
    ("lengths", "limit", "length", "cut"),
    [
        ([10] * 100, None, 32, 0),
        ([10] * 99 + [60], None, 64, 0),
        ([10] * 299 + [5000], None, 32, 1),
        ([10] * 50 + [200] * 50, 128, 128, 50),
        ([400] * 10, None, 256, 10),
    ],
)
def test_the_length_fits_all_rows_but_a_few_long_ones(
    lengths: list[int], limit: int | None, length: int, cut: int
) -> None:
    assert choose_length(lengths, limit, on_gpu=False) == (length, cut)
