"""Chats: which tokens are answers, what a chat template may do, and which messages are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.own_rows import BEGIN, END, own_tokenizer, write_own_study

from qlora_repeat.assets import chat
from qlora_repeat.assets.chat import chat_row
from qlora_repeat.assets.datasets import encode, part_rows, prompt_ids, study_prompts
from qlora_repeat.assets.inspection import inspected, require_sound
from qlora_repeat.errors import UsageError
from qlora_repeat.study.workspace import Workspace

PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Is 1 odd?"},
    {"role": "assistant", "content": " yes "},
    {"role": "user", "content": "Is 2 odd?"},
    {"role": "assistant", "content": "no"},
]
ROWS: list[dict[str, Any]] = [
    {"messages": [*CHAT[:3], {"role": "user", "content": f"Is {number} odd?"}, CHAT[4]]}
    for number in range(10)
]
AS_CHAT = (
    ('task = "text-generation"', 'task = "question-answering"'),
    ("[models.own]", "[models.own]\nspecial_tokens = false"),
)


def chats(folder: Path, *changes: tuple[str, str], rows: Any = None, chat: str | None = PLAIN) -> Workspace:
    return write_own_study(folder, rows or ROWS, *AS_CHAT, *changes, template="chat", chat=chat, begin=True)


def learned(tokenizer: Any, example: Any) -> list[str]:
    """Return the parts of a row that are predicted."""
    targets = example.is_target("answer")
    marks = [tokenizer.decode([each]) if yes else "|" for each, yes in zip(example.ids, targets, strict=True)]
    return [part for part in "".join(marks).split("|") if part]


def test_all_answers_of_a_chat_are_learned_with_the_end_of_their_turn(tmp_path: Path) -> None:
    workspace = chats(tmp_path)
    model, tokenizer = workspace.study.models["own"], own_tokenizer(begin=True, chat=PLAIN)
    rows = part_rows(workspace, "rows", "test", 42)
    for example in encode(tokenizer, model, rows):
        assert example.ids[0] == BEGIN
        assert example.ids[1] != BEGIN, "the tokenizer does not add a second one"
        assert learned(tokenizer, example) == ["yes</s>", "no</s>"]
        assert example.ids[-1] == END
    prompt = study_prompts(workspace, "own", 42, tokenizer)[0]
    assert prompt.shown == rows[0]["instruction"]
    assert prompt.fed.endswith(f"[user] {prompt.shown}[assistant] "), "where an answer begins"
    assert prompt_ids(tokenizer, model, prompt.fed)[:2] != [BEGIN, BEGIN]
    assert not inspected(workspace, "own").counts


def test_instructions_and_answers_are_chats_too(tmp_path: Path) -> None:
    rows = [{"instruction": f"Is {number} odd?", "answer": "no"} for number in range(10)]
    change = ("[models.own]", "[models.own]\nspecial_tokens = false")
    workspace = write_own_study(tmp_path, rows, change, template="chat", chat=PLAIN)
    tokenizer = own_tokenizer(chat=PLAIN)
    example = encode(tokenizer, workspace.study.models["own"], part_rows(workspace, "rows", "test", 42))[0]
    assert learned(tokenizer, example) == ["no</s>"]


def test_a_cut_answer_has_nothing_to_predict(tmp_path: Path) -> None:
    shorter = ("max_length = 128", "max_length = 30")
    workspace = chats(tmp_path, shorter, ("max_grad_norm", 'loss = "answer"\nmax_grad_norm'))
    with pytest.raises(UsageError, match="no training row has a token to predict"):
        require_sound(workspace, "own")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "models.own.template is chat, and the tokenizer of the base has no chat template"),
        ("{{ [1, 2] | random }}", "the chat template is random"),
        ("{{ messages[0].content.__class__.mro() }}", "row [0-9]+: the chat template refuses the messages"),
        (
            "{{ raise_exception('no system') }}",
            "row [0-9]+: the chat template refuses the messages .no system",
        ),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "row [0-9]+: .* changes the answers"),
        ("{{ 'a' * 10**11 }}", "row [0-9]+: the chat template needs more than 500 MB"),
        ("{% for m in messages %}", "row [0-9]+: the chat template refuses the messages"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused(
    template: str | None, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        require_sound(chats(tmp_path, chat=template), "own")


def test_a_chat_template_that_does_not_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "_MOST_SECONDS", 0.5)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(UsageError, match=r"row [0-9]+: the chat template takes more than 0\.5 s for a row"):
        require_sound(chats(tmp_path, chat=loops), "own")


def test_a_template_gets_the_same_date_every_day(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }} " + PLAIN
    workspace = chats(tmp_path, chat=dated)
    rows = part_rows(workspace, "rows", "test", 42)
    tokenizer = own_tokenizer(begin=True, chat=dated)
    example = encode(tokenizer, workspace.study.models["own"], rows)[0]
    assert tokenizer.decode(example.ids).startswith("26 Jul 2024 ")
    assert "asks for the date" in inspected(workspace, "own").warnings[-1]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "found 0 messages"),
        ("hello", "expected a list of messages"),
        ([{"content": "x"}], "message 1 has no role; it has content"),
        ([{"role": "tool", "content": "x"}], "message 1 has role 'tool'; expected system, user, assistant"),
        ([CHAT[1], {"role": "assistant", "content": [{"type": "text"}]}], "message 2 has no text as content"),
        ([CHAT[1], {"role": "assistant", "content": " "}], "message 2 is empty"),
        ([CHAT[1], CHAT[0]], "message 2 is the system's"),
        ([CHAT[4], CHAT[1]], "the last message is not the assistant's"),
        ([CHAT[0], CHAT[4]], "no message is the user's"),
        (["hello"], "message 1 is 'hello'"),
    ],
)
def test_messages_that_are_no_chat_are_refused_with_the_row(
    messages: Any, reason: str, tmp_path: Path
) -> None:
    rows = [*ROWS[:2], {"messages": messages}]
    with pytest.raises(UsageError, match=f"row 3, column messages: .*{reason}") as error:
        chats(tmp_path, rows=rows)
    assert "\n" not in str(error.value)


def test_messages_may_say_from_and_value() -> None:
    row = chat_row(json.dumps([{"from": "human", "value": "Is 1 odd?"}, {"from": "gpt", "value": "yes"}]))
    assert (row["instruction"], row["answer"]) == ("Is 1 odd?", "yes")
    assert [each["role"] for each in json.loads(row["messages"])] == ["user", "assistant"]
