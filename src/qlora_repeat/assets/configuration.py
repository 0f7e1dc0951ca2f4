"""Refuse configurations that name Python code, which transformers could import or download.

The kit never lets it (`trust_remote_code=False`), but such a model cannot be what the study means.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qlora_repeat.assets.pins import CONFIGURATIONS, VOCABULARIES
from qlora_repeat.errors import KitError, MissingError
from qlora_repeat.system.files import read_json

_OTHER_REVISION = "the study file must name another revision of its model"
_LARGEST = 40_000_000
"""Bytes of a file; a tokenizer with 262,144 tokens needs more than 30 MB."""
_NO_LIMIT = int(1e30)
"""What transformers writes into tokenizer_config.json where texts may have any length."""


def code_key(value: Any, *, is_vocabulary: bool = False) -> str | None:
    """Return a key at any depth that names code: classes of a repository, or kernels of one; None without.

    In a vocabulary, keys are tokens, and have integers.
    """
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            for key, inner in each.items():
                names_class = key in ("auto_map", "custom_generate")
                if names_class and not (is_vocabulary and isinstance(inner, int)):
                    return str(key)
                if str(key).endswith("_implementation") and "/" in str(inner):
                    return str(key)
        if isinstance(each, dict | list):
            waiting += each.values() if isinstance(each, dict) else each
    return None


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Let libraries read what the author of a model wrote, in the block.

    Raises:
        MissingError: they fail in a way that can be due to it; full memory, for example, cannot.
    """
    try:
        yield
    except (KitError, ImportError, RuntimeError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise MissingError(f"{folder}: transformers cannot read it ({reason}); {_OTHER_REVISION}") from error


def mend_padding(config: Any) -> bool:
    """Set the padding token of a model's configuration to none, if the model has no embedding for it.

    A model with such a token cannot be built. Padding is masked, so any token does. Return whether it was so.
    """
    text = config.get_text_config()
    padding, known = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if padding is None or known is None or -known <= padding < known:
        return False
    text.pad_token_id = None
    return True


def refuse_code(folder: Path, names: Iterable[str], owner: str) -> None:
    """Check the JSON files among `names` in a folder; `owner` is their model, for errors.

    Raises:
        MissingError: one of them names code, or cannot be read.
    """
    for name in sorted(name for name in names if name.endswith(".json")):
        content = read_json(folder / name, _OTHER_REVISION, follow=True, largest=_NO_LIMIT, limit=_LARGEST)
        if name in CONFIGURATIONS and not isinstance(content, dict):
            raise MissingError(f"{owner}: {name}: expected an object with keys; {_OTHER_REVISION}")
        if key := code_key(content, is_vocabulary=name in VOCABULARIES):
            raise MissingError(
                f"{owner}: {name}: {key} names Python code, which the kit never runs; {_OTHER_REVISION}"
            )
