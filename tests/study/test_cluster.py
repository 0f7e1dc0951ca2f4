"""Settings of a study, options and the user's file say what jobs request from a scheduler."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.places import at
from support.tiny import write_study

from qlora_repeat.cli.main import cli
from qlora_repeat.errors import UsageError
from qlora_repeat.slurm.queue import partition_minutes
from qlora_repeat.study.cluster import Cluster, minutes_of, over, read_user_file
from qlora_repeat.study.loading import load_study

TABLE = """
[cluster]
partition = "gpu"
minutes = 90
sbatch = { mail-type = "END", nice = 5 }

[quantization]"""


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:30", 91),
        ("1:30:00", 90),
        ("2-12", 3600),
        ("2-12:30", 3630),
        ("1-0:0:1", 1441),
    ],
)
def test_time_limits_are_in_the_formats_of_sbatch(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "0", "0-0"])
def test_an_invalid_time_limit_gives_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--time"):
        minutes_of(text)


def test_options_override_the_settings_of_a_study(tmp_path: Path) -> None:
    study = load_study(str(write_study(tmp_path, ("[quantization]", TABLE))))
    asked = over(study.cluster, Cluster(partition="long", sbatch={"nice": 0}))
    assert (asked.partition, asked.minutes) == ("long", 90)
    assert asked.sbatch == {"mail-type": "END", "nice": 0}


def test_the_job_with_tables_asks_for_less(study_file: Path, tmp_path: Path) -> None:
    arguments = ["submit", str(study_file), "--dry-run", "--runs", str(tmp_path / "runs"), "--partition=gpu"]
    arguments += ["--gpus=1", "--time=90", "--memory=8", "--sbatch=constraint=a100", "--sbatch=nice=5"]
    arguments += ["--tables=partition=cpu", "--tables=constraint=false"]
    done = CliRunner().invoke(cli, arguments)
    (line,) = [each for each in done.output.splitlines() if each.startswith("additional_parameters")]
    assert re.split(" {2,}", line)[1:] == [
        "requeue, constraint=a100, nice=5",
        "requeue, nice=5",
    ]
    assert re.search(r"^partition +gpu +cpu$", done.output, re.MULTILINE)


def test_an_image_may_be_named_from_the_home_folder(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "kit.sif").write_bytes(b"")
    arguments = [
        "submit",
        str(study_file),
        "--dry-run",
        "--runs",
        str(tmp_path / "runs"),
        "--image=~/kit.sif",
    ]
    assert CliRunner().invoke(cli, arguments).exit_code == 0


def test_the_shortest_limit_of_several_partitions_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/sh\necho 'long 2-00:00:00\nshort* 1:00:00\never infinite'\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    asked = ("long,short", "long", "ever,long", "ever", None, "none")
    assert [partition_minutes(each) for each in asked] == [60, 2880, 2880, None, 60, None]


def test_settings_of_a_study_make_no_trial_stale(tmp_path: Path) -> None:
    from qlora_repeat.records.stage_inputs import stage_settings
    from qlora_repeat.study.trial import STAGES

    (tmp_path / "other").mkdir()
    plain = load_study(str(write_study(tmp_path)))
    other = load_study(str(write_study(tmp_path / "other", ("[quantization]", TABLE))))
    for one, two in zip(at(plain, tmp_path).trials(), at(other, tmp_path).trials(), strict=True):
        assert [stage_settings(one, stage) for stage in STAGES] == [
            stage_settings(two, stage) for stage in STAGES
        ]


def test_the_users_file_is_read_and_its_mistakes_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cluster.toml"
    monkeypatch.setenv("QLORA_REPEAT_CLUSTER", str(path))
    with pytest.raises(UsageError, match=r"cluster\.toml, which does not exist"):
        read_user_file()
    path.write_text('account = "lab"\ngpu_type = "a100"\n')
    assert read_user_file() == Cluster(account="lab", gpu_type="a100")
    for content, words in (
        ('acount = "lab"', "unknown key acount; did you mean account?"),
        ("minutes = 0", "key minutes: expected more than 0"),
        ("gpus = -1", "key gpus"),
        ("[", "not a readable TOML file"),
    ):
        path.write_text(content)
        with pytest.raises(UsageError, match=words):
            read_user_file()


def test_without_a_users_file_nothing_is_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QLORA_REPEAT_CLUSTER", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert read_user_file() == Cluster()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus", "many"], "--gpus many: expected N or TYPE:N"),
        (["--time", "soon"], "--time soon: give minutes"),
        (["--image", "none.sif"], "--image none.sif: no such file"),
    ],
)
def test_mistakes_give_one_line(options: list[str], words: str, study_file: Path, tmp_path: Path) -> None:
    arguments = ["submit", str(study_file), "--dry-run", "--runs", str(tmp_path), *options]
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith(words)


def test_a_dry_run_shows_what_would_be_requested(study_file: Path, tmp_path: Path) -> None:
    arguments = ["submit", str(study_file), "--dry-run", "--runs", str(tmp_path / "runs")]
    arguments += ["--gpus", "a100:2", "--partition", "gpu", "--time", "1:30:00", "--memory", "8"]
    done = CliRunner().invoke(cli, [*arguments, "--concurrent", "4", "--sbatch", "exclusive"])
    assert done.exit_code == 0, done.output
    output = dict(line.split("  ", 1) for line in done.output.splitlines() if "  " in line)
    for key, value in {
        "partition": "gpu",
        "gres": "gpu:a100:2",
        "time": "90",
        "mem": "7630M",
        "array_parallelism": "4",
        "additional_parameters": "requeue, exclusive",
    }.items():
        assert output[key].split("  ")[0].strip().startswith(value) or value in output[key], (key, output)
    assert "tiny-neox/base, tiny-neox/adamw-8bit/1" in done.output
    assert not (tmp_path / "runs").exists()


def test_without_slurm_nothing_is_submitted(
    study_file: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_repeat.errors import MissingError

    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ["submit", str(study_file), "--runs", str(tmp_path / "runs"), "--cache", str(cache)]
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, MissingError)
    assert str(done.exception).startswith("sbatch: not found; `submit` is for a login node")
