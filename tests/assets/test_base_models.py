"""Base models: the real GGUF file converted, the pocket GPT-NeoX pretrained, both verified."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from support.places import NO_RUNS, at
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from qlora_repeat.assets.base_models import (
    base_folder,
    check_base,
    hub_commit,
    is_miniature,
    load_full,
    load_quantized,
    load_tokenizer,
)
from qlora_repeat.assets.dataset_builders import corpus_rows
from qlora_repeat.assets.fetch import _from_gguf, fetch_base
from qlora_repeat.assets.package_files import locate
from qlora_repeat.assets.pretrain import VOCABULARY, pretraining_texts
from qlora_repeat.errors import MissingError
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.system.hashing import weights_digest


@pytest.fixture(scope="module")
def pocket() -> Study:
    """Return the pocket study, with a pretraining of two steps."""
    study = load_study("pocket")
    neox = study.bases["neox-pocket"]
    assert neox.pretraining is not None
    short = dataclasses.replace(neox.pretraining, fortune_steps=1, question_steps=1, batch_size=2, length=16)
    return dataclasses.replace(
        study, bases=study.bases | {"neox-pocket": dataclasses.replace(neox, pretraining=short)}
    )


@pytest.fixture(scope="module")
def smollm(pocket: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the converted SmolLM2."""
    cache = tmp_path_factory.mktemp("cache")
    fetch_base(at(pocket, NO_RUNS, cache), "smollm2-135m")
    check_base(at(pocket, NO_RUNS, cache), "smollm2-135m")
    return base_folder(at(pocket, NO_RUNS, cache), "smollm2-135m")


def test_converted_weights_match_the_gguf_file(pocket: Study, smollm: Path) -> None:
    weights = load_full(smollm, "float32").state_dict()
    file = pocket.bases["smollm2-135m"].gguf
    assert file is not None
    tensors = {tensor.name: tensor for tensor in GGUFReader(locate(file)).tensors}
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
        ("blk.29.ffn_down.weight", "model.layers.29.mlp.down_proj.weight"),
    ):
        expected = quants.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        assert np.array_equal(weights[ours].numpy(), expected.astype(np.float16).astype(np.float32)), theirs


@pytest.mark.parametrize("precision", ["full", "nf4"])
def test_the_converted_model_knows_english(pocket: Study, smollm: Path, precision: str) -> None:
    model = load_full(smollm, "float32") if precision == "full" else load_quantized(pocket, smollm).eval()
    tokenizer = load_tokenizer(smollm)

    def loss(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            return float(model(ids, labels=ids).loss)

    assert loss("The capital of France is Paris, a city on the Seine.") < 3.5
    assert loss("Paris the on city. Seine of a France, is The capital") > 5


def test_the_pocket_neox_has_the_true_shape_and_is_reproducible(pocket: Study, tmp_path: Path) -> None:
    digests = []
    for cache in (tmp_path / "one", tmp_path / "two"):
        fetch_base(at(pocket, NO_RUNS, cache), "neox-pocket")
        check_base(at(pocket, NO_RUNS, cache), "neox-pocket")
        digests.append(weights_digest(base_folder(at(pocket, NO_RUNS, cache), "neox-pocket")))
        torch.rand(3)
    assert digests[0] == digests[1]
    model = load_full(base_folder(at(pocket, NO_RUNS, cache), "neox-pocket"), "float32")
    assert model.config.model_type == "gpt_neox"
    assert model.config.vocab_size == VOCABULARY
    assert model.config.use_parallel_residual
    assert 18e6 < model.num_parameters() < 22e6
    assert load_tokenizer(base_folder(at(pocket, NO_RUNS, cache), "neox-pocket")).vocab_size > 50000


def test_pretraining_does_not_see_the_studys_data(pocket: Study) -> None:
    settings = pocket.bases["neox-pocket"].pretraining
    assert settings is not None
    seen = list(itertools.chain(*pretraining_texts(pocket, settings)))
    assert len(seen) > 4000
    quotes = {row["quote"] for row in corpus_rows(pocket.data["quotes"])}
    questions = tuple({row["instruction"] for row in corpus_rows(pocket.data["instructions"])})
    assert not quotes & set(seen)
    assert not [text for text in seen if text.startswith(questions)]


@pytest.mark.parametrize("content", ["[]", "5", '"commit"', "{}", '{"commit": []}', "null"])
def test_descriptions_of_bases_that_are_none_are_named(content: str, tmp_path: Path) -> None:
    for name in ("source.json", "config.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(MissingError, match=r"source\.json: .*delete the folder and fetch"):
        hub_commit(tmp_path)
    if not content.startswith("{"):
        with pytest.raises(MissingError, match=r"config\.json: .*delete the folder and fetch"):
            is_miniature(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"model": 5}', '{"model": {"type": "BPE"}, "added_tokens": 5}'])
def test_a_tokenizer_that_is_none_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(MissingError, match=r"transformers cannot read it .*; the study file must") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_changed_base_is_refused(pocket: Study, tmp_path: Path) -> None:
    fetch_base(at(pocket, NO_RUNS, tmp_path), "neox-pocket")
    config = base_folder(at(pocket, NO_RUNS, tmp_path), "neox-pocket") / "config.json"
    config.write_text(config.read_text().replace("192", "256"))
    with pytest.raises(MissingError, match=r"config\.json was changed; delete the folder"):
        check_base(at(pocket, NO_RUNS, tmp_path), "neox-pocket")


@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + b"\xff" * 100])
def test_a_file_that_is_no_gguf_model_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "own.gguf").write_bytes(content)
    with pytest.raises(MissingError, match=r"own\.gguf: cannot be read as a GGUF model \(\w+: ") as caught:
        _from_gguf(tmp_path / "own.gguf")
    assert "\n" not in str(caught.value)


def test_text_after_a_literal_begin_token_gets_no_space_mark_unlike_in_2023(tmp_path: Path) -> None:
    """Read files like Llama-2's on the hub, whose own rules are those of 2023: studies/paper.toml."""
    text, texts = "<s><INST> why </INST> so</s>", ["<INST> why </INST> so", "why so"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    of_2023 = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    of_2023.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    of_2023.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # so that tokens are words
    trainer = trainers.BpeTrainer(special_tokens=tokens, show_progress=False, vocab_size=400)
    of_2023.train_from_iterator(texts, trainer)
    of_2023.pre_tokenizer = None
    of_2023.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, **names}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)

    def pieces(given: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(given, add_special_tokens=False)["input_ids"])

    assert of_2023.encode(text).tokens[:2] == ["<s>", "▁<INST>"]
    assert pieces(text)[0] == "<s>"
    assert "".join(pieces(text)[1:]).startswith("<INST>▁why")
    # Without the tag, and between words, the versions agree.
    for plain in texts:
        assert pieces(plain) == of_2023.encode(plain).tokens
