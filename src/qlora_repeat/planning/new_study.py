"""Write a short, commented study file for a model and rows."""

import json
import math
import os
import random
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_repeat.assets.chat import chat_text
from qlora_repeat.errors import UsageError
from qlora_repeat.planning.own_sources import OwnModel, OwnRows, look_at_model, look_at_rows
from qlora_repeat.study.data_sources import MESSAGES, ROW_KEYS, Row, Task
from qlora_repeat.study.json_schema import SCHEMA
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import PUBLISHED
from qlora_repeat.study.template import CHAT, filled
from qlora_repeat.study.toml_file import quoted
from qlora_repeat.system.files import discard, link, read_file, write_bytes, write_text
from qlora_repeat.system.package_data import kit_path

_MEASURED = 5000
"""The most rows whose tokens are counted."""
_FEWEST = 5
"""The fewest rows: one is for the test, and four to train on."""
_STEPS_ON_CPU = 32
_EXAMPLES_ON_CPU = 48
_LONGEST_ON_CPU = 256
_MULTIPLE = 32
"""Lengths are rounded up to a multiple of this."""
_FEWEST_NEW = 16
"""The number of new tokens is rounded up to a multiple of this."""


@dataclass(frozen=True)
class NewStudy:
    """A study file that was written, and what was found."""

    path: Path
    found: list[str]
    """Lines on the model and the rows."""
    command: str
    """The command that runs it."""


@dataclass(frozen=True)
class Template:
    """The text of a row."""

    text: str
    stop: str | None
    special_tokens: bool
    """Whether the tokenizer adds control tokens to the text."""
    reason: str


def write_new_study(
    name: str,
    model: str,
    data: str,
    *,
    task: Task | None = None,
    trials: int = 3,
    columns: Mapping[str, str] | None = None,
    on_gpu: bool = False,
    compute: str = "float32",
) -> NewStudy:
    """Look at a model and at rows, and write ``NAME.toml`` in the current folder.

    Args:
        name: of the study.
        model: a folder, or a repository of a hub.
        data: a file with rows, or a repository of a hub.
        task: what the rows are for; by default, their columns decide.
        trials: the number of trials.
        columns: the columns of the rows' keys; by default, their usual names.
        on_gpu: whether the study will run on a GPU.
        compute: the precision of arithmetic for the device.

    Raises:
        MissingError: the model or the rows are not there, or the kit cannot use them.
        UsageError: there is such a file, or the name or the rows are not suitable.
    """
    name = name.removesuffix(".toml")
    path = Path(f"{name}.toml")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) or name == PUBLISHED:
        raise UsageError(
            f"{name}: expected lowercase letters, digits, dots, underscores and hyphens, such as my-study"
        )
    if os.path.lexists(path):
        raise UsageError(f"{path}: already exists; give the study another name, or move that file away")
    command = f"`qlora-repeat init {shlex.quote(name)}`, with the same options,"
    rows = look_at_rows(data, task, columns or {}, command)
    if len(rows.rows) < _FEWEST:
        raise UsageError(f"{data}: it has {len(rows.rows)} rows; expected at least {_FEWEST}")
    base = look_at_model(model, command)
    text, found = _study_text(name, base, rows, trials, on_gpu, compute)
    _write_without_replacing(path, text)
    try:
        load_study(str(path))
    except UsageError:
        discard(path)
        raise
    schema = Path(SCHEMA.name)
    if not os.path.lexists(schema):
        write_bytes(schema, read_file(kit_path(str(SCHEMA))))
    return NewStudy(path, found, f"qlora-repeat run {shlex.quote(name)}")


def _write_without_replacing(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    write_text(beside, text)
    try:
        link(beside, path)
    except FileExistsError:
        raise UsageError(f"{path}: somebody made it in the meantime; give the study another name") from None
    finally:
        discard(beside)


def _study_text(
    name: str, base: OwnModel, rows: OwnRows, trials: int, on_gpu: bool, compute: str
) -> tuple[str, list[str]]:
    """Return the study file, and lines on what was found."""
    template = choose_template(base.tokenizer, rows.task, is_chat=MESSAGES in rows.columns)
    lengths = _lengths(base, template, rows.rows)
    middle = f"{round(statistics.median(lengths))}, 95 % {_quantile(lengths, 0.95)}, longest {max(lengths)}"
    of = f"of {len(lengths)} rows " if len(lengths) < len(rows.rows) else ""
    tokens = f"tokens {of}median {middle}"
    found = [
        f"model: {base.configuration.get('model_type')}, linear layers {', '.join(base.linear)}",
        f"data: {len(rows.rows)} rows for {rows.task}, {tokens}; columns "
        + ", ".join(f"{column} ({key})" for key, column in rows.columns.items()),
    ]
    if rows.unused:
        found.append(f"not used: columns {', '.join(rows.unused)}")
    modules, why = choose_modules(base)
    lines = [
        f"#:schema ./{SCHEMA.name}",
        f"# Written by `qlora-repeat init`. `qlora-repeat show {name}` prints all other settings.",
        f"trials = {trials} # of each optimizer; the paper has 7",
        'optimizers = ["adamw-8bit"] # add "adamw-32bit" to compare the two, as the paper does',
        'profile = "as-published" # each trial draws its adapter; with "bitwise" all are the same',
        "",
        "[bases.base]",
        base.line,
        "",
        *_data_lines(base, rows, on_gpu),
        "",
        f"[models.{quoted(name) if '.' in name else name}]",
        f"template = {quoted(template.text)} # {template.reason}",
        *([f"stop = {quoted(template.stop)}"] if template.stop else []),
        f"target_modules = {json.dumps(modules)} # {why}",
        "",
        *_training_lines(lengths, _position_limit(base), tokens, on_gpu),
        "",
        *_precision_lines(base, on_gpu, compute),
    ]
    return "\n".join(lines) + "\n", found


def _data_lines(base: OwnModel, rows: OwnRows, on_gpu: bool) -> list[str]:
    lines = ["[data.rows]", f'task = "{rows.task}"', *rows.lines]
    if any(key != column or key == MESSAGES for key, column in rows.columns.items()):
        pairs = ", ".join(f"{key} = {quoted(column)}" for key, column in rows.columns.items())
        unused = f" # not used: {', '.join(rows.unused)}" if rows.unused else ""
        lines.append(f"columns = {{ {pairs} }}{_comment(unused)}")
    longest = _quantile(_answer_lengths(base, rows), 0.95)
    new_tokens = min(_rounded(longest, _FEWEST_NEW), 256 if on_gpu else 32)
    what = "texts" if rows.task == "text-generation" else "answers"
    return [*lines, f"max_new_tokens = {new_tokens} # 95 % of the {what} have at most {longest} tokens"]


def _training_lines(lengths: Sequence[int], limit: int | None, tokens: str, on_gpu: bool) -> list[str]:
    longest, cut = choose_length(lengths, limit, on_gpu)
    lines = [
        "[training]",
        f"max_length = {longest} # {tokens}; " + (f"{cut} are cut" if cut else "none is cut"),
    ]
    if on_gpu:
        return [*lines, "epochs = 3 # as in the paper"]
    return [
        *lines,
        f"steps = {_STEPS_ON_CPU} # a first look on a CPU; `epochs = 3` is what the paper has",
        "",
        "[evaluation]",
        f"examples = {_EXAMPLES_ON_CPU} # of the test rows, on a CPU",
    ]


def _precision_lines(base: OwnModel, on_gpu: bool, compute: str) -> list[str]:
    device = "GPU" if on_gpu else "CPU: half precision is slow on most"
    merged = "bfloat16" if _dtype(base) == "bfloat16" else "float16"
    kept = f"the weights are stored in {_dtype(base)}" if _dtype(base) else "the paper's"
    return ["[precision]", f'compute = "{compute}" # for this {device}', f'merged = "{merged}" # {kept}']


def choose_template(tokenizer: Any, task: Task, *, is_chat: bool) -> Template:
    """Return the template of a task: of a chat model its own, otherwise plain text.

    Raises:
        UsageError: rows are chats (`is_chat`), and the tokenizer has no template that can be used.
    """
    end = tokenizer.eos_token
    if task == "text-generation":
        return Template("{quote}", None, True, "the text as it is")
    try:
        return _chat_template(tokenizer)
    except UsageError as error:
        if is_chat:
            raise UsageError(f"{error}; or use a model for chats") from None
    text = "{instruction}\n{answer}"
    if isinstance(end, str) and end:
        return Template(text + _escaped(end), end, True, "ends with the tokenizer's end of text")
    return Template(text, None, True, "the instruction, then the answer")


def _chat_template(tokenizer: Any) -> Template:
    """Return the tokenizer's chat template, and what ends its answers; raises UsageError as `chat_text`."""
    answer = "QLORAREPEATANSWER"
    text, spans = chat_text(tokenizer, {"instruction": "Why?", "answer": answer})
    start, end = spans[-1]
    stop = text[start + len(answer) : end].strip()
    return Template(CHAT, stop or None, False, "the tokenizer's chat template")


def choose_modules(base: OwnModel) -> tuple[list[str], str]:
    """Return the layers to adapt, and why."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    usual = DEFAULTS.get(str(base.configuration.get("model_type")), [])
    chosen = [name for name in base.linear if name in usual]
    if chosen and len(chosen) == len(usual):
        others = [name for name in base.linear if name not in chosen]
        return chosen, f"PEFT's default; others: {', '.join(others)}" if others else "PEFT's default"
    if not base.linear:
        raise UsageError("the model has no linear layers in its blocks, so the kit cannot adapt it")
    return base.linear, "all linear layers"


def choose_length(lengths: Sequence[int], limit: int | None, on_gpu: bool) -> tuple[int, int]:
    """Return the maximum length, and how many of the rows are cut.

    It fits all rows or, if a few are much longer than the others, 99 % of them.
    """
    whole, most = _rounded(max(lengths)), _rounded(_quantile(lengths, 0.99))
    chosen = whole if whole <= 2 * most else most
    chosen = min(chosen, 2048 if on_gpu else _LONGEST_ON_CPU, limit or chosen)
    return chosen, sum(length > chosen for length in lengths)


def _lengths(base: OwnModel, template: Template, rows: Sequence[Row]) -> list[int]:
    """Return the number of tokens of each row, or of a sample of them."""
    some = rows if len(rows) <= _MEASURED else random.Random(0).sample(rows, _MEASURED)
    if template.text == CHAT:
        texts = [chat_text(base.tokenizer, row)[0] for row in some]
    else:
        texts = [filled(template.text, row) for row in some]
    return [
        len(ids) for ids in base.tokenizer(texts, add_special_tokens=template.special_tokens)["input_ids"]
    ]


def _answer_lengths(base: OwnModel, rows: OwnRows) -> list[int]:
    some = rows.rows if len(rows.rows) <= _MEASURED else random.Random(0).sample(rows.rows, _MEASURED)
    key = ROW_KEYS[rows.task][-1]
    return [len(ids) for ids in base.tokenizer([row[key] for row in some])["input_ids"]]


def _position_limit(base: OwnModel) -> int | None:
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(value := base.configuration.get(key), int) and value > 0:
            return value
    return None


def _dtype(base: OwnModel) -> str | None:
    found = base.configuration.get("dtype", base.configuration.get("torch_dtype"))
    return found if found in ("float32", "bfloat16", "float16") else None


def _quantile(values: Sequence[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def _rounded(length: int, multiple: int = _MULTIPLE) -> int:
    return max(1, math.ceil(length / multiple)) * multiple


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _comment(text: str) -> str:
    """Return a comment without characters that a study file may not have."""
    return "".join(each if each.isprintable() else "?" for each in text)
