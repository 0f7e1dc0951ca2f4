"""What a key of a study file can have, in words and with an example, by the JSON schema of study files."""

import json
from collections.abc import Mapping
from typing import Any

from qlora_repeat.system.typed_json import in_words

Location = tuple[str | int, ...]
"""The parts of a key, and places in lists."""


def allowed_values(schema: Mapping[str, Any], location: Location) -> str:
    """Return what a key can have, such as ``a number, such as 0.5``; nothing if that is unknown."""
    nodes = [node for node in nodes_at(schema, location) if node.get("const") is not False]
    parts = [part for node in nodes for part in _words(schema, node, location, alone=len(nodes) == 1)]
    *first, last = dict.fromkeys(parts) or [""]
    comma = "," if any("such as" in each for each in first) else ""
    return f"{', '.join(first)}{comma} or {last}" if first else last


def keys_of_table(schema: Mapping[str, Any], location: Location) -> list[str]:
    """Return the keys that a table can have."""
    return sorted({key for node in nodes_at(schema, location) for key in node.get("properties", {})})


def nodes_at(schema: Mapping[str, Any], location: Location) -> list[Mapping[str, Any]]:
    """Return the alternatives of a key, as nodes of the schema without references."""
    nodes = _resolved(schema, schema)
    for part in location:
        inner: list[Mapping[str, Any]] = []
        for node in nodes:
            if isinstance(part, int):
                found = node.get("items")
            else:
                others = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
                found = node.get("properties", {}).get(part, others[0])
            inner += _resolved(schema, found) if isinstance(found, dict) else []
        nodes = inner
    return nodes


def _resolved(schema: Mapping[str, Any], node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if reference := node.get("$ref"):
        return _resolved(schema, schema["$defs"][reference.rpartition("/")[2]])
    if "anyOf" in node:
        return [each for one in node["anyOf"] for each in _resolved(schema, one)]
    return [node]


def _words(
    schema: Mapping[str, Any], node: Mapping[str, Any], location: Location, *, alone: bool
) -> list[str]:
    """Return what a node allows, as alternatives; with an example of a list or of the only one of a key."""
    if literals := [each for each in (*node.get("enum", ()), node.get("const")) if each is not None]:
        return [repr(each) for each in literals]
    kinds = {
        "string": in_words(node.get("pattern", "")) or "text", "integer": "an integer", "number": "a number",
        "boolean": "true or false", "array": "a list", "object": "a table",
    }  # fmt: skip
    words = kinds.get(node.get("type", ""))
    if words is None:
        return []
    if not (alone or words == "a list") or "such as" in words or words == "true or false":
        return [words]
    example = _example(schema, node)
    if words == "a table":
        inner = ".mine" if "patternProperties" in node else ""
        example = f"[{'.'.join(map(str, location))}{inner}]"
    return [f"{words}, such as {example}"]


def _example(schema: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """Return an example of a value that a node allows, as in a study file."""
    kind, default = node.get("type"), node.get("default")
    if isinstance(default, bool | int | float | str):
        return json.dumps(default)
    if "enum" in node:
        return json.dumps(node["enum"][0])
    if kind == "array":
        return f"[{_example(schema, _resolved(schema, node['items'])[0])}]"
    if kind == "object":
        inner = [f"{key} = {_example(schema, node['properties'][key])}" for key in node.get("required", ())]
        return f"{{ {', '.join(inner)} }}"
    if kind == "string":
        return json.dumps(in_words(node.get("pattern", "")).rpartition("such as ")[2] or "text")
    lowest = node.get("minimum", node.get("exclusiveMinimum", 0) + 1)
    return str(lowest) if kind == "integer" else "0.5"
