"""What the kit does with each kind of file that a stranger may have written, as its commands do it."""

import contextlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import pyarrow as pa
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.numpy import save_file
from support.checkout import ROOT
from support.laboratory import Lab, run
from support.made_attribution import made
from support.made_results import study
from support.mutated import (
    changed_bytes,
    changed_json,
    changed_lines,
    changed_member,
    changed_record,
    changed_tensors,
    changed_toml,
    packed,
    unpacked,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, PreTrainedTokenizerFast

from qlora_repeat.analysis.attribution.decompose import attribute
from qlora_repeat.analysis.attribution.measurements import Measurements, read_measured, write_attribution
from qlora_repeat.analysis.integrity import check_trial
from qlora_repeat.analysis.interlab import compare_laboratories, laboratory
from qlora_repeat.analysis.trial_diff import compare_trials, read_side
from qlora_repeat.analysis.verify.recorded_settings import missing_inputs, other_sources
from qlora_repeat.analysis.verify.rerun import compared, read_recorded
from qlora_repeat.analysis.verify.verdict import judge_rerun, tolerance_of
from qlora_repeat.api.results import results_of
from qlora_repeat.archive.check import check_archive
from qlora_repeat.archive.laboratory import read_laboratory
from qlora_repeat.archive.unpack import opened
from qlora_repeat.assets.base_models import SOURCE, hub_commit, is_miniature, load_tokenizer
from qlora_repeat.assets.configuration import refuse_code
from qlora_repeat.assets.dataset_builders import file_rows, json_lines
from qlora_repeat.assets.datasets import encode
from qlora_repeat.assets.hub_lock import LockFile
from qlora_repeat.assets.pins import CONFIGURATIONS, pin_of
from qlora_repeat.errors import KitError
from qlora_repeat.execution.run_trial import _failure_noted
from qlora_repeat.records.record import keep, read_record, write_record
from qlora_repeat.records.self_test import read_self_test
from qlora_repeat.records.stage_inputs import stage_settings
from qlora_repeat.records.trace import loss_curve, read_trace
from qlora_repeat.records.trial_state import base_damages, base_state, explanations, failure_of, trial_state
from qlora_repeat.render.figures.write import render_figures
from qlora_repeat.render.html import tables_html
from qlora_repeat.render.report.page import report_html
from qlora_repeat.render.report.trial_files import TrialFiles, read_trial_files
from qlora_repeat.render.tables.attribution import attribution_table
from qlora_repeat.render.tables.interlab import laboratory_table
from qlora_repeat.render.tables.interlab import sentences as laboratory_sentences
from qlora_repeat.render.tables.table import Table
from qlora_repeat.render.tables.terminal import terminal_table
from qlora_repeat.render.tables.write import collected_tables, table_texts
from qlora_repeat.render.text.attribution import sentences
from qlora_repeat.render.text.diff import diff_json, diff_text
from qlora_repeat.render.text.status import status_text
from qlora_repeat.render.text.verdict import verdict_json, verdict_text
from qlora_repeat.render.text.verdict_page import verdict_page
from qlora_repeat.results.arms import Arm, group_arms
from qlora_repeat.results.collect import collect
from qlora_repeat.results.study_statistics import statistics_text
from qlora_repeat.results.trial_result import TrialResult, read_results, results_text
from qlora_repeat.slurm.submit import submitted_tasks
from qlora_repeat.stages.checkpoint import read_sealed
from qlora_repeat.stages.merge import adapter_config
from qlora_repeat.study.cluster import USER_FILE, read_user_file
from qlora_repeat.study.data_sources import Data, Hub
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.trial import STAGES
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.file_lock import live_owner
from qlora_repeat.system.files import write_json
from qlora_repeat.system.hashing import (
    MANIFEST,
    folder_digests,
    manifest_digest,
    read_manifest,
    weights_digest,
)
from qlora_repeat.system.printable import printable
from qlora_repeat.system.safetensors_file import INDEX, check_weights, read_header, read_weights

TEMPLATES = ROOT / "paper" / "templates"
HUB = Hub("acme/small-llama", "main")
LOCK = {
    HUB.repository: {
        "kind": "model",
        "revision": "main",
        "commit": "0" * 40,
        "files": {
            name: {"size": 3, "digest": "1" * 64}
            for name in ("config.json", "pytorch_model.bin", "tokenizer.json")
        },
        "converted": {"model.safetensors": "2" * 64},
    }
}


@dataclass(frozen=True)
class Reader:
    """A kind of file: strategies that make such files, and what is done with one."""

    contents: Callable[[Lab], st.SearchStrategy[tuple[Path, bytes]]]
    """Makes files of a lab, each with its path."""
    use: Callable[[Lab, Path, bool], None]
    """Uses the file at this path, as commands do; with True, draws pictures too, which takes longer."""
    share: int
    """Of the inputs, in percent."""


def _trials(lab: Lab) -> Workspace:
    return open_workspace(str(lab.study), runs=lab.runs, cache=lab.cache)


def _files(
    changed: Callable[[bytes], st.SearchStrategy[bytes]], *patterns: str
) -> Callable[[Lab], st.SearchStrategy[tuple[Path, bytes]]]:
    """Return what makes files of the lab that match a pattern, changed."""

    def contents(lab: Lab) -> st.SearchStrategy[tuple[Path, bytes]]:
        paths = sorted(path for pattern in patterns for path in lab.folder.glob(pattern))
        assert paths, patterns
        made_of = {path: changed(path.read_bytes()) for path in paths}
        return st.sampled_from(paths).flatmap(lambda path: st.tuples(st.just(path), made_of[path]))

    return contents


def _one(
    name: str, content: bytes, changed: Callable[[bytes], st.SearchStrategy[bytes]]
) -> Callable[[Lab], st.SearchStrategy[tuple[Path, bytes]]]:
    """Return what makes a file of this name that the lab does not have."""
    return lambda lab: st.tuples(st.just(lab.folder / name), changed(content))


def only_errors_of_the_kit(*steps: Callable[[], object]) -> None:
    """Do each step. Errors of the kit are the right answer to a stranger's file; others are bugs."""
    for step in steps:
        try:
            step()
        except KitError as error:
            str(error).encode("utf-8", "surrogatepass")


def _show(tables: list[Table]) -> None:
    for table in tables:
        for text in (*table_texts(table, TEMPLATES).values(), terminal_table(table, 80)):
            text.encode()
    tables_html(tables).encode()


def _use_arms(arms: list[Arm], lab: Lab, pictures: bool, files: TrialFiles) -> None:
    published = results_of("published").arms()
    steps: list[Callable[[], object]] = [
        lambda: _show(collected_tables(arms)),
        lambda: _show(collected_tables(arms, published)),
        lambda: statistics_text(arms).encode(),
    ]
    if pictures:
        steps += [
            lambda: report_html(arms, study_name="tiny", files=files, published=published).encode(),
            lambda: render_figures(arms, lab.folder / "figures"),
        ]
    only_errors_of_the_kit(*steps)


def _results(lab: Lab) -> st.SearchStrategy[tuple[Path, bytes]]:
    rows = [
        replace(
            row,
            final_loss=2.0 + row.trial / 10,
            initial_loss=3.0,
            loss_curve=[[0.5, 2.5], [1.0, 2.0 + row.trial / 10]],
            base_perplexities=[7.0, 7.125],
            peak_memory_share=0.5,
            adapter_digest=f"{row.trial % 3:064}",
            adapter_init_seed=row.trial,
            accuracy=0.25,
            diverged_at=None if row.trial % 2 else 3,
            repeated_responses=row.responses,
        )
        for row in study(trials=6, models={"text-generation": {"gpt-neox-20b": "GPT-NeoX-20B"}})
    ]
    return _one("stranger.jsonl", results_text(rows).encode(), changed_lines)(lab)


def _use_laboratories(rows: list[TrialResult]) -> None:
    labs = [laboratory("one", rows), laboratory("two", rows)]
    shared = compare_laboratories(labs)
    _show([laboratory_table(labs, shared)])
    laboratory_sentences(shared)


def _use_results(lab: Lab, path: Path, pictures: bool) -> None:
    rows = read_results(path)
    results_text(rows).encode()
    only_errors_of_the_kit(
        lambda: _use_laboratories(rows),
        lambda: _use_arms(group_arms(rows), lab, pictures, TrialFiles()),
    )


def _use_trial(lab: Lab, path: Path, pictures: bool) -> None:
    """Use a trial, of which the file at `path` is a stranger's."""
    workspace = _trials(lab)
    trials = workspace.trials()
    trial = next((each for each in trials if path.is_relative_to(each.folder)), trials[0])
    states = [trial_state(each) for each in workspace.trials()]
    only_errors_of_the_kit(
        lambda: status_text(
            states, {test.name: base_state(test).state for test in workspace.base_tests()}, 80
        ),
        lambda: [*explanations(states), *base_damages(workspace), *check_trial(trial)],
        lambda: _use_diff(trial.folder, next(each.folder for each in workspace.trials() if each != trial)),
        lambda: _use_verify(lab, workspace, trial.name, pictures),
        lambda: _use_study_results(lab, workspace, pictures),
    )


def _use_study_results(lab: Lab, workspace: Workspace, pictures: bool) -> None:
    rows = collect(workspace, include_stale=True)
    results_text(rows).encode()
    arms = group_arms(rows)
    _use_arms(arms, lab, pictures, read_trial_files(workspace, arms))


def _use_diff(first: Path, second: Path) -> None:
    sides = read_side("first", first), read_side("second", second)
    for pair in (sides, sides[::-1]):
        diff = compare_trials(*pair)
        diff_text(diff).encode()
        json.loads(diff_json(diff))


def _use_verify(lab: Lab, workspace: Workspace, name: str, pictures: bool) -> None:
    trial = workspace.trial(name)
    recorded = read_recorded(trial, trial.folder, lab.folder / "scratch")
    other_sources(recorded.again, recorded.side.records)
    missing_inputs(recorded.again, recorded.side.records)
    for stage in STAGES:
        json.dumps(stage_settings(recorded.again, stage))
    other = next(each for each in workspace.trials() if each != trial)
    tolerance, _ = tolerance_of(trial.study, trial.optimizer, trusted=False)
    diff = compared(recorded.side, read_side("re-run", other.folder))
    found = judge_rerun(diff, recorded.others, tolerance)
    verdict_text(name, found).encode()
    json.loads(verdict_json(name, found, recorded.left_out))
    if pictures:
        ours, theirs = ([step.loss for step in each.steps[1:]] for each in (diff.first, diff.second))
        verdict_page(name, found, ours, theirs, "qlora-repeat verify").encode()


@contextlib.contextmanager
def _recorded(trial: Path) -> Iterator[None]:
    """Record the files of a fine-tuning as they are, as a forger does."""
    path = trial / "finetune.json"
    before = path.read_bytes()
    record = read_record(path)
    assert record is not None
    write_record(path, replace(record, files={name: keep(trial / name) for name in record.files}))
    yield
    path.write_bytes(before)


def _use_trace(lab: Lab, path: Path, pictures: bool) -> None:
    only_errors_of_the_kit(
        lambda: loss_curve(read_trace(path)[1:]),
        lambda: read_trace(path, unfinished=True),
    )
    with _recorded(path.parent):
        _use_trial(lab, path, pictures)


def _use_tensors(lab: Lab, path: Path, pictures: bool) -> None:
    other = next(each for each in sorted(lab.runs.glob("tiny/*/*/trial-*/adapter")) if each != path.parent)
    with _recorded(path.parents[1]):
        only_errors_of_the_kit(lambda: _use_diff(path.parents[1], other.parent))
    only_errors_of_the_kit(
        lambda: read_header(path),
        lambda: read_weights(path),
        lambda: weights_digest(path.parent),
    )


def _use_attribution(lab: Lab, path: Path, pictures: bool) -> None:
    measured = read_measured(path)
    found = attribute(measured)
    for sentence in sentences(measured, found):
        sentence.encode()
    _show([attribution_table(measured, found)])
    write_attribution(measured, found, [], lab.folder / "again.json")
    if pictures:
        render_figures([], lab.folder / "figures", [measured])


def _attribution(lab: Lab) -> st.SearchStrategy[tuple[Path, bytes]]:
    path = lab.folder / "attribution.json"
    measured: Measurements = made(lambda levels: 2 + 0.1 * sum(levels.values()), replicates=3)
    write_attribution(measured, attribute(measured), [], path)
    return _files(changed_json, "attribution.json")(lab)


def _use_study(lab: Lab, path: Path, pictures: bool) -> None:
    for suffix in ("", "@bitwise", "@2-steps-8-rows", "@adamw-8bit@materialized"):
        only_errors_of_the_kit(lambda suffix=suffix: _open(lab, f"{path}{suffix}"))


def _open(lab: Lab, study: str) -> None:
    workspace = open_workspace(study, runs=lab.runs, cache=lab.cache)
    for trial in itertools.islice(workspace.trials(), 3):
        for stage in STAGES:
            json.dumps(stage_settings(trial, stage))
        trial_state(trial, rehash=False)
    list(itertools.islice(workspace.base_tests(), 3))
    repr(workspace)


def _use_lock(lab: Lab, path: Path, pictures: bool) -> None:
    workspace = replace(_trials(lab), lock=path)
    only_errors_of_the_kit(
        lambda: LockFile(path).pin(HUB),
        lambda: pin_of(workspace, HUB, "model"),
        lambda: pin_of(workspace, HUB, "dataset"),
    )


def _use_small(lab: Lab, path: Path, pictures: bool) -> None:
    """Use a file as if it had any of the names of small files."""
    trial = _trials(lab).trials()[0]
    for name in ("tasks.json", "adapter_config.json", "manifest.json"):
        (lab.folder / "small").mkdir(exist_ok=True)
        (lab.folder / "small" / name).write_bytes(path.read_bytes())
    trial.failure.write_bytes(path.read_bytes())
    os.environ[USER_FILE] = str(path)
    only_errors_of_the_kit(
        lambda: submitted_tasks(lab.folder / "small"),
        lambda: adapter_config(lab.folder / "small"),
        lambda: manifest_digest(lab.folder / "small"),
        lambda: failure_of(trial),
        lambda: live_owner(path),
        lambda: read_self_test(path),
        lambda: read_sealed(path),
        read_user_file,
    )
    trial.failure.unlink()


def _models(lab: Lab) -> st.SearchStrategy[tuple[Path, bytes]]:
    """Make files of a small model of a repository, as the cache has them."""
    folder = lab.folder / "base"
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel()
    tokenizer.train_from_iterator(["A quote, of some words."], BpeTrainer(special_tokens=["</s>"]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    LlamaConfig(
        hidden_size=8, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1
    ).save_pretrained(folder)
    save_file({"weight": numpy.zeros(4)}, folder / "model.safetensors")
    write_json(folder / SOURCE, {"commit": "0" * 40, "kind": "model", "revision": "main"})
    write_json(folder / INDEX, {"metadata": {}, "weight_map": {"weight": "model.safetensors"}})
    write_json(folder / MANIFEST, folder_digests(folder))
    return _files(changed_json, "base/*.json")(lab)


def _use_model(lab: Lab, path: Path, pictures: bool) -> None:
    folder, trial = path.parent, _trials(lab).trials()[0]

    def load() -> None:
        refuse_code(folder, [name for name in CONFIGURATIONS if (folder / name).exists()], "base")
        with _failure_noted(trial):
            encode(load_tokenizer(folder), trial.model, [{"quote": "A quote, of\nsome words."}])

    only_errors_of_the_kit(
        lambda: (hub_commit(folder), is_miniature(folder)),
        lambda: (read_manifest(folder), manifest_digest(folder), check_weights(folder)),
        load,
    )


def _rows(lab: Lab) -> st.SearchStrategy[tuple[Path, bytes]]:
    """Make files with rows of data, in each format of a hub."""
    rows = [{"quote": f"Quote {number}, \u00e9\u4e2d.", "author": "a"} for number in range(3)]
    table = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), table)
    made = {
        "jsonl": changed_lines(json_lines(rows).encode()),
        "json": changed_json(json.dumps(rows).encode()),
        "csv": changed_bytes(b'quote,author\n"A, b",c\nd,e\n"f\ng",h\n'),
        "txt": changed_bytes(b"One\nline.\n\nTwo.\n\nThree."),
        "parquet": changed_bytes(table.getvalue()),
    }
    return st.one_of(*(st.tuples(st.just(lab.folder / f"rows.{end}"), each) for end, each in made.items()))


def _use_rows(lab: Lab, path: Path, pictures: bool) -> None:
    column = "text" if path.suffix == ".txt" else "quote"
    data = Data("text-generation", "hub", 3, 4, hub=HUB, columns={"quote": column})
    json_lines(file_rows(data, [path])).encode()


_COMMANDS = {
    "status": "{study} --runs {runs} --cache {cache}",
    "check": "{study} --runs {runs} --cache {cache}",
    "tables": "{study} --runs {runs} --out {out} --format terminal --format latex",
    "diff": "{trial}/1 {trial}/2 --study {study} --runs {runs} --cache {cache}",
    "interlab": "a={runs}/tiny/results.jsonl b={runs}/tiny.zip --json",
    "unpack": "{runs}/tiny.zip --to {out}",
    "pack": "{study} --runs {runs} --cache {cache} --out {out}/tiny.zip --quiet",
}
"""Commands on strangers' files, with their arguments."""
_SLOWER = {
    "figures": "{study} --runs {runs} --out {out}",
    "report": "{study} --runs {runs} --out {out}",
    "check": "{runs}/tiny.zip --cache {cache}",
}


def _of_commands(lab: Lab) -> st.SearchStrategy[tuple[Path, bytes]]:
    """Make files of all kinds where commands look for them."""
    trial = "runs/tiny/*/*/trial-1"
    kinds = {
        "tiny.toml": changed_toml,
        "runs/tiny/results.jsonl": changed_lines,
        "runs/tiny.zip": changed_bytes,
        f"{trial}/trace.jsonl": changed_lines,
        f"{trial}/*.json": changed_record,
        f"{trial}/adapter/*.json": changed_json,
        f"{trial}/adapter/*.safetensors": changed_tensors,
    }
    return st.one_of(*(_files(changed, pattern)(lab) for pattern, changed in kinds.items()))


def _use_commands(lab: Lab, path: Path, pictures: bool) -> None:
    use_commands(lab, pictures)


def use_commands(lab: Lab, pictures: bool = False) -> None:
    """Run commands that read a study, its results and its archive."""
    places = {"study": lab.study, "runs": lab.runs, "cache": lab.cache, "out": lab.folder / "out"}
    for name, arguments in (_SLOWER if pictures else _COMMANDS).items():
        shutil.rmtree(places["out"], ignore_errors=True)
        given = arguments.format(trial="tiny-neox/adamw-8bit", **places).split(" ")
        done = run(name, *given)
        if not isinstance(done.exception, KitError | OSError | SystemExit | None):
            raise done.exception
        assert printable(done.output) == done.output, ascii(done.output)


def _archives(lab: Lab) -> st.SearchStrategy[tuple[Path, bytes]]:
    path, original = lab.folder / "stranger.zip", lab.archive.read_bytes()
    members = unpacked(original)

    @st.composite
    def with_changed_member(draw: st.DrawFn) -> bytes:
        name = draw(st.sampled_from(sorted(members)))
        changed = dict(members)
        if draw(st.booleans()):
            changed[name] = draw(changed_member(name, members[name]))
        else:
            del changed[name]
        try:
            packed(changed, path)
        except KeyError:  # it has no description of its files
            return original[: len(original) // 2]
        return path.read_bytes()

    return st.tuples(st.just(path), with_changed_member() | changed_bytes(original))


def _use_archive(lab: Lab, path: Path, pictures: bool) -> None:
    def use() -> None:
        with opened(path) as found:
            only_errors_of_the_kit(found.results, lambda: check_archive(found, lab.cache))

    only_errors_of_the_kit(use, lambda: read_laboratory("one", path))


READERS = {
    "records": Reader(
        _files(changed_record, "runs/tiny/*/*/trial-*/*.json", "runs/tiny/*/base/*.json"), _use_trial, 20
    ),
    "traces": Reader(_files(changed_lines, "runs/tiny/*/*/trial-1/trace.jsonl"), _use_trace, 10),
    "results": Reader(_results, _use_results, 16),
    "attributions": Reader(_attribution, _use_attribution, 6),
    "archives": Reader(_archives, _use_archive, 10),
    "studies": Reader(_files(changed_toml, "tiny.toml"), _use_study, 10),
    "locks": Reader(_one("study.lock", json.dumps(LOCK).encode(), changed_json), _use_lock, 5),
    "tensors": Reader(
        _files(changed_tensors, "runs/tiny/*/*/trial-1/adapter/*.safetensors"), _use_tensors, 6
    ),
    "small files": Reader(
        _one("small.json", b'{"error": "x", "r": 8, "lora_alpha": 16, "pid": 1, "host": "h"}', changed_json),
        _use_small,
        6,
    ),
    "models": Reader(_models, _use_model, 4),
    "rows of data": Reader(_rows, _use_rows, 4),
    "commands": Reader(_of_commands, _use_commands, 3),
}
"""The readers of strangers' files, by the kind of file."""
