"""British spellings of keys and values, which older study files, records and archives have."""

from typing import Any

_KEYS = {"quantisation": "quantization"}
_WEIGHTS = {"materialised": "materialized"}
"""Values of the key `weights`, and parts after @ in a study's name."""


def respelled(content: Any) -> Any:
    """Return parsed JSON or TOML with American spelling of keys and of values of `weights`."""
    if isinstance(content, list):
        return [respelled(each) for each in content]
    if not isinstance(content, dict):
        return content
    found = {_KEYS.get(key, key): respelled(value) for key, value in content.items()}
    if isinstance(weights := found.get("weights"), str):
        found["weights"] = respelled_part(weights)
    return found


def respelled_part(part: str) -> str:
    """Return a part after @ in a study's name with American spelling."""
    return _WEIGHTS.get(part, part)
