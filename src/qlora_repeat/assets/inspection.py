"""Inspect a model's rows as it will see them, before training: what makes numbers wrong, and what to know.

The result is kept in the folder of the data, and belongs to everything that it depends on. If trials have
splits of their own, it is of the split of trial 1, and of all rows, whatever the study's `max_rows`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

from qlora_repeat.assets.answer_rows import asked_rows, data_labels
from qlora_repeat.assets.base_models import base_digest, base_folder, load_tokenizer
from qlora_repeat.assets.chat import chat_template
from qlora_repeat.assets.configuration import usable
from qlora_repeat.assets.datasets import (
    data_digest,
    data_folder,
    encode_texts,
    parts_of,
    read_row_files,
    study_prompts,
    text_of,
    token_counts,
)
from qlora_repeat.assets.derived_cache import has_copy, keep_copy
from qlora_repeat.assets.row_checks import CHECKS, Flaw, Seen, SeenRow, positions
from qlora_repeat.errors import UsageError
from qlora_repeat.study.randomness import draw_seed
from qlora_repeat.study.scores import SCORES
from qlora_repeat.study.template import CHAT
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import write_json
from qlora_repeat.system.fingerprint import packages
from qlora_repeat.system.hashing import json_digest
from qlora_repeat.system.typed_json import read_as

_FORMAT = 1
_FILE = "inspection.json"
_AGAIN = "delete the folder and fetch the study again"

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Line = Annotated[str, Field(max_length=2000)]
_CLOSED = ConfigDict(extra="forbid")


@with_config(_CLOSED)
class Quantiles(TypedDict):
    """Quantiles of the lengths of rows in tokens, before they are cut."""

    min: _Count
    median: _Count
    p90: _Count
    p99: _Count
    max: _Count


@with_config(_CLOSED)
@dataclass(frozen=True)
class Inspection:
    """What was found in the rows of a model."""

    train_rows: _Count
    test_rows: _Count
    tokens: Quantiles
    counts: dict[str, _Count]
    """The number of rows, or of prompts, of each kind of flaw."""
    warnings: Annotated[list[_Line], Field(max_length=100)]
    """What to know, one line each."""
    stops: Annotated[list[_Line], Field(max_length=100)]
    """What would make numbers wrong, one line each."""

    @property
    def lengths(self) -> str:
        """The numbers of rows and their lengths, in words."""
        found = self.tokens
        return (
            f"{self.train_rows} training and {self.test_rows} test rows of {found['min']} to {found['max']} "
            f"tokens (half have up to {found['median']}, 99 % up to {found['p99']})"
        )


INSPECTION: TypeAdapter[Inspection] = TypeAdapter(Inspection)


def inspected(workspace: Workspace, model_name: str, *, keep: bool = True) -> Inspection:
    """Return what is in the rows of a model, whose data and base are in the cache; inspect them once.

    With `keep`, the result is kept, if the disk allows.

    Raises:
        MissingError: the data or the base cannot be read.
    """
    if (found := kept_inspection(workspace, model_name)) is not None:
        return found
    found = _inspect(workspace, model_name)
    if keep:
        folder = _folder(workspace, model_name)
        keep_copy(folder, lambda new: write_json(new / _FILE, asdict(found)))
    return found


def kept_inspection(workspace: Workspace, model_name: str) -> Inspection | None:
    """Return what an earlier inspection of the same rows for the same model has found, or None."""
    folder = _folder(workspace, model_name)
    return read_as(INSPECTION, folder / _FILE, _AGAIN) if has_copy(folder) else None


def require_sound(workspace: Workspace, model_name: str) -> Inspection:
    """Return what is in the rows of a model.

    Raises:
        UsageError: they would make numbers wrong, or a prompt matches no row.
        MissingError: as `inspected`.
    """
    found = inspected(workspace, model_name)
    if found.stops:
        raise UsageError(f"models.{model_name}: {found.stops[0]}")
    return found


def _folder(workspace: Workspace, model_name: str) -> Path:
    study = workspace.study
    model = study.models[model_name]
    settings = [asdict(model), asdict(study.data[model.data]), study.evaluation.examples]
    settings += [_seed(workspace), _has_one_split(workspace)]
    if study.data[model.data].task in SCORES:
        settings.append(asdict(study.evaluation.answers))
    digests = [base_digest(workspace, model.base), data_digest(workspace, model.data)]
    name = f"inspected-{model_name}-{json_digest([_FORMAT, *settings, *digests, packages()])[:16]}"
    return data_folder(workspace, model.data) / name


def _seed(workspace: Workspace) -> int:
    split = workspace.study.randomness.split
    return 0 if split == "fresh" else draw_seed(split, "split", 1)


def _has_one_split(workspace: Workspace) -> bool:
    """Return whether all trials have the same split."""
    return isinstance(workspace.study.randomness.split, int)


def _inspect(workspace: Workspace, model_name: str) -> Inspection:
    seen = _seen(workspace, model_name)
    flaws = [flaw for check in CHECKS for flaw in check(seen)]
    flaws += _answer_flaws(workspace, model_name, seen)
    lengths = sorted(each.length for each in seen.rows)
    parts = Counter(each.part for each in seen.rows)

    def at(share: float) -> int:
        return lengths[round(share * (len(lengths) - 1))]

    return Inspection(
        train_rows=parts["train"],
        test_rows=parts["test"],
        tokens=Quantiles(min=at(0), median=at(0.5), p90=at(0.9), p99=at(0.99), max=at(1)),
        counts={flaw.kind: flaw.count for flaw in flaws if flaw.count},
        warnings=[flaw.text for flaw in flaws if flaw.text and not flaw.stops],
        stops=[flaw.text for flaw in flaws if flaw.stops],
    )


def _seen(workspace: Workspace, model_name: str) -> Seen:
    from transformers import AutoConfig

    model = workspace.study.models[model_name]
    folder = base_folder(workspace, model.base)
    tokenizer = load_tokenizer(folder)
    if model.template == CHAT:
        try:
            chat_template(tokenizer)
        except UsageError as error:
            raise UsageError(f"models.{model_name}.template is chat, and {error}") from None
    with usable(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    return Seen(
        model,
        workspace.study.data[model.data],
        tokenizer,
        config,
        _seen_rows(workspace, model_name, tokenizer),
        [each.fed for each in study_prompts(workspace, model_name, _seed(workspace), tokenizer)],
    )


def _seen_rows(workspace: Workspace, model_name: str, tokenizer: Any) -> list[SeenRow]:
    """Return the rows in the order of their files."""
    study = workspace.study
    model = study.models[model_name]
    data, files = study.data[model.data], read_row_files(workspace, model.data)
    numbers = {id(row): number for rows in files for number, row in enumerate(rows, 1)}
    found = list[tuple[int, SeenRow]]()
    for part, own in parts_of(data, files, _seed(workspace)).items():
        used = own
        if _has_one_split(workspace):
            used = own[: data.max_rows]
            used = used[: study.evaluation.examples] if part == "test" else used
        of_test = " of the test file" if data.has_test and part == "test" else ""
        texts = []
        for row in used:
            try:
                texts.append(text_of(tokenizer, model, row))
            except UsageError as error:
                where = f"data.{model.data}: row {numbers[id(row)]}{of_test}"
                raise UsageError(f"{where}: {error}") from None
        examples = encode_texts(tokenizer, model, texts)
        limit = model.training.max_length
        long = [text.text for text, each in zip(texts, examples, strict=True) if len(each.ids) >= limit]
        counts = iter(token_counts(tokenizer, model, long))
        for row, text, each in zip(used, texts, examples, strict=True):
            length = next(counts) if len(each.ids) >= limit else len(each.ids)
            number = numbers[id(row)]
            found.append((number, SeenRow(f"{number}{of_test}", part, row, text.text, each, length)))
    found.sort(key=lambda each: each[0])
    return [row for _, row in found]


def _answer_flaws(workspace: Workspace, model_name: str, seen: Seen) -> Iterator[Flaw]:
    """Look at the prompts and references of answers that will be scored, if the task has such."""
    settings = workspace.study.evaluation.answers
    if seen.data.task not in SCORES:
        return
    try:
        if seen.data.task == "classification":
            data_labels(workspace, seen.model.data)
    except UsageError as error:
        yield Flaw("", text=str(error), stops=True)
        return
    kept, left_out = asked_rows(workspace, model_name, _seed(workspace), seen.tokenizer)
    why = (
        f"whose prompt has more than {settings.prompt_length} tokens (evaluation.answers.prompt_length), "
        "or whose reference is too long or, for ROUGE, without a letter from a to z or a digit"
    )
    if not kept:
        yield Flaw("", text=f"no answer can be scored: all test rows are ones {why}", stops=True)
    elif left_out:
        yield Flaw("left_out_answers", left_out, f"scores leave out {left_out} test rows {why}")
    known, longest = positions(seen.config), max((len(each.ids) for each in kept), default=0)
    if known is not None and longest + seen.data.max_new_tokens - 1 > known:
        text = (
            f"a test prompt of {longest} tokens and max_new_tokens {seen.data.max_new_tokens} are more "
            f"than the base's {known} positions; reduce one of them (evaluation.answers.prompt_length)"
        )
        yield Flaw("", text=text, stops=True)
