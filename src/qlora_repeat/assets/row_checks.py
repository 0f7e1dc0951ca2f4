"""Checks of rows and prompts as a model sees them; `qlora_repeat.assets.inspection` runs them all."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_repeat.assets.chat import DATE, has_date
from qlora_repeat.assets.datasets import Example, Part, prompt_ids
from qlora_repeat.study.data_sources import Data, Row
from qlora_repeat.study.study import Model
from qlora_repeat.study.template import CHAT

_LISTED = 5
"""Rows that a line names."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
"""Control characters other than tabs and ends of lines, and the mark of a character that was lost."""


@dataclass(frozen=True)
class SeenRow:
    """A row as a model sees it."""

    name: str
    """Its number in its file, from 1; for a row of the test file, this is said."""
    part: Part
    row: Row
    text: str
    example: Example
    length: int
    """Its tokens before it is cut."""


@dataclass(frozen=True)
class Seen:
    """All rows and prompts as a model sees them, and what it knows."""

    model: Model
    data: Data
    tokenizer: Any
    config: Any
    """The configuration of the model, of transformers."""
    rows: list[SeenRow]
    """In the order of their source."""
    prompts: list[str]

    def ids(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt."""
        return prompt_ids(self.tokenizer, self.model, prompt)

    def plain_ids(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids that the tokenizer gives to a text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids


@dataclass(frozen=True)
class Flaw:
    """What a check found."""

    kind: str
    count: int = 0
    """The number of rows (or prompts) of this kind."""
    text: str = ""
    """What to tell, if anything."""
    stops: bool = False
    """Whether it makes numbers wrong."""


def empty(seen: Seen) -> Iterator[Flaw]:
    """Find rows without text in a column."""
    for column in seen.rows[0].row:
        if found := [each for each in seen.rows if not each.row[column].strip()]:
            yield Flaw(f"empty_{column}", len(found), f"{_rows(found)} {_have(found)} no text in {column}")


def without_targets(seen: Seen) -> Iterator[Flaw]:
    """Find rows with nothing to predict: no answer, if only answers are learned; never the first token."""
    loss = seen.model.training.loss
    has_target = [any(each.example.is_target(loss)) for each in seen.rows]
    found = [each for each, has in zip(seen.rows, has_target, strict=True) if not has]
    for part, name in (("train", "training"), ("test", "test")):
        own = [has for each, has in zip(seen.rows, has_target, strict=True) if each.part == part]
        if own and not any(own):
            text = f"no {name} row has a token to predict; correct the data, the template or max_length"
            yield Flaw("", text=text, stops=True)
    if found:
        what = "training learns nothing from them, evaluation leaves them out"
        text = f"{_rows(found)} {_have(found)} no token to predict; {what}"
        yield Flaw("without_targets", len(found), text)


def cut(seen: Seen) -> Iterator[Flaw]:
    """Find rows, and answers, that `max_length` cuts."""
    limit = seen.model.training.max_length
    advice = f"the longest row has {max(each.length for each in seen.rows)} tokens"
    has_answers = "answer" in seen.rows[0].row
    if long := [each for each in seen.rows if each.length > limit]:
        text = f"max_length {limit} cuts {_rows(long)}; {advice}"
        yield Flaw("cut_rows", len(long), "" if has_answers else text)
    answers = [each for each in seen.rows if each.example.cut]
    lost = [each for each in answers if each.example.answer_start >= len(each.example.ids)]
    shorter = [each for each in answers if each.example.answer_start < len(each.example.ids)]
    if lost:
        text = f"max_length {limit} cuts off the whole answer of {_rows(lost)}; {advice}"
        yield Flaw("lost_answers", len(lost), text)
    if shorter:
        text = f"max_length {limit} cuts the end of the answer of {_rows(shorter)}; {advice}"
        yield Flaw("cut_answers", len(shorter), text)
    tested = [each for each in seen.rows if each.part == "test"]
    if has_answers and tested and all(each.example.cut for each in tested):
        yield Flaw("", text="no test row keeps its whole answer, so that accuracy is not measured")


def doubled(seen: Seen) -> Iterator[Flaw]:
    """Find rows and prompts that begin, or end, with the same control token twice."""
    tokenizer, rows = seen.tokenizer, [(each, each.example.ids) for each in seen.rows]
    ends = (
        ("begin", tokenizer.bos_token_id, slice(None, 2)),
        ("end", tokenizer.eos_token_id, slice(-2, None)),
    )
    for verb, token, place in ends:
        if token is None:
            continue
        name = tokenizer.convert_ids_to_tokens(token)
        what = f"with {name} twice ({name}{name}); remove it from the template or the text, or set "
        what += "special_tokens = false"
        if found := [each for each, ids in rows if ids[place] == [token, token]]:
            own = f"{verb}s" if len(found) == 1 else verb
            yield Flaw(f"doubled_{verb}", len(found), f"{_rows(found)} {own} {what}")
        elif prompts := sum(seen.ids(text)[place] == [token, token] for text in seen.prompts):
            text = f"{prompts} of {len(seen.prompts)} prompts {verb} {what}"
            yield Flaw(f"doubled_{verb}_of_prompts", prompts, text)


def ended_prompts(seen: Seen) -> Iterator[Flaw]:
    """Find prompts without a token, and those that end with the end token."""
    end, name, count = seen.tokenizer.eos_token_id, seen.tokenizer.eos_token, len(seen.prompts)
    if not all(map(seen.ids, seen.prompts)):
        text = "a prompt has no token; correct the prompts or the template"
        yield Flaw("", text=text, stops=True)
    if end is None:
        return
    ended = sum(seen.plain_ids(text, special=False)[-1:] == [end] for text in seen.prompts)
    if ended:
        what = f"{ended} of {count} prompts end with {name}, after which a model starts a new text"
        yield Flaw("ended_prompts", ended, f"{what}; remove it from the template or the prompts")
    elif any(seen.plain_ids(text, special=seen.model.special_tokens)[-1:] == [end] for text in seen.prompts):
        what = f"prompts would end with {name}, which the tokenizer adds to texts; it is left out there"
        yield Flaw("ended_prompts", count, f"{what} (special_tokens = false adds none anywhere)")


def control_tokens(seen: Seen) -> Iterator[Flaw]:
    """Find control tokens in the text of rows."""
    tokenizer = seen.tokenizer
    known = {each.content for each in tokenizer.added_tokens_decoder.values() if each.special}
    tokens = sorted(filter(None, known | {*tokenizer.all_special_tokens}))
    of_token = {
        token: [each for each in seen.rows if any(token in text for text in each.row.values())]
        for token in tokens
    }
    if names := {each.name for found in of_token.values() for each in found}:
        yield Flaw("control_tokens", len(names))
    for token, found in [pair for pair in of_token.items() if pair[1]][:_LISTED]:
        what = f"has {token[:50]!r}, which the tokenizer reads as a control token"
        yield Flaw("", text=f"the text of {_rows(found)} {what}")


def control_characters(seen: Seen) -> Iterator[Flaw]:
    """Find characters in the text of rows that no one types, as from a file that was read wrongly."""
    if found := [each for each in seen.rows if any(map(_CONTROL.search, each.row.values()))]:
        match = next(filter(None, map(_CONTROL.search, found[0].row.values())))
        text = f"the text of {_rows(found)} has control characters, such as U+{ord(match[0]):04X}"
        yield Flaw("control_characters", len(found), text)


def unknown(seen: Seen) -> Iterator[Flaw]:
    """Find rows with text that the tokenizer does not know."""
    tokenizer, token = seen.tokenizer, seen.tokenizer.unk_token_id
    if token is None or token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return
    if found := [each for each in seen.rows if token in each.example.ids]:
        text = f"{_rows(found)} {_have(found)} text that the tokenizer does not know"
        yield Flaw("unknown_tokens", len(found), text)


def in_both_parts(seen: Seen) -> Iterator[Flaw]:
    """Find test rows whose text, whatever its blanks, is also in training."""

    def text_of(each: SeenRow) -> str:
        return " ".join(each.text.split())

    trained = {text_of(each) for each in seen.rows if each.part == "train"}
    if found := [each for each in seen.rows if each.part == "test" and text_of(each) in trained]:
        verb = "occurs" if len(found) == 1 else "occur"
        where = "" if seen.data.has_test else " of the test"
        text = f"{_rows(found)}{where} also {verb} in training, so that the test measures memory too"
        yield Flaw("in_training_and_test", len(found), text)


def embeddings(seen: Seen) -> Iterator[Flaw]:
    """Find token ids that the model has no embedding for."""
    known = getattr(seen.config, "vocab_size", None)
    if known is None:
        return
    found = [each for each in seen.rows if max(each.example.ids, default=0) >= known]
    ids = [max(each.example.ids) for each in found]
    ids += [most for text in seen.prompts if (most := max(seen.ids(text), default=0)) >= known]
    if ids:
        who = f"row {found[0].name} has" if found else "a prompt has"
        token = seen.tokenizer.convert_ids_to_tokens(ids[0])
        more = f" ({len(found)} rows in all)" if len(found) > 1 else ""
        text = (
            f"{who} token {ids[0]} ({token}), but the base has embeddings of tokens 0 to {known - 1} only"
            f"{more}; remove it from the template or the data, or use the tokenizer of this base"
        )
        yield Flaw("without_embedding", len(found), text, stops=True)


def beyond_positions(seen: Seen) -> Iterator[Flaw]:
    """Find rows and responses that are longer than the model has positions for."""
    known, limit = positions(seen.config), seen.model.training.max_length
    if known is None:
        return
    if found := [each for each in seen.rows if len(each.example.ids) > known]:
        text = (
            f"{_rows(found)} {_have(found)} more tokens than the base has positions ({known}); "
            f"set max_length to at most {known}, it is {limit}"
        )
        yield Flaw("beyond_positions", len(found), text, stops=True)
    elif limit > known:
        yield Flaw("", text=f"max_length {limit} is more than the base's {known} positions; no row is")
    new = seen.data.max_new_tokens
    longest = max((len(seen.ids(text)) for text in seen.prompts), default=0)
    if longest + new - 1 > known:  # the last token is not fed to the model
        text = (
            f"a prompt of {longest} tokens and max_new_tokens {new} are more than the base's {known} "
            "positions; reduce max_new_tokens, or choose shorter prompts"
        )
        yield Flaw("", text=text, stops=True)


def positions(config: Any) -> int | None:
    """Return the most tokens of a text that a model has positions for; None if there is no limit.

    Scaled rotary positions reach further than those that the model was first trained with.
    """
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0 or getattr(config, "alibi", False):
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    most = [found]
    for each in (rope, *rope.values()):
        factor = each.get("factor") if isinstance(each, dict) else None
        if isinstance(factor, (int, float)) and 1 <= factor < 1e6:
            most.append(int(factor * (each.get("original_max_position_embeddings") or found)))
    return max(most)


def _rows(found: Sequence[SeenRow]) -> str:
    names = ", ".join(each.name for each in found[:_LISTED])
    more = ", …" if len(found) > _LISTED else ""
    return f"row {names}" if len(found) == 1 else f"{len(found)} rows ({names}{more})"


def _have(found: Sequence[SeenRow]) -> str:
    return "has" if len(found) == 1 else "have"


def dated(seen: Seen) -> Iterator[Flaw]:
    """Find a chat template that asks for the date."""
    if seen.model.template == CHAT and has_date(seen.tokenizer.get_chat_template()):
        yield Flaw("", text=f"the chat template asks for the date; it always gets {DATE}")


CHECKS: tuple[Callable[[Seen], Iterator[Flaw]], ...] = (
    empty,
    without_targets,
    cut,
    doubled,
    ended_prompts,
    control_tokens,
    control_characters,
    unknown,
    in_both_parts,
    embeddings,
    beyond_positions,
    dated,
)
