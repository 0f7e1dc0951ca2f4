"""The miniature hub has the paper's repository names and architectures, and is reproducible."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.checkout import kit
from support.hub_study import MODEL, PICKLED, write_hub_study
from support.places import NO_RUNS, at

from qlora_repeat.assets.datasets import part_rows, study_prompts
from qlora_repeat.assets.miniature import write_hub
from qlora_repeat.errors import UsageError
from qlora_repeat.study.data_sources import Hub
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.system.hashing import folder_digests

PAPER = load_study("paper")
NEOX = ["gpt-neox-20b", "gpt-neoxt-chat-20b"]
LLAMA = ["llama2-7b", "llama2-chat-7b"]

LOOK = """
import json, sys
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

bases, text, found = json.loads(sys.argv[1]), "Your silence will", {}
for name, (repository, revision) in bases.items():
    folder = snapshot_download(repository, revision=revision, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(repository, revision=revision)
    tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision)
    ids = tokenizer(text).input_ids
    tokens = ["<|endoftext|>", "<unk>", "<s>", "</s>"]
    rotary = (getattr(model, "gpt_neox", None) or model.model).rotary_emb
    found[name] = {
        "folder": folder,
        "config": model.config.to_dict(),
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        "rotated": 2 * len(rotary.inv_freq),
        "special": {token: tokenizer.get_vocab().get(token) for token in tokens},
        "eos": tokenizer.eos_token,
        "ids": ids,
        "bare": tokenizer(text, add_special_tokens=False).input_ids,
        "decoded": tokenizer.decode(ids, skip_special_tokens=True),
        "largest": max(tokenizer.get_vocab().values()),
    }
print(json.dumps(found))
"""
DATA = """
import json, sys
from datasets import load_dataset
from huggingface_hub import snapshot_download

found = {}
for name, (repository, revision, kind, files) in json.loads(sys.argv[1]).items():
    folder = snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True)
    table = load_dataset(kind, data_files=f"{folder}/{files}", split="train", cache_dir=sys.argv[2])
    found[name] = {"columns": sorted(table.column_names), "rows": len(table), "first": table[0]}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the hub that `qlora-repeat miniature paper` writes."""
    folder = tmp_path_factory.mktemp("paper") / "home"
    done = kit("miniature", "paper", "--out", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{folder}: miniatures of what study paper takes from a hub\n"
    return folder


def hub_of(part: Any) -> Hub:
    assert part.hub is not None
    hub: Hub = part.hub
    return hub


def offline(home: Path, script: str, *arguments: str) -> Any:
    """Run a script without the kit, with this HF_HOME and offline; return the JSON that it prints."""
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def bases(home: Path) -> dict[str, Any]:
    """Return what transformers loads under each real name and revision."""
    asked = {name: [hub_of(base).repository, hub_of(base).revision] for name, base in PAPER.bases.items()}
    found: dict[str, Any] = offline(home, LOOK, json.dumps(asked))
    return found


def test_the_hub_library_finds_every_model_under_its_true_name(bases: dict[str, Any], home: Path) -> None:
    assert set(bases) == {*NEOX, *LLAMA} == set(PAPER.bases)
    for name, base in bases.items():
        hub = hub_of(PAPER.bases[name])
        assert hub.repository.replace("/", "--") in base["folder"]
        assert base["folder"].startswith(str(home))
        assert Path(base["folder"]).name == hub.revision or hub.revision == "main"


@pytest.mark.parametrize("name", NEOX)
def test_gpt_neox_has_its_true_architecture(name: str, bases: dict[str, Any]) -> None:
    config, shapes = bases[name]["config"], bases[name]["shapes"]
    assert (config["model_type"], config["architectures"]) == ("gpt_neox", ["GPTNeoXForCausalLM"])
    assert config["use_parallel_residual"] is True
    width, heads = config["hidden_size"], config["num_attention_heads"]
    assert shapes["gpt_neox.layers.0.attention.query_key_value.weight"] == [3 * width, width], "fused"
    assert bases[name]["rotated"] == width // heads / 4, "rotary on a quarter of each head"


@pytest.mark.parametrize("name", LLAMA)
def test_llama_has_its_true_architecture(name: str, bases: dict[str, Any]) -> None:
    config, shapes = bases[name]["config"], bases[name]["shapes"]
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    width, heads = config["hidden_size"], config["num_attention_heads"]
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == [width, width]
    assert shapes["model.layers.0.mlp.gate_proj.weight"][1] == width
    assert bases[name]["rotated"] == width // heads, "rotary on all of each head"


@pytest.mark.parametrize("name", PAPER.models)
def test_adapters_are_large_enough_for_eight_bit_states(name: str, bases: dict[str, Any]) -> None:
    """Count elements; bitsandbytes keeps 32-bit state for tensors of fewer than 4096, in every optimizer."""
    model = PAPER.models[name]
    adapted = [
        shape
        for weight, shape in bases[model.base]["shapes"].items()
        if weight.removesuffix(".weight").endswith(tuple(model.target_modules))
    ]
    assert len(adapted) == len(model.target_modules) * bases[model.base]["config"]["num_hidden_layers"]
    assert min(PAPER.lora.r * size for shape in adapted for size in shape) >= 4096


@pytest.mark.parametrize("name", NEOX)
def test_gpt_neox_ends_texts_with_endoftext_and_adds_nothing(name: str, bases: dict[str, Any]) -> None:
    base = bases[name]
    assert (base["special"]["<|endoftext|>"], base["eos"]) == (0, "<|endoftext|>")
    assert base["ids"] == base["bare"]
    assert base["decoded"] == "Your silence will"


@pytest.mark.parametrize("name", LLAMA)
def test_llama_begins_a_text_with_s(name: str, bases: dict[str, Any]) -> None:
    base = bases[name]
    assert [base["special"][token] for token in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert base["eos"] == "</s>"
    assert base["ids"] == [1, *base["bare"]]
    assert base["decoded"] == "Your silence will"


@pytest.mark.parametrize("name", PAPER.bases)
def test_every_token_has_an_embedding_and_the_ends_are_the_tokenizers(
    name: str, bases: dict[str, Any]
) -> None:
    base = bases[name]
    assert base["largest"] < base["config"]["vocab_size"]
    assert base["config"]["eos_token_id"] == base["special"][base["eos"]]


def test_the_data_have_the_true_columns_and_numbers_of_rows(home: Path, tmp_path: Path) -> None:
    quotes, questions = hub_of(PAPER.data["quotes"]), hub_of(PAPER.data["instructions"])
    asked = {
        "quotes": [quotes.repository, quotes.revision, "json", "quotes.jsonl"],
        "questions": [questions.repository, questions.revision, "parquet", "data/*.parquet"],
    }
    found = offline(home, DATA, json.dumps(asked), str(tmp_path))
    assert (found["quotes"]["columns"], found["quotes"]["rows"]) == (["author", "quote", "tags"], 2508)
    assert found["questions"]["columns"] == ["data_source", "input", "instruction", "output"]
    assert found["questions"]["rows"] == 24926
    assert isinstance(found["quotes"]["first"]["tags"], list)


def test_both_instructions_of_the_paper_are_in_the_test_part(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("QLORA_REPEAT_LOCK", str(tmp_path / "paper.lock"))
    done = kit("fetch", "paper", "--only", "llama2-chat-7b", "--cache", tmp_path)
    assert done.returncode == 0, done.stderr
    asked = PAPER.data["instructions"].prompts
    workspace = at("paper", NO_RUNS, tmp_path)
    test = [row["instruction"] for row in part_rows(workspace, "instructions", "test", 42)]
    train = [row["instruction"] for row in part_rows(workspace, "instructions", "train", 42)]
    assert len(train) + len(test) == 24926
    assert abs(len(test) - 24926 / 5) < 1
    for beginning in ("If you have no keyboarding skills at all", "Tommy: Many people claim"):
        assert beginning in asked
        assert [text for text in train + test if text.startswith(beginning)] == [
            text for text in test if text.startswith(beginning)
        ]
    prompts = study_prompts(workspace, "llama2-chat-7b", 42)
    assert [prompt.shown.startswith(start) for prompt, start in zip(prompts, asked, strict=True)] == [
        True,
        True,
    ]
    assert all(prompt.has_options for prompt in prompts)


def small(folder: Path) -> Study:
    return load_study(str(write_hub_study(folder)))


def test_the_same_bytes_are_written_twice(hub_home: Path, tmp_path: Path) -> None:
    write_hub(small(tmp_path), tmp_path / "home")
    assert folder_digests(tmp_path / "home") == folder_digests(hub_home)


def test_a_repository_has_either_safetensors_or_pickles(hub_home: Path) -> None:
    suffixes = {".json", ".safetensors"}, {".json", ".bin"}
    for repository, expected in zip((MODEL, PICKLED), suffixes, strict=True):
        folder = hub_home / "hub" / f"models--{repository.replace('/', '--')}"
        assert {path.suffix for path in folder.glob("snapshots/*/*")} == expected


def test_only_a_miniature_hub_is_replaced(tmp_path: Path) -> None:
    study = small(tmp_path)
    write_hub(study, tmp_path / "home")
    (tmp_path / "home" / "old").touch()
    write_hub(study, tmp_path / "home")
    assert not (tmp_path / "home" / "old").exists()
    precious = tmp_path / "precious"
    (precious / "hub").mkdir(parents=True)
    (precious / "token").write_text("hf_mine")
    with pytest.raises(UsageError, match="contains other files than miniatures, so it is not replaced"):
        write_hub(study, precious)
    assert (precious / "token").read_text() == "hf_mine"


def test_a_study_without_a_miniature_is_refused(tmp_path: Path) -> None:
    done = kit("miniature", "pocket", "--out", tmp_path / "home")
    assert done.returncode == 2
    assert done.stderr == "Error: study pocket uses nothing from a hub, so there is nothing to rehearse\n"
    study = load_study(str(write_hub_study(tmp_path, ('model_type = "llama"', 'model_type = "mamba"'))))
    with pytest.raises(
        UsageError, match=r"bases\.llama\.architecture\.model_type must be gpt_neox or llama \(found"
    ):
        write_hub(study, tmp_path / "home")
    assert not (tmp_path / "home").exists()
