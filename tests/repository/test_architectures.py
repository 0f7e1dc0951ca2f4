"""Miniatures of public architectures do what the table of docs/reference/architectures.md says."""

import json
from pathlib import Path

import pytest
from support.architecture_table import UNSUPPORTED, documented, row
from support.architecture_trials import try_out
from support.architectures import ARCHITECTURES, chosen, commit

from qlora_repeat.assets.layers import base_skeleton
from qlora_repeat.errors import MissingError
from qlora_repeat.planning.memory_estimate import quantized_skeleton
from qlora_repeat.stages.dequantize import count_weights
from qlora_repeat.study.loading import load_study


@pytest.mark.parametrize("name", chosen(commit()))
def test_a_miniature_does_what_the_table_says(name: str, tmp_path: Path) -> None:
    outcome = try_out(name, tmp_path)
    assert row(name, outcome) == documented()[name], "see `make architectures`"
    planned = count_weights(quantized_skeleton(load_study("pocket"), ARCHITECTURES[name].config()))
    assert outcome.share_in_4_bits == planned.share, "`plan` counts what is trained"


def test_the_table_has_all_families() -> None:
    assert list(documented()) == list(ARCHITECTURES)
    assert len(ARCHITECTURES) >= 20
    assert sum(each.fused_experts for each in ARCHITECTURES.values()) >= 5


def test_each_commit_tries_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QLORA_REPEAT_ARCHITECTURES", raising=False)
    parts = [chosen(f"commit {number}") for number in range(50)]
    assert {len(part) for part in parts} == {-(-len(ARCHITECTURES) // 4)}
    assert chosen("commit 7") == parts[7]
    assert set().union(*parts) == set(ARCHITECTURES)
    monkeypatch.setenv("QLORA_REPEAT_ARCHITECTURES", "all")
    assert chosen("commit 7") == list(ARCHITECTURES)


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_models_that_the_page_excludes_are_refused(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(MissingError, match="transformers cannot read it"):
        base_skeleton(tmp_path)
