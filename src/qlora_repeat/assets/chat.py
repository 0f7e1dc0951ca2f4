"""Chats: the messages of a row, and their text by the chat template of a tokenizer.

A chat template is a Jinja program of whoever made the model, which transformers runs in Jinja's sandbox.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from qlora_repeat.errors import UsageError
from qlora_repeat.study.data_sources import Row
from qlora_repeat.system.files import megabytes
from qlora_repeat.system.memory import memory_limit
from qlora_repeat.system.signals import time_limit

Message = dict[str, str]
"""A message: ``role`` and ``content``."""

_ROLES = ("system", "user", "assistant")
_OTHER_NAMES = {"human": "user", "gpt": "assistant"}
"""Roles in rows whose messages have the keys ``from`` and ``value``."""
_MOST_MESSAGES = 10_000
_LONGEST_TEMPLATE = 200_000
_LONGEST_TEXT = 20_000_000
"""Characters that a template may make of a row."""
_MOST_MEMORY = 500_000_000
"""Bytes that a template may use for a row."""
_MOST_SECONDS = 10
"""Seconds of computing that a template may take for a row."""
DATE = "26 Jul 2024"
"""What a template gets that asks for the date, so that bits do not depend on the day."""
_FIXED_DATE = "{%- macro strftime_now(format) -%}" + DATE + "{%- endmacro -%}"
_RANDOM = re.compile(r"\|\s*random\b|\blipsum\b")


def chat_row(text: str) -> Row:
    """Return a row of a chat: its messages as JSON, and the last question and answer.

    Raises:
        ValueError: the text is no list of messages that ends with an answer; says why.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"expected a list of messages, found {text[:50]!r}") from None
    if not isinstance(found, list) or not 0 < len(found) <= _MOST_MESSAGES:
        what = f"{len(found)} messages" if isinstance(found, list) else repr(found)[:50]
        raise ValueError(f"expected a list of 1 to {_MOST_MESSAGES} messages, found {what}")
    messages = [_message(each, number) for number, each in enumerate(found, 1)]
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message is not the assistant's, so there is no answer to learn")
    asked = next((each["content"] for each in reversed(messages) if each["role"] == "user"), None)
    if asked is None:
        raise ValueError("no message is the user's")
    kept = json.dumps(messages, ensure_ascii=False)
    return {"messages": kept, "instruction": asked, "answer": messages[-1]["content"]}


def _message(found: Any, number: int) -> Message:
    if not isinstance(found, dict):
        raise ValueError(f"message {number} is {repr(found)[:50]}; expected role and content")
    role, content = found.get("role", found.get("from")), found.get("content", found.get("value"))
    if role is None:
        raise ValueError(f"message {number} has no role; it has {', '.join(map(str, found))[:100]}")
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) and "from" in found else role
    if role not in _ROLES:
        raise ValueError(f"message {number} has role {repr(role)[:50]}; expected {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"message {number} has no text as content, but {repr(content)[:50]}")
    if not content.strip() and role != "system":
        raise ValueError(f"message {number} is empty")
    if found.get("tool_calls"):
        raise ValueError(f"message {number} calls tools, which are not supported")
    if role == "system" and number > 1:
        raise ValueError(f"message {number} is the system's; only the first can be")
    return {"role": role, "content": content}


def messages_of(row: Row) -> list[Message]:
    """Return the messages of a row; of one without, its instruction and answer."""
    if "messages" in row:
        messages: list[Message] = json.loads(row["messages"])
        return messages
    asked = {"role": "user", "content": row["instruction"]}
    return [asked, {"role": "assistant", "content": row["answer"]}]


def chat_template(tokenizer: Any) -> str:
    """Return the chat template of a tokenizer, with a fixed date.

    Raises:
        UsageError: it has none, or one that is too long or random.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        template = None
    if not template:
        raise UsageError("the tokenizer of the base has no chat template; write the text of a row instead")
    if len(template) > _LONGEST_TEMPLATE or _RANDOM.search(template):
        what = "is random" if _RANDOM.search(template) else f"has more than {_LONGEST_TEMPLATE} characters"
        raise UsageError(f"the chat template {what}; write the text of a row instead")
    return _FIXED_DATE + template if has_date(template) else str(template)


def has_date(template: str) -> bool:
    """Return whether a chat template asks for the date."""
    return "strftime_now" in template


def chat_prompt(tokenizer: Any, row: Row) -> str:
    """Return the text that asks for the last answer of a row; raises UsageError as `chat_text`."""
    return _rendered(tokenizer, messages_of(row)[:-1], add_generation_prompt=True)


def chat_text(tokenizer: Any, row: Row) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a row, and where each answer begins and ends in it.

    The token that ends a turn belongs to its answer, so that a model learns to stop.

    Raises:
        UsageError: the template refuses the messages, or does not contain the answers as they are.
    """
    messages = messages_of(row)
    text = _rendered(tokenizer, messages)
    answers = [each["content"] for each in messages if each["role"] == "assistant"]
    marks = [f"QLORAREPEAT{number:08}" for number in range(len(answers))]
    new = iter(marks)
    marked = _rendered(
        tokenizer,
        [each | {"content": next(new)} if each["role"] == "assistant" else each for each in messages],
    )
    between = re.split("|".join(marks), marked)
    if re.findall("|".join(marks), marked) == marks:
        for variant in _VARIANTS:
            if (starts := _places(text, between, kept := [variant(each) for each in answers])) is not None:
                ends = [start + len(each) for start, each in zip(starts, kept, strict=True)]
                return text, _with_turn_ends(tokenizer, text, list(zip(starts, ends, strict=True)))
    raise UsageError(
        "the chat template changes the answers, as by leaving out thoughts, so that they cannot be found; "
        "write the text of a row instead, or remove what it changes from the data"
    )


_VARIANTS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)
"""What a template may do with an answer."""


def _places(text: str, between: Sequence[str], answers: Sequence[str]) -> list[int] | None:
    """Return where the answers begin, if a text is what is between them and the answers in turn."""
    starts, place = list[int](), 0
    for before, answer in zip(between, answers, strict=False):
        starts.append(place + len(before))
        if text[place : starts[-1] + len(answer)] != before + answer:
            return None
        place = starts[-1] + len(answer)
    return starts if text[place:] == between[-1] else None


def _with_turn_ends(tokenizer: Any, text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans that also contain the first control token after each; the last one, else, the rest."""
    known = {each.content for each in tokenizer.added_tokens_decoder.values() if each.special}
    tokens = sorted(filter(None, known | {*tokenizer.all_special_tokens}), key=len, reverse=True)
    control = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
    found, limits = list[tuple[int, int]](), [*(start for start, _ in spans[1:]), len(text)]
    for number, ((start, end), limit) in enumerate(zip(spans, limits, strict=True), 1):
        token = control.search(text, end, limit)
        found.append((start, token.end() if token else limit if number == len(spans) else end))
    return found


def _rendered(tokenizer: Any, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    template = chat_template(tokenizer)
    try:
        with memory_limit(_MOST_MEMORY), time_limit(_MOST_SECONDS):
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
    except TimeoutError:
        raise UsageError(f"the chat template takes more than {_MOST_SECONDS} s for a row") from None
    except MemoryError:
        raise UsageError(f"the chat template needs more than {megabytes(_MOST_MEMORY)} of memory") from None
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"the chat template refuses the messages ({reason})") from None
    if len(text) > _LONGEST_TEXT:
        raise UsageError(f"the chat template makes more than {megabytes(_LONGEST_TEXT)} of a row")
    return str(text)
