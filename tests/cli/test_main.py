"""The command line: its help, its exit codes, and its error messages."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support.checkout import ROOT, kit
from support.places import at
from support.tiny import write_study

from qlora_repeat import __version__
from qlora_repeat.cli.main import COMMANDS, GROUPS, HIDDEN, cli
from qlora_repeat.study.loading import load_study

HEAVY = {"torch", "transformers", "datasets", "bitsandbytes", "peft", "accelerate", "numpy", "matplotlib"}
HEAVY |= {"scipy"}


def examples(*command: str) -> list[str]:
    """Return the example commands in the help of a command."""
    shown = CliRunner().invoke(cli, [*command, "--help"])
    assert shown.exit_code == 0
    lines = re.split(r"\n  Examples?:\n", shown.output)[1].partition("\n\n")[0].splitlines()
    return [each for line in lines for each in line.strip().split(" && ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_has_help_with_an_example(command: str) -> None:
    found = examples(command)
    assert found
    assert all(example.startswith(f"qlora-repeat {command} ") for example in found)
    helps = [CliRunner().invoke(cli, [command, option]).output for option in ("-h", "--help")]
    assert helps[0] == helps[1]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=str)
def test_examples_are_valid_and_name_existing_trials_and_studies(command: list[str]) -> None:
    known = [trial.name for trial in at(load_study("pocket"), Path("runs")).trials()]
    known += [f"pocket:{name.rpartition('/')[0]}" for name in known]
    known += ["pocket", "paper", "published", "a.csv", "b.csv"]
    for example in examples(*command):
        _, *words = shlex.split(example)
        with click.Context(cli, info_name="qlora-repeat", **cli.context_settings) as context:
            name, called, rest = cli.resolve_command(context, words)
            assert called is not None
            parsed = called.make_context(name, list(rest), parent=context)
        named = ("name", "study_file", "trial", "first", "second", "compare", "archive")
        given = {str(parsed.params[key]) for key in named if parsed.params.get(key)}
        given |= set(parsed.params.get("laboratories", ()))
        if name == "init":
            continue  # its study is new
        assert (given or name in ("selftest", "power")) and {
            name for name in given if not name.endswith(".zip")
        } <= set(known)


def test_help_lists_every_subcommand_and_the_exit_codes() -> None:
    shown = kit("--help")
    assert shown.returncode == 0
    assert "Example:" in shown.stdout
    assert [name for name in COMMANDS if f"\n  {name} " not in shown.stdout] == [*HIDDEN]
    assert [title for title in GROUPS if f"\n{title}:\n" not in shown.stdout] == []
    for code in ("0", "2", "3", "4", "5", "130"):
        assert f" {code} " in shown.stdout.partition("Exit codes:")[2]


@pytest.mark.parametrize("arguments", [["--help"], ["show"], ["show", "pocket"]])
def test_a_full_disk_behind_standard_output_is_named(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        script = f"import sys; from qlora_repeat.cli.main import main; sys.argv[1:] = {arguments}; main()"
        done = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == (
        "Error: standard output (/dev/full): No space left on device; free some space there, or write it to "
        "another file\n"
    )
    assert done.returncode == 3


def test_version() -> None:
    shown = kit("--version")
    assert (shown.returncode, shown.stdout.strip()) == (0, f"qlora-repeat, version {__version__}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["show"],
        ["show", "STUDY"],
        ["status", "STUDY"],
        ["collect", "STUDY"],
        ["fetch", "--help"],
        ["run", "--help"],
        ["tables", "--help"],
        ["tables", "STUDY"],
        ["figures", "--help"],
        ["figures", "STUDY"],
        ["paper", "--help"],
        ["plan", "--help"],
        ["pack", "--help"],
        ["unpack", "--help"],
        ["interlab", "--help"],
        ["tables", "published", "--compare", "published", "--out", "OUT"],
    ],
    ids=" ".join,
)
def test_commands_that_need_no_model_load_no_torch(
    arguments: list[str], study_file: Path, tmp_path: Path
) -> None:
    places = {"STUDY": str(study_file), "OUT": str(tmp_path / "out")}
    given = [places.get(argument, argument) for argument in arguments]
    if arguments[0] in ("status", "collect", "tables", "figures") and "--help" not in arguments:
        given += ["--runs", str(tmp_path / "runs")]
    script = (
        "import sys; from qlora_repeat.cli.main import main\n"
        "try: main()\n"
        "finally: print('loaded:', *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *given], cwd=ROOT, capture_output=True, text=True)
    loaded = set(done.stderr.partition("loaded:")[2].split())
    assert "click" in loaded
    tests_spread = arguments[:2] == ["tables", "published"]  # the permutation test of Table S1b needs numpy
    assert loaded & HEAVY == ({"numpy"} if tests_spread else set())
    assert done.returncode == (3 if arguments[0] in ("tables", "figures") and arguments[1] == "STUDY" else 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("tabels", 2, "No such command 'tabels'; did you mean 'tables'?"),
        ("stauts", 2, "No such command 'stauts'; did you mean 'status'?"),
        ("xyzzy", 2, "No such command 'xyzzy'; `qlora-repeat --help` lists them."),
        ("status --studdy x", 2, "No such option"),
        ("run STUDY --jobs 0", 2, "--jobs"),
        ("run STUDY --jobs many", 2, "--jobs"),
        ("status STUDY --runs STUDY", 2, "is a file"),
        (
            "status nonesuch",
            3,
            "nonesuch: no such study file; looked for nonesuch.toml, studies/nonesuch.toml",
        ),
        ("show nonesuch", 3, "no such study file"),
        ("run nonesuch", 3, "no such study file"),
        ("fetch nonesuch", 3, "no such study file"),
        ("tables nonesuch", 3, "no such study file"),
        ("tables STUDY --runs RUNS", 3, "no collected results; run `qlora-repeat collect STUDY --runs RUNS`"),
        ("tables --results RUNS/none.jsonl", 3, "RUNS/none.jsonl: no collected results"),
        ("tables --results RUNS", 2, "is a directory"),
        ("figures nonesuch", 3, "no such study file"),
        (
            "figures STUDY --runs RUNS",
            3,
            "no collected results; run `qlora-repeat collect STUDY --runs RUNS`",
        ),
        ("paper nonesuch", 3, "no such study file"),
        ("pack nonesuch", 3, "no such study file"),
        (
            "pack STUDY --runs RUNS",
            3,
            "no trial to pack: 8 missing; `qlora-repeat status STUDY --runs RUNS` says why",
        ),
        ("pack STUDY --out RUNS", 2, "--out RUNS: give a file that ends in .zip"),
        ("unpack RUNS/none.zip", 3, "RUNS/none.zip: no such archive; `qlora-repeat pack` writes one"),
        ("unpack STUDY --to BESIDE", 2, "BESIDE: already exists; give another folder with --to"),
        ("interlab", 2, "Missing argument '[NAME=]RESULTS...'"),
        ("interlab published", 2, "give the results of at least two laboratories to compare"),
        ("interlab published a=RUNS/none.jsonl", 3, "RUNS/none.jsonl: no collected results"),
        ("check RUNS/none.zip", 3, "RUNS/none.zip: no such archive"),
        (
            "paper --out RUNS",
            3,
            "RUNS/all.tex: no tables to compile; run `qlora-repeat tables pocket --out RUNS`",
        ),
        ("finetune", 2, "or --all; `qlora-repeat show pocket` lists them"),
        ("merge tiny-neox/adamw-8bit/1 --all --study STUDY", 2, "give one TRIAL"),
        ("evaluate tiny-neox --study STUDY", 2, "such as tiny-neox/adamw-8bit/1"),
        ("time neox/adamw-8bit/1 --study STUDY", 2, "has the models tiny-neox, tiny-llama-chat"),
        ("finetune tiny-neox/sgd/1 --study STUDY", 2, "has the optimizers adamw-8bit, adamw-32bit"),
        ("trial tiny-neox/adamw-8bit/3 --study STUDY", 2, "numbers its trials 1 to 2"),
        ("trial", 2, "Missing argument 'TRIAL'"),
        ("trial tiny-neox/adamw-8bit/1 --study nonesuch", 3, "no such study file"),
    ],
)
def test_a_mistake_gives_an_exit_code_and_an_error_of_one_line(
    arguments: str, code: int, words: str, study_file: Path, tmp_path: Path
) -> None:
    places = {"STUDY": str(study_file), "RUNS": str(tmp_path / "runs"), "BESIDE": str(study_file.parent)}
    (tmp_path / "runs").mkdir()
    for name, place in places.items():
        arguments, words = arguments.replace(name, place), words.replace(name, place)
    done = kit(*arguments.split())
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    "command", ["show", "status", "collect", "tables", "figures", "paper", "fetch", "run"]
)
def test_every_subcommand_reports_a_mistake_in_the_study_file(command: str, tmp_path: Path) -> None:
    path = write_study(tmp_path, ("trials = 2", "trials = 0"))
    done = kit(command, path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: {path}: line 4: key trials: expected more than 0 (found 0)\n"


def test_an_unreadable_record_is_named_and_other_trials_are_shown(study_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs/tiny/tiny-neox/adamw-8bit/trial-1/finetune.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    for command, code in (("status", 0), ("collect", 0), ("check", 3)):
        done = kit(command, study_file, "--runs", tmp_path / "runs")
        assert done.returncode == code, done.stderr
        assert f"{path}: not a readable record (" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_a_study_that_has_not_run_has_a_row_for_each_trial(study_file: Path, tmp_path: Path) -> None:
    shown = kit("status", study_file, "--runs", tmp_path / "runs")
    assert (shown.returncode, shown.stderr) == (0, "")
    *rows, _, counted = shown.stdout.splitlines()[2:]
    assert counted == "8 trials: 8 missing; 2 tests of bases: 2 missing"
    states = [line.split() for line in rows]
    assert [state.count("missing") for state in states] == [1, 2, 2, 1, 2, 2], "a base's tests, then its arms"
    collected = kit("collect", study_file, "--runs", tmp_path / "runs")
    assert collected.returncode == 0
    assert collected.stdout == f"{tmp_path}/runs/tiny/results.jsonl: 0 of 8 trials done\n"
    assert len((tmp_path / "runs/tiny/results.jsonl").read_text().splitlines()) == 8


def test_show_lists_the_studies_and_trials(study_file: Path) -> None:
    assert "pocket: pocket study, 56 trials (studies/pocket.toml)" in kit("show").stdout.splitlines()
    head, *trials = [line for line in kit("show", study_file).stdout.splitlines() if line.startswith("# ")]
    assert head == f"# tiny: tiny study, 8 trials ({study_file})"
    arms = [f"{model}/adamw-{bits}bit" for model in ("tiny-neox", "tiny-llama-chat") for bits in (8, 32)]
    assert trials == [f"# {arm}/1 to 2" for arm in arms]


def test_the_study_can_be_set_in_the_environment(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY", str(study_file))
    done = kit("trial", "x/y/1")
    assert "has the models tiny-neox, tiny-llama-chat" in done.stderr


IMPORTS = """
import subprocess, sys
from multiprocessing import resource_tracker
from qlora_repeat.cli.main import main
try:
    main()
except SystemExit:
    pass
resource_tracker.ensure_running()  # as the server of workers, it starts with python -c
subprocess.run([sys.executable, "-m", "json.tool", "/dev/null"], capture_output=True)
"""


def test_no_process_imports_modules_from_the_current_folder(tmp_path: Path) -> None:
    """A stranger's study may lie in a folder with Python files."""
    (tmp_path / "here").mkdir()
    for name in ("json", "multiprocessing"):
        (tmp_path / "here" / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    (tmp_path / "command.py").write_text(IMPORTS)
    command = [sys.executable, str(tmp_path / "command.py"), "--version"]
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True)
    assert __version__ in done.stdout
    assert not (tmp_path / "imported").exists()
