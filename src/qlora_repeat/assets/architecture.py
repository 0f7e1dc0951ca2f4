"""Read the architecture of a base, and compare a study's table with the configuration that was fetched."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_folder
from qlora_repeat.errors import MissingError
from qlora_repeat.study.data_sources import too_large
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import read_json

_MATTERS = re.compile(r"hidden_act|(num|tie)_.*|.*_(size|dim|bias|dropout)|use_parallel_residual")
"""The settings of a configuration that change a model's memory; others count if the table has them."""


def fetched_architecture(workspace: Workspace, name: str) -> dict[str, Any] | None:
    """Return the content of a base's ``config.json``; None if it is not here before a fetch.

    Raises:
        MissingError: the file cannot be read, or has a size that no model has.
    """
    path, own = base_folder(workspace, name) / "config.json", workspace.study.bases[name].folder
    if not path.is_file() and own is not None:
        path = Path(own.path, "config.json")
    if not path.is_file():
        return None
    again = f"delete the folder and run `{workspace.command('fetch')}`"
    found = read_json(path, again, follow=True)
    if not isinstance(found, dict):
        raise MissingError(f"{path}: expected an object with keys; the study must name another model")
    if wrong := too_large(found):
        raise MissingError(f"{path}: {wrong}; the study must name another model")
    return found


def base_architecture(workspace: Workspace, name: str) -> Mapping[str, Any]:
    """Return a base's architecture from the fetched model, or else from the study.

    Raises:
        MissingError: neither has it.
    """
    found = fetched_architecture(workspace, name) or workspace.study.bases[name].architecture
    if found is None:
        raise MissingError(
            f"base {name}: the study has no [bases.{name}.architecture], and {base_folder(workspace, name)} "
            f"does not exist; add that table, or run `{workspace.command('fetch')}`"
        )
    return found


def wrong_architecture(workspace: Workspace, name: str) -> str | None:
    """Return a line that says how a study's table differs from the fetched model; None if it does not.

    What the table leaves out counts as transformers' default. Miniatures differ by design.
    """
    given, found = workspace.study.bases[name].architecture, fetched_architecture(workspace, name)
    if given is None or found is None or found.get("miniature") is True:
        return None
    where = f"base {name}: its config.json differs from [bases.{name}.architecture]"
    if given.get("model_type") == found.get("model_type"):
        ours, theirs = _whole(given), _whole(found)
        keys = [key for key in theirs if key in given or _MATTERS.fullmatch(key)]
    else:  # which makes other settings incomparable
        ours, theirs, keys = dict(given), found, ["model_type"]
    pairs = {key: (theirs.get(key), ours.get(key)) for key in keys}
    shown = [f"{key} is {one} (table: {other})" for key, (one, other) in pairs.items() if one != other]
    return f"{where}: {', '.join(shown)[:500]}" if shown else None


def _whole(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return an architecture with transformers' defaults; as it is, if transformers cannot use it."""
    from transformers import AutoConfig

    settings = dict(architecture)
    try:
        whole: dict[str, Any] = AutoConfig.for_model(settings.pop("model_type"), **settings).to_dict()
    except Exception:  # of any kind; `plan` names the mistake
        return dict(architecture)
    return whole
