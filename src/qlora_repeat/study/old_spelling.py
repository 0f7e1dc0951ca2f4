"""Keys and values as they were spelled before American spelling, in study files, records and archives."""

from typing import Any

_KEYS = {"quantisation": "quantization"}
_WEIGHTS = {"materialised": "materialized"}
"""Values of the key `weights`, and what may follow @ in a study's name."""


def respelled(content: Any) -> Any:
    """Return parsed JSON or TOML with today's spelling of keys and of `weights`; all else as it is."""
    if isinstance(content, list):
        return [respelled(each) for each in content]
    if not isinstance(content, dict):
        return content
    found = {_KEYS.get(key, key): respelled(value) for key, value in content.items()}
    if isinstance(weights := found.get("weights"), str):
        found["weights"] = respelled_part(weights)
    return found


def respelled_part(part: str) -> str:
    """Return today's spelling of what follows @ in a study's name."""
    return _WEIGHTS.get(part, part)
