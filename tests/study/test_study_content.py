"""A study file leaves out what has a default, extends another study, and is shown completely."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.checkout import ROOT
from support.tiny import tiny_text, write_study

from qlora_repeat.archive.zip_file import CRATE
from qlora_repeat.cli.main import cli
from qlora_repeat.errors import KitError, MissingError, UsageError
from qlora_repeat.study.complete_file import complete_text
from qlora_repeat.study.loading import load_study, open_workspace, read_study
from qlora_repeat.study.toml_file import key_lines, read_toml
from qlora_repeat.system.package_data import kit_path

SHORT = """
[bases.model]
folder = "model"
[data.rows]
task = "question-answering"
file = "rows.jsonl"
[models.mine]
target_modules = ["q_proj"]
"""


def written(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_ten_lines_are_a_study(tmp_path: Path) -> None:
    study, paper = load_study(written(tmp_path / "mine.toml", SHORT)), load_study("paper")
    model, data = study.models["mine"], study.data["rows"]
    assert (study.name, study.title, model.title, model.base, model.data) == (
        "mine",
        "mine",
        "mine",
        "model",
        "rows",
    )
    assert (data.source, data.rows, data.columns) == (
        "file",
        None,
        {"instruction": "instruction", "answer": "answer"},
    )
    assert (model.template, data.max_new_tokens) == ("{instruction}\n{answer}", 100)
    same = ("trials", "threads", "optimizers", "profile", "profiles", "quantization", "lora", "generation")
    assert [key for key in same if getattr(study, key) != getattr(paper, key)] == []
    assert model.training == replace(paper.models["gpt-neox-20b"].training, warmup_steps=0)
    assert data.file is not None and data.file.file == str(tmp_path / "rows.jsonl")


def test_a_text_stands_for_the_table_of_a_source(tmp_path: Path) -> None:
    text = SHORT.replace('folder = "model"', 'hub = "acme/small@v1"').replace(
        'file = "rows.jsonl"', 'hub = "acme/rows"'
    )
    study = load_study(written(tmp_path / "mine.toml", text))
    base, data = study.bases["model"].hub, study.data["rows"].hub
    assert base is not None and (base.repository, base.revision) == ("acme/small", "v1")
    assert data is not None and (data.repository, data.revision) == ("acme/rows", "main")


@pytest.mark.parametrize(
    "name", ["pocket", "paper", "collapse", "tasks", "paper@bitwise@adamw-8bit@3-steps-4-rows"]
)
def test_what_show_prints_is_the_same_study(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["show", name])
    shown = written(tmp_path / f"{name.partition('@')[0]}.toml", done.output)
    assert load_study(shown) == replace(load_study(name), variant="")
    assert load_study(str(tmp_path / Path(shown).name)) == load_study(shown)


def test_invisible_characters_in_what_show_prints_stay_the_same(tmp_path: Path) -> None:
    text = r'template = "{instruction}\u00a0\u202e\t\U000e0020\\ \"{answer}"' + "\n"
    path = written(tmp_path / "mine.toml", SHORT + text)
    shown = written(tmp_path / "shown/mine.toml", CliRunner().invoke(cli, ["show", path]).output)
    template = load_study(path).models["mine"].template
    assert load_study(shown).models["mine"].template == template
    assert template == '{instruction}\u00a0\u202e\t\U000e0020\\ "{answer}'


def test_show_says_where_each_value_comes_from(tmp_path: Path) -> None:
    written(tmp_path / "small.toml", SHORT + "[training]\nmax_length = 64\n")
    path = written(tmp_path / "mine.toml", 'extends = "small"\n\n[lora]\nr = 4\n')
    study, content = read_study(path)
    shown = complete_text(study, content, {("data", "rows", "rows"): 12}, "mine.lock").splitlines()
    wanted = [
        "r = 4 # mine.toml, line 4", "alpha = 32 # default", "rows = 12 # mine.lock",
        'source = "file" # default',
        "max_length = 64 # small.toml, line 10", 'task = "question-answering" # small.toml, line 5',
        'title = "mine" # default', "batch_size = 1 # default",
    ]  # fmt: skip
    assert [line for line in wanted if line not in shown] == []


def test_each_line_of_a_key_is_known() -> None:
    first = '# c\na = """\n[no]\nb = 1 # "\n"""\nc.d = [\n  1, # ]\n  "]",\n]\n'
    text = first + "[t.\"x.y\"]\n'q' = { z = 1 }\n[[u]]\nv = 1\n"
    assert key_lines(text) == {
        ("a",): 2, ("c",): 6, ("c", "d"): 6, ("t",): 10, ("t", "x.y"): 10, ("t", "x.y", "q"): 11, ("u",): 12,
        ("u", "v"): 13,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["pocket", "paper", "collapse", "tasks"])
def test_the_lines_of_keys_are_those_of_the_studies(name: str) -> None:
    text = (ROOT / f"studies/{name}.toml").read_text("utf-8")
    lines, content = text.splitlines(), read_toml(ROOT / f"studies/{name}.toml")
    for key, number in key_lines(text).items():
        assert key[-1] in lines[number - 1]
    tables = {key[:2] for key in key_lines(text) if key[0] == "models"}
    assert tables == {("models",), *(("models", model) for model in content["models"])}


def test_a_study_extends_another(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    own = """
extends = "tiny"
trials = 3
[training]
epochs = 1.5
[models]
tiny-llama-chat = false
[models.more]
base = "tiny-neox"
data = "quotes"
target_modules = ["dense"]
"""
    study, tiny = load_study(written(tmp_path / "mine.toml", own)), load_study(str(path))
    assert list(study.models) == ["tiny-neox", "more"]
    assert (study.trials, study.title, study.threads, study.evaluation) == (
        3,
        "mine",
        tiny.threads,
        tiny.evaluation,
    )
    training = study.models["tiny-neox"].training
    assert (training.steps, training.epochs, training.max_length) == (None, 1.5, 128)
    assert study.bases == tiny.bases
    assert load_study(f"{tmp_path / 'mine.toml'}@bitwise").profile == "bitwise"


def test_a_new_source_replaces_the_old_one_and_its_digests(tmp_path: Path) -> None:
    write_study(tmp_path)
    own = """
extends = "tiny"
[bases.tiny-neox]
folder = "model"
[data.quotes]
file = "rows.jsonl"
"""
    study = load_study(written(tmp_path / "mine.toml", own))
    data = study.data["quotes"]
    assert study.bases["tiny-neox"].gguf is None
    assert (data.source, data.rows, data.seed, data.sha256, data.max_new_tokens) == (
        "file",
        None,
        None,
        None,
        4,
    )


def test_files_of_the_other_study_are_found_beside_it(tmp_path: Path) -> None:
    written(tmp_path / "base/small.toml", SHORT)
    study = load_study(written(tmp_path / "mine/mine.toml", 'extends = "../base/small.toml"'))
    file, folder = study.data["rows"].file, study.bases["model"].folder
    assert file is not None and Path(file.file).resolve() == tmp_path / "base/rows.jsonl"
    assert folder is not None and Path(folder.path).resolve() == tmp_path / "base/model"


def test_an_own_study_named_like_one_of_the_kit_extends_it(tmp_path: Path) -> None:
    study = load_study(written(tmp_path / "pocket.toml", 'extends = "pocket"\ntrials = 2'))
    assert study.trials == 2 and len(study.models) == 4


CHAINS = {
    "itself": ({"a": 'extends = "a"'}, "line 1: key extends: a study cannot extend itself"),
    "a circle": ({"a": 'extends = "b"', "b": '\nextends = "a"'}, "b.toml: line 2: key extends: a extends"),
    "no such study": ({"a": 'extends = "nonesuch"'}, "line 1: key extends: nonesuch: no such study file"),
    "a number": ({"a": "extends = 3"}, "key extends: expected the name or path of a study"),
    "two lines": ({"a": 'extends = "a\\nb"'}, "key extends: character U+000A"),
    "a long name": ({"a": f'extends = "{"b" * 5000}"'}, "key extends: expected the name"),
    "too many": (
        {name: f'extends = "{after}"' for name, after in zip("abcdefgh", "bcdefghi", strict=True)},
        "key extends: expected at most 5 studies",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHAINS)
def test_what_cannot_be_extended_ends_in_one_line(case: str, tmp_path: Path) -> None:
    files, words = CHAINS[case]
    for name, text in files.items():
        written(tmp_path / f"{name}.toml", text)
    with pytest.raises(KitError) as caught:
        load_study(str(tmp_path / "a.toml"))
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_a_mistake_in_the_other_study_names_its_file_and_line(tmp_path: Path) -> None:
    written(tmp_path / "small.toml", SHORT.replace("folder", "file"))
    with pytest.raises(UsageError) as caught:
        load_study(written(tmp_path / "mine.toml", 'extends = "small"'))
    assert str(caught.value).endswith(
        "small.toml, line 3: unknown key bases.model.file; did you mean folder? (bases.model can have "
        "architecture, folder, gguf, hub, pretraining, tokenizer)"
    )


def test_a_strangers_study_extends_only_what_it_came_with_or_a_study_of_the_kit(tmp_path: Path) -> None:
    archive, own = tmp_path / "archive", tmp_path / "own.toml"
    written(archive / CRATE, "{}")
    written(own, SHORT)
    (archive / "studies").mkdir()
    write_study(archive / "studies")
    for name, models in (("tiny", 2), ("pocket", 4)):
        path = written(archive / "studies/theirs.toml", f'extends = "{name}"')
        assert len(load_study(path).models) == models
        assert open_workspace(path).from_archive
    for name in ("../../own.toml", str(own), "own"):
        with pytest.raises(MissingError, match="no such study file"):
            load_study(written(archive / "studies/theirs.toml", f'extends = "{name}"'))


def test_a_study_that_extends_a_strangers_is_kept_apart_and_requests_nothing(tmp_path: Path) -> None:
    written(tmp_path / "archive" / CRATE, "{}")
    table = '[cluster]\npartition = "theirs"\n'
    written(tmp_path / "archive/studies/tiny.toml", f"{tiny_text()}\n{table}")
    path = written(tmp_path / "mine.toml", 'extends = "archive/studies/tiny.toml"\n[cluster]\nqos = "mine"\n')
    workspace = open_workspace(path)
    assert workspace.from_archive and workspace.parents == (tmp_path / "archive/studies/tiny.toml",)
    assert (workspace.study.cluster.partition, workspace.study.cluster.qos) == (None, "mine")


def test_every_pattern_is_explained_with_an_example_that_it_allows() -> None:
    from qlora_repeat.study.json_schema import study_schema
    from qlora_repeat.system.typed_json import _WORDS

    def patterns(node: object) -> set[str]:
        if isinstance(node, list):
            return {each for item in node for each in patterns(item)}
        if not isinstance(node, dict):
            return set()
        own = {node["pattern"]} if isinstance(node.get("pattern"), str) else set()
        return own.union(node.get("patternProperties", {}), *map(patterns, node.values()))

    found = patterns(study_schema())
    assert len(found) > 8 and found <= _WORDS.keys()
    for pattern in found:
        example = re.search(r"such as (\S+)$", _WORDS[pattern])
        assert example is None or re.search(pattern, example[1]), pattern


def test_the_kits_studies_are_found() -> None:
    assert (kit_path("studies") / "pocket.toml").is_file()
