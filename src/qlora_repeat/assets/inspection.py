"""Inspect a model's rows as it will see them, before training: what makes numbers wrong, and what to know.

The result is kept in the folder of the data, and belongs to everything that it depends on. It is of the split
of trial 1, if trials have their own.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

from qlora_repeat.assets.base_models import base_digest, base_folder, load_tokenizer
from qlora_repeat.assets.chat import DATE, chat_template, has_date
from qlora_repeat.assets.configuration import usable
from qlora_repeat.assets.datasets import (
    Example,
    Part,
    data_digest,
    data_folder,
    encode,
    parts_of,
    prompt_ids,
    read_row_files,
    study_prompts,
    text_of,
    token_counts,
)
from qlora_repeat.assets.derived_cache import has_copy, keep_copy
from qlora_repeat.errors import UsageError
from qlora_repeat.study.data_sources import Row
from qlora_repeat.study.randomness import draw_seed
from qlora_repeat.study.template import CHAT
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import write_json
from qlora_repeat.system.fingerprint import packages
from qlora_repeat.system.hashing import json_digest
from qlora_repeat.system.typed_json import read_as

_FORMAT = 1
_FILE = "inspection.json"
_AGAIN = "delete the folder and run `qlora-repeat fetch` for this study"
_LISTED = 5
"""Rows that a finding names."""

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
    """Number of rows (of prompts for `ended_prompts`) of each kind of finding."""
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
    settings = [asdict(model), asdict(study.data[model.data]), study.evaluation.examples, _seed(workspace)]
    digests = [base_digest(workspace, model.base), data_digest(workspace, model.data)]
    name = f"inspected-{model_name}-{json_digest([_FORMAT, *settings, *digests, packages()])[:16]}"
    return data_folder(workspace, model.data) / name


def _seed(workspace: Workspace) -> int:
    split = workspace.study.randomness.split
    return 0 if split == "fresh" else draw_seed(split, "split", 1)


@dataclass(frozen=True)
class _Seen:
    """A row as the model will see it."""

    number: int
    """Its number in the source, from 1."""
    part: Part
    row: Row
    text: str
    example: Example
    length: int
    """Its tokens before it is cut."""


def _inspect(workspace: Workspace, model_name: str) -> Inspection:
    model = workspace.study.models[model_name]
    folder = base_folder(workspace, model.base)
    tokenizer = load_tokenizer(folder)
    if model.template == CHAT:
        try:
            chat_template(tokenizer)
        except UsageError as error:
            raise UsageError(f"models.{model_name}.template is chat, and {error}") from None
    seen = list(_seen(workspace, model_name, tokenizer))
    lengths = sorted(each.length for each in seen)
    finder = _Finder(workspace, model_name, tokenizer, seen)
    for check in (
        finder.empty,
        finder.without_targets,
        finder.cut,
        finder.doubled,
        finder.ended_prompts,
        finder.control_tokens,
        finder.unknown,
        finder.in_both_parts,
        finder.embeddings,
        finder.positions,
        finder.dated,
    ):
        check()
    parts = Counter(each.part for each in seen)

    def at(share: float) -> int:
        return lengths[round(share * (len(lengths) - 1))]

    return Inspection(
        train_rows=parts["train"],
        test_rows=parts["test"],
        tokens=Quantiles(min=at(0), median=at(0.5), p90=at(0.9), p99=at(0.99), max=at(1)),
        counts=finder.counts,
        warnings=finder.warnings,
        stops=finder.stops,
    )


def _seen(workspace: Workspace, model_name: str, tokenizer: Any) -> Iterator[_Seen]:
    study = workspace.study
    model = study.models[model_name]
    data = study.data[model.data]
    files = read_row_files(workspace, model.data)
    numbers = {id(row): number for rows in files for number, row in enumerate(rows, 1)}
    for part, own in parts_of(data, files, _seed(workspace)).items():
        used = own[: data.max_rows]
        if part == "test":
            used = used[: study.evaluation.examples]
        found = []
        for row in used:
            try:
                found.append(text_of(tokenizer, model, row))
            except UsageError as error:
                raise UsageError(f"data.{model.data}: row {numbers[id(row)]}: {error}") from None
        examples = encode(tokenizer, model, used)
        texts = [each.text for each in found]
        lengths = token_counts(tokenizer, model, texts)
        for row, text, example, length in zip(used, texts, examples, lengths, strict=True):
            yield _Seen(numbers[id(row)], part, row, text, example, length)


class _Finder:
    """Collects findings; each check looks at all rows."""

    def __init__(self, workspace: Workspace, model_name: str, tokenizer: Any, seen: list[_Seen]) -> None:
        from transformers import AutoConfig

        self.model = workspace.study.models[model_name]
        self.data = workspace.study.data[self.model.data]
        self.tokenizer, self.seen = tokenizer, seen
        asked = study_prompts(workspace, model_name, _seed(workspace), tokenizer)
        self.prompts = [each.fed for each in asked]
        folder = base_folder(workspace, self.model.base)
        with usable(folder):
            self.config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        self.counts = dict[str, int]()
        self.warnings, self.stops = list[str](), list[str]()

    def empty(self) -> None:
        for column in self.seen[0].row:
            found = [each for each in self.seen if not each.row[column].strip()]
            if self._counts(f"empty_{column}", found):
                self.warnings.append(f"{_rows(found)} {_have(found)} no text in {column}")

    def without_targets(self) -> None:
        loss = self.model.training.loss
        found = [each for each in self.seen if not any(each.example.is_target(loss))]
        for part, name in (("train", "training"), ("test", "test")):
            own = [each for each in self.seen if each.part == part]
            if own and not any(any(each.example.is_target(loss)) for each in own):
                self.stops.append(
                    f"no {name} row has a token to predict; correct the data, the template or max_length"
                )
        if self._counts("without_targets", found):
            what = "training learns nothing from them, evaluation leaves them out"
            self.warnings.append(f"{_rows(found)} {_have(found)} no token to predict; {what}")

    def cut(self) -> None:
        longest, limit = max(each.length for each in self.seen), self.model.training.max_length
        advice = f"the longest row has {longest} tokens"
        long = [each for each in self.seen if each.length > limit]
        if self._counts("cut_rows", long) and "answer" not in self.seen[0].row:
            self.warnings.append(f"max_length {limit} cuts {_rows(long)}; {advice}")
        cut = [each for each in self.seen if each.example.cut]
        whole = [each for each in cut if each.example.answer_start >= len(each.example.ids)]
        part = [each for each in cut if each.example.answer_start < len(each.example.ids)]
        self._counts("cut_answers", part)
        if self._counts("lost_answers", whole):
            self.warnings.append(f"max_length {limit} cuts off the whole answer of {_rows(whole)}; {advice}")
        if part:
            self.warnings.append(f"max_length {limit} cuts the end of the answer of {_rows(part)}; {advice}")
        tested = [each for each in self.seen if each.part == "test"]
        if "answer" in self.seen[0].row and all(each.example.cut for each in tested):
            self.warnings.append("no test row keeps its whole answer, so that accuracy is not measured")

    def doubled(self) -> None:
        tokenizer, advice = self.tokenizer, "remove it from the template, or set special_tokens = false"
        for name, token, begins in (
            ("doubled_begin", tokenizer.bos_token_id, True),
            ("doubled_end", tokenizer.eos_token_id, False),
        ):
            pairs = ((each, each.example.ids[:2] if begins else each.example.ids[-2:]) for each in self.seen)
            found = [each for each, pair in pairs if token is not None and pair == [token, token]]
            if self._counts(name, found):
                text = tokenizer.convert_ids_to_tokens(token)
                verb = "begin" if begins else "end"
                verb = f"{verb}s" if len(found) == 1 else verb
                self.warnings.append(f"{_rows(found)} {verb} with {text} twice ({text}{text}); {advice}")

    def ended_prompts(self) -> None:
        end = self.tokenizer.eos_token_id
        plain = [self._ids(text, special=False) for text in self.prompts]
        ended = sum(ids[-1:] == [end] for ids in plain) if end is not None else 0
        added = [self._ids(text, special=self.model.special_tokens) for text in self.prompts]
        if not all(map(self._ids, self.prompts)):
            self.stops.append("a prompt has no token; correct the prompts or the template")
        text = self.tokenizer.eos_token
        if ended:
            self.counts["ended_prompts"] = ended
            what = f"{ended} of {len(plain)} prompts end with {text}, after which a model starts a new text"
            self.warnings.append(f"{what}; remove it from the template or the prompts")
        elif end is not None and any(ids[-1:] == [end] for ids in added):
            self.counts["ended_prompts"] = len(added)
            what = f"prompts would end with {text}, which the tokenizer adds to texts; it is left out there"
            self.warnings.append(f"{what} (special_tokens = false adds none anywhere)")

    def control_tokens(self) -> None:
        known = {each.content for each in self.tokenizer.added_tokens_decoder.values() if each.special}
        tokens = sorted(filter(None, known | {*self.tokenizer.all_special_tokens}))
        found = {
            token: [each for each in self.seen if any(token in text for text in each.row.values())]
            for token in tokens
        }
        self._counts("control_tokens", {id(each): each for own in found.values() for each in own}.values())
        for token, own in [pair for pair in found.items() if pair[1]][:_LISTED]:
            what = "which the tokenizer reads as a control token"
            self.warnings.append(f"the text of {_rows(own)} has {token[:50]!r}, {what}")

    def unknown(self) -> None:
        tokenizer, token = self.tokenizer, self.tokenizer.unk_token_id
        if token is None or token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            return
        found = [each for each in self.seen if token in each.example.ids]
        if self._counts("unknown_tokens", found):
            self.warnings.append(f"{_rows(found)} {_have(found)} text that the tokenizer does not know")

    def in_both_parts(self) -> None:
        trained = {each.text for each in self.seen if each.part == "train"}
        tested = [each for each in self.seen if each.part == "test"]
        found = [each for each in tested if each.text in trained]
        if self._counts("in_training_and_test", found):
            what = "so that the test measures memory too"
            self.warnings.append(f"{_rows(found)} of the test also occur in training, {what}")

    def embeddings(self) -> None:
        known = getattr(self.config, "vocab_size", None)
        if known is None:
            return
        found = [each for each in self.seen if max(each.example.ids, default=0) >= known]
        self._counts("without_embedding", found)
        ids = [max(each.example.ids) for each in found]
        ids += [most for text in self.prompts if (most := max(self._ids(text), default=0)) >= known]
        if ids:
            who = f"row {found[0].number} has" if found else "a prompt has"
            token = self.tokenizer.convert_ids_to_tokens(ids[0])
            more = f" ({len(found)} rows in all)" if len(found) > 1 else ""
            self.stops.append(
                f"{who} token {ids[0]} ({token}), but the base has embeddings of tokens 0 to {known - 1} only"
                f"{more}; remove it from the template or the data, or use the tokenizer of this base"
            )

    def positions(self) -> None:
        known, limit = positions(self.config), self.model.training.max_length
        if known is None:
            return
        found = [each for each in self.seen if len(each.example.ids) > known]
        if self._counts("beyond_positions", found):
            self.stops.append(
                f"{_rows(found)} {_have(found)} more tokens than the base has positions ({known}); "
                f"set max_length to at most {known}, it is {limit}"
            )
        elif limit > known:
            self.warnings.append(f"max_length {limit} is more than the base's {known} positions; no row is")
        new = self.data.max_new_tokens
        longest = max((len(self._ids(text)) for text in self.prompts), default=0)
        if longest + new - 1 > known:  # the last token is not fed to the model
            self.stops.append(
                f"a prompt of {longest} tokens and max_new_tokens {new} are more than the base's {known} "
                f"positions; reduce max_new_tokens, or choose shorter prompts"
            )

    def dated(self) -> None:
        if self.model.template == CHAT and has_date(self.tokenizer.get_chat_template()):
            self.warnings.append(f"the chat template asks for the date; it always gets {DATE}")

    def _ids(self, text: str, *, special: bool | None = None) -> list[int]:
        if special is None:
            return prompt_ids(self.tokenizer, self.model, text)
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _counts(self, name: str, found: Any) -> bool:
        """Note how many there are of a kind, if any."""
        if found:
            self.counts[name] = len(found)
        return bool(found)


def positions(config: Any) -> int | None:
    """Return the most tokens of a text that a model has positions for; None if there is no limit."""
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0 or getattr(config, "alibi", False):
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    scalings = [each for each in (rope, *rope.values()) if isinstance(each, dict)]
    return int(found * max([1.0, *(each.get("factor") or 1.0 for each in scalings)]))


def _rows(found: Sequence[_Seen]) -> str:
    numbers = ", ".join(str(each.number) for each in sorted(found, key=lambda each: each.number)[:_LISTED])
    more = ", …" if len(found) > _LISTED else ""
    return f"row {numbers}" if len(found) == 1 else f"{len(found)} rows ({numbers}{more})"


def _have(found: Sequence[_Seen]) -> str:
    return "has" if len(found) == 1 else "have"
