"""The architecture of a fetched base counts, and a study's table that differs from it is reported."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.places import NO_RUNS, at

from qlora_repeat.assets.architecture import base_architecture, wrong_architecture
from qlora_repeat.assets.base_models import base_folder
from qlora_repeat.assets.fetch import fetch
from qlora_repeat.errors import MissingError
from qlora_repeat.planning.doctor import examine
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.fingerprint import fingerprint

NEOX = "gpt-neox-20b"
HUB: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "attention_probs_dropout_prob": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu_fast",
    "hidden_dropout_prob": 0,
    "hidden_size": 6144,
    "initializer_range": 0.02,
    "intermediate_size": 24576,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 64,
    "num_hidden_layers": 44,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.19.0.dev0",
    "use_cache": True,
    "vocab_size": 50432,
}
"""A configuration like GPT-NeoX-20B's on the hub."""


@pytest.fixture
def fetched(tmp_path: Path) -> Workspace:
    """Return the paper's study with that configuration in the cache."""
    workspace = at(load_study("paper"), NO_RUNS, tmp_path)
    write(workspace, HUB)
    return workspace


def write(workspace: Workspace, content: dict[str, Any]) -> None:
    folder = base_folder(workspace, NEOX)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))


def with_table(study: Study, name: str, table: dict[str, Any]) -> Study:
    bases = {**study.bases, name: dataclasses.replace(study.bases[name], architecture=table)}
    return dataclasses.replace(study, bases=bases)


def test_the_papers_study_has_the_architecture_of_the_hub(fetched: Workspace) -> None:
    assert wrong_architecture(fetched, NEOX) is None


def test_a_setting_that_the_table_leaves_out_has_transformers_default(fetched: Workspace) -> None:
    table = dict(fetched.study.bases[NEOX].architecture or {})
    del table["hidden_act"], table["num_hidden_layers"]
    changed = dataclasses.replace(fetched, study=with_table(fetched.study, NEOX, table))
    assert wrong_architecture(changed, NEOX) == (
        "base gpt-neox-20b: its config.json differs from [bases.gpt-neox-20b.architecture]: "
        "hidden_act is gelu_fast (table: gelu)"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 43}, "num_hidden_layers is 43 (table: 44)"),
        ({"max_position_embeddings": 4096}, "max_position_embeddings is 4096 (table: 2048)"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True (table: False)"),
        ({"model_type": "llama"}, "model_type is llama (table: gpt_neox)"),
        ({"hidden_size": "wide"}, "hidden_size is wide (table: 6144)"),
        ({"layer_norm_eps": 1e-6}, None),
        ({"miniature": True, "hidden_size": 64}, None),
    ],
)
def test_differences_are_named(change: dict[str, Any], words: str | None, fetched: Workspace) -> None:
    write(fetched, HUB | change)
    found = wrong_architecture(fetched, NEOX)
    assert found is None if words is None else words in str(found)


def test_the_fetched_configuration_counts_and_not_the_table(fetched: Workspace) -> None:
    assert base_architecture(fetched, NEOX) == HUB
    other = "llama2-7b"
    assert base_architecture(fetched, other) == fetched.study.bases[other].architecture


def test_a_fetched_size_that_no_model_has_is_refused_in_one_line(fetched: Workspace) -> None:
    write(fetched, {**HUB, "num_hidden_layers": 10**9})
    with pytest.raises(MissingError, match=r"config\.json: num_hidden_layers is 1000000000; expected"):
        base_architecture(fetched, NEOX)


def test_fetch_and_doctor_say_what_differs(study: Study, cache: Path, tmp_path: Path) -> None:
    given = with_table(study, "tiny-neox", {"model_type": "gpt_neox", "hidden_act": "relu"})
    workspace = at(given, tmp_path / "runs", cache)
    told: list[str] = []
    fetch(workspace, told.append)
    (line,) = [line for line in told if "config.json" in line]
    assert line.startswith("base tiny-neox: its config.json differs from [bases.tiny-neox.architecture]: ")
    assert "hidden_act is gelu (table: relu)" in line
    assert line.endswith("; `plan` uses config.json")
    (warning,) = [each for each in examine(workspace, fingerprint()) if "config.json" in each.text]
    assert (warning.level, warning.subject) == ("warning", "models and data")
    assert warning.text == line.removesuffix("; `plan` uses config.json")
    assert "[bases.tiny-neox.architecture]" in warning.advice
    told.clear()
    fetch(at(study, tmp_path / "runs", cache), told.append)
    assert not any("config.json" in line for line in told), "a study without a table"
