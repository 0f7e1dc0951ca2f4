"""`compare`: arms of studies and of tidy files, in pairs if they share seeds, and a decision by a margin."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.checkout import ROOT

from qlora_repeat.cli.main import cli
from qlora_repeat.errors import KitError
from qlora_repeat.results.published import read_published
from qlora_repeat.results.trial_result import write_results

A = [1.0, 1.2, 0.9, 1.1, 1.05, 0.97, 1.02]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.csv"
    rows = [("a", seed, value) for seed, value in enumerate(A)]
    rows += [("b", seed, value + 0.1 + seed / 1000) for seed, value in reversed(list(enumerate(A)))]
    path.write_text("arm,seed,score\n" + "".join(f"{arm},{seed},{value}\n" for arm, seed, value in rows))
    return path


def compared(*words: object) -> Result:
    return CliRunner().invoke(cli, ["compare", *map(str, words)])


def test_arms_of_a_file_are_compared_in_pairs(file: Path) -> None:
    done = compared(f"{file}:a", f"{file}:b", "--margin", 0.05)
    assert done.exit_code == 0, done.exception
    lines = done.output.splitlines()
    assert lines[0] == "A  a: 7 values of score, median 1.02"
    assert lines[2] == "7 pairs with the same seeds"
    assert lines[4].startswith("shift, B - A              0.103 (95 %: 0.1")
    assert lines[-1] == "different: the interval of the shift excludes 0"
    assert compared(f"{file}:a", f"{file}:b", "--margin", 1).output.splitlines()[-1] == (
        "equivalent: the interval of the shift lies within 1"
    )


def test_the_comparison_is_also_json(file: Path) -> None:
    found = json.loads(compared(f"{file}:a", f"{file}:b", "--margin", 2, "--of", "spread", "--json").output)
    assert found["comparison"]["is_paired"] is True
    assert found["decision"]["kind"] in ("equivalent", "undecided")
    assert found["second"]["values"][0] == pytest.approx(A[-1] + 0.106)


def test_arms_of_studies_and_result_files_are_compared(file: Path, tmp_path: Path) -> None:
    write_results(read_published(ROOT / "paper" / "published"), tmp_path / "results.jsonl")
    for source in ("published", tmp_path / "results.jsonl"):
        names = [f"{source}:llama2-7b/adamw-{bits}bit" for bits in (8, 32)]
        done = compared(*names, "--of", "spread", "--margin", 2)
        assert "not paired: seeds are not shared" in done.output
        assert done.output.splitlines()[-1] == "different: the interval of the spread excludes 1"
    mixed = compared(f"{file}:a", "published:llama2-7b/adamw-32bit", "--metric", "score")
    assert "metric score: of a study, expected one of perplexity" in str(mixed.exception)


WRONG: list[tuple[list[str], str]] = [
    (["FILE", "FILE:b"], "2 arms; choose one, such as FILE:a"),
    (["FILE:c", "FILE:b"], "no arm c with this metric; it has a, b"),
    (["FILE:a", "FILE:b", "--margin", "-1"], "margin -1: expected above 0"),
    (["FILE:a", "FILE:b", "--margin", "0.5", "--of", "spread"], "margin 0.5: expected a factor above 1"),
    (["none.csv", "FILE:b"], "none.csv: no such file"),
    (["nonesuch:a", "FILE:b"], "nonesuch: no such study file"),
]


@pytest.mark.parametrize(("words", "error"), WRONG)
def test_a_mistake_gives_one_line(words: list[str], error: str, file: Path) -> None:
    done = compared(*(word.replace("FILE", str(file)) for word in words))
    assert isinstance(done.exception, KitError), done.output
    assert error.replace("FILE", str(file)) in str(done.exception)
