"""Tables 4 to 9: the responses of the fine-tuned models to the study's prompts."""

from functools import partial
from string import ascii_lowercase

from qlora_repeat.render.tables.table import Column, Table, by_run
from qlora_repeat.results.arms import Arm, by_model, distinct
from qlora_repeat.results.trial_result import Response, TrialResult

_PROMPTS = 2
"""Prompts shown, as in the paper."""
_RESPONSE_LENGTH = 400
_ANSWER_LENGTH = 20
_PROMPT_LENGTH = 160


def continuation_tables(arms: list[Arm]) -> list[Table]:
    """Make Tables 4 to 7: each prompt with its response, by run; one table for each prompt and model."""
    tables = []
    for place, own in enumerate(by_model(arms).values()):
        for first, prompt in zip((4, 6), _prompts(own) or _prompts(arms), strict=False):
            cell = partial(_continuation, prompt=prompt)
            columns: list[Column] = [((arm.title, arm.heading), arm, cell) for arm in own]
            responses = [_response(trial, prompt) for arm in own for trial in arm.done]
            caption = (
                f"Continuations by {own[0].title} of the prompt “{_shortened(prompt, _PROMPT_LENGTH)}”, "
                f"by run and optimizer{_samplings(responses)}."
            )
            is_cut = any(response and len(response.text) > _RESPONSE_LENGTH for response in responses)
            notes = [f"Responses are cut (…) after {_RESPONSE_LENGTH} characters."] if is_cut else []
            tables.append(by_run(_number(first, place), caption, columns, notes=notes, prose=True))
    return tables


def answer_tables(arms: list[Arm]) -> list[Table]:
    """Make Tables 8 and 9: the answers to the instructions, by run; one table for each model."""
    tables = []
    for place, own in enumerate(by_model(arms).values()):
        prompts = _prompts(own) or _prompts(arms)
        columns: list[Column] = [
            ((arm.heading, f"Instruction {number}"), arm, partial(_answer, prompt=prompt))
            for arm in own
            for number, prompt in enumerate(prompts, 1)
        ]
        if not columns:
            continue
        responses = [_response(trial, prompt) for arm in own for trial in arm.done for prompt in prompts]
        caption = (
            f"Answers of {own[0].title} to the instructions, by run and optimizer{_samplings(responses)}."
        )
        notes = ["A letter is the chosen option; of other responses, the first words are shown."]
        for number, prompt in enumerate(prompts, 1):
            notes.append(f"Instruction {number}: {_shortened(prompt, _PROMPT_LENGTH)}")
        tables.append(by_run(_number(8, place), caption, columns, notes=notes, prose=True))
    return tables


def _prompts(arms: list[Arm]) -> list[str]:
    done = [trial for arm in arms for trial in arm.done]
    return distinct(response.prompt for trial in done for response in trial.responses)[:_PROMPTS]


def _response(trial: TrialResult, prompt: str) -> Response | None:
    """Return the trial's response at the highest temperature; the first, if there are several."""
    responses = [response for response in trial.responses if response.prompt == prompt]
    return max(responses, key=lambda response: response.temperature, default=None)


def _continuation(trial: TrialResult, prompt: str) -> str | None:
    response = _response(trial, prompt)
    return None if response is None else prompt + _shortened(response.text, _RESPONSE_LENGTH)


def _answer(trial: TrialResult, prompt: str) -> str | None:
    response = _response(trial, prompt)
    if response is None:
        return None
    return response.answer or _shortened(response.text.strip(), _ANSWER_LENGTH) or "(blank)"


def _samplings(responses: list[Response | None]) -> str:
    settings = distinct(f"temperature {one.temperature:g}, top-p {one.top_p:g}" for one in responses if one)
    return f" ({' or '.join(settings)})" if settings else ""


def _number(first: int, place: int) -> str:
    """Return the number of the table of a task's model: 4, 5, then 5b, 5c."""
    return str(first + place) if place < 2 else f"{first + 1}{ascii_lowercase[place - 1]}"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
