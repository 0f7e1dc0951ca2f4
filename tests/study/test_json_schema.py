"""The JSON schema of study files is that of the types, and accepts what the loader accepts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.tiny import tiny_text, write_study

from qlora_repeat.errors import UsageError
from qlora_repeat.study.finding import known_studies
from qlora_repeat.study.json_schema import SCHEMA, study_schema
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.toml_file import read_toml
from qlora_repeat.system.files import json_text

Check = Callable[[Any, Any], bool]
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
}  # fmt: skip
CHECKS: dict[str, Check] = {
    "enum": lambda value, allowed: value in allowed,
    "const": lambda value, wanted: type(value) is type(wanted) and value == wanted,
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "minLength": lambda value, bound: len(value) >= bound,
    "maxLength": lambda value, bound: len(value) <= bound,
    "minItems": lambda value, bound: len(value) >= bound,
    "maxItems": lambda value, bound: len(value) <= bound,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
    "required": lambda value, keys: set(keys) <= value.keys(),
}
OTHER = {
    "$schema", "$defs", "$ref", "title", "description", "default", "type", "anyOf", "properties", "items",
    "patternProperties", "additionalProperties", "propertyNames",
}  # fmt: skip
"""Keywords without a check of their own, or whose check is below."""


def problems(value: Any, schema: Any, whole: dict[str, Any], at: str = "") -> list[str]:
    """Return where a value does not fit a schema, for the keywords that the kit's schema has."""
    if isinstance(schema, bool):
        return [] if schema else [at]
    assert schema.keys() <= CHECKS.keys() | OTHER, schema.keys() - CHECKS.keys() - OTHER
    if "$ref" in schema:
        return problems(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole, at)
    if "anyOf" in schema:
        found = [problems(value, each, whole, at) for each in schema["anyOf"]]
        return [] if [] in found else min(found, key=len)
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{at}: {kind}"]
    wrong = [f"{at}: {key}" for key in schema if key in CHECKS and not CHECKS[key](value, schema[key])]
    if isinstance(value, list) and "items" in schema:
        wrong += [each for part in value for each in problems(part, schema["items"], whole, at)]
    if isinstance(value, dict):
        for key, inner in value.items():
            fitting = [
                each
                for pattern, each in schema.get("patternProperties", {}).items()
                if re.search(pattern, key)
            ]
            known = schema.get("properties", {}).get(
                key, (fitting or [schema.get("additionalProperties", True)])[0]
            )
            wrong += problems(key, schema.get("propertyNames", True), whole, at)
            wrong += problems(inner, known, whole, f"{at}.{key}")
    return wrong


def test_the_file_is_the_schema_of_the_types() -> None:
    found = (ROOT / SCHEMA).read_text("utf-8")
    assert found == json_text(study_schema()), "run python -m qlora_repeat.study.json_schema"


STUDIES = ["pocket", "pocket-averaging", "paper", "collapse", "collapse-averaging", "tasks"]


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_names_the_schema_and_fits_it(name: str) -> None:
    path = ROOT / f"studies/{name}.toml"
    assert path.read_text("utf-8").startswith("#:schema ./study.schema.json\n")
    assert problems(read_toml(path), study_schema(), study_schema()) == []
    assert {*STUDIES} == {path.stem for path in (ROOT / "studies").glob("*.toml")}


SHORT = '[bases.m]\nfolder = "m"\n[data.r]\ntask = "text-generation"\nfile = "r.jsonl"\n[models.x]\n'
FITTING = {
    "ten lines": SHORT + 'target_modules = ["q_proj"]\n',
    "abbreviations": SHORT.replace("folder", "gguf").replace("file =", "hub =").replace("r.jsonl", "a/b@main")
    + 'target_modules = ["q_proj"]\n',
    "another study": 'extends = "pocket"\n[models]\nneox-pocket = false\n[training]\nsteps = 3\n',
    "the older spelling": tiny_text()
    .replace("[quantization]", "[quantisation]")
    .replace("threads = 1", 'threads = 1\nweights = "materialised"'),
    "an older map": tiny_text().replace(
        '"adamw-8bit", ', '{ optimizer = "adamw-8bit", state_map = "bitsandbytes-0.41.0" }, '
    ),
}


@pytest.mark.parametrize("case", FITTING)
def test_what_the_loader_adds_fits_too(case: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(FITTING[case], encoding="utf-8")
    assert load_study(str(path)).models
    assert problems(read_toml(path), study_schema(), study_schema()) == []


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("trials = 2", "trails = 2", ".trails"),
        ("trials = 2", 'trials = "2"', ".trials: integer"),
        ("trials = 2", "trials = 0", ".trials: exclusiveMinimum"),
        ("max_length = 128", "max_lenght = 128", ".training.max_lenght"),
        ("kernels = \"deterministic\"", "kernels = \"exact\"", ".profiles.bitwise.kernels: enum"),
        ("[models.tiny-neox]", "[models.Tiny]", ".models.Tiny"),
        ('"query_key_value"', '"query-key-value"', ".models.tiny-neox.target_modules: pattern"),
        ("trials = 2", 'trials = 2\nvariant = "x"', ".variant"),
    ],
)  # fmt: skip
def test_mistakes_do_not_fit(old: str, new: str, where: str, tmp_path: Path) -> None:
    path = write_study(tmp_path, (old, new))
    assert where in problems(read_toml(path), study_schema(), study_schema())
    with pytest.raises(UsageError):
        load_study(str(path))


def test_each_key_is_described_or_named_by_its_table() -> None:
    schema = study_schema()
    assert schema["$defs"]["Training"]["properties"]["max_length"]["description"] == (
        "In tokens; longer examples are cut."
    )
    assert (
        schema["properties"]["optimizers"]["description"] == "The default is the paper's two (section VII-A)."
    )
    assert json.loads(json_text(schema)) == schema
    assert set(known_studies()) >= {"pocket", "paper", "collapse"}
