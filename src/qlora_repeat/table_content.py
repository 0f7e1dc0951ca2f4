"""What the paper's Tables 1 to 11 say for a study's results: rows of plain text, before any layout.

Tables keep the paper's numbers; a third model's responses have the second's number and a letter (5b).
Only trials that are done have values; any other leaves a dash and a note.
"""

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from string import ascii_lowercase

from qlora_repeat.errors import UsageError
from qlora_repeat.results import Response, TrialResult

_DASH = "—"
_TASKS = {"text-generation": ("1", "10"), "question-answering": ("2", "11")}
"""The numbers of each task's tables of perplexity and of seconds."""
_PROMPTS = 2
"""So many prompts are shown, as in the paper."""
_RESPONSE_LENGTH = 400
_ANSWER_LENGTH = 20
_PROMPT_LENGTH = 160
_DEVIATION_NOTE = "SD: sample standard deviation (n-1), of at least two runs."

Measure = Callable[[TrialResult], float | None]


@dataclass(frozen=True)
class Arm:
    """The trials of one model and optimizer."""

    model: str
    title: str
    optimizer: str
    """As in the paper's headings: ``8-bit``."""
    trials: list[TrialResult]

    @property
    def done(self) -> list[TrialResult]:
        return [trial for trial in self.trials if trial.status == "done"]


@dataclass(frozen=True)
class Column:
    """A column with a cell for each run of an arm: its headings from the top, and what a done trial shows."""

    headings: tuple[str, ...]
    arm: Arm
    cell: Callable[[TrialResult], str | None]


@dataclass(frozen=True)
class Table:
    """What a table says, not yet escaped. Each row begins with its name."""

    number: str
    caption: str
    source: str
    """The study, devices, days and software of what is shown."""
    stub: str
    """The heading of the rows' names."""
    columns: list[tuple[str, ...]]
    """The headings of each column, from the top; equally many for all columns."""
    rows: list[list[str]]
    summary: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    prose: bool = False
    """Cells are running text to be wrapped, not numbers."""

    @property
    def name(self) -> str:
        digits = self.number.rstrip(ascii_lowercase)
        return f"table-{digits:0>2}{self.number.removeprefix(digits)}"


def make_tables(results: list[TrialResult]) -> list[Table]:
    """The tables that these results have, in the paper's order.

    Raises:
        UsageError: there are no results, or two rows of the same trial.
    """
    if not results:
        raise UsageError("no collected results to make tables of")
    arms = group_arms(results)
    tables = [_memory(arms)]
    for task, (perplexity, seconds) in _TASKS.items():
        own = [arm for arm in arms if arm.trials[0].task == task]
        if own:
            responses = _continuations(own) if task == "text-generation" else _answers(own)
            tables += [_perplexity(perplexity, task, own), _seconds(seconds, task, own), *responses]
    return sorted(tables, key=lambda table: table.name)


def group_arms(results: list[TrialResult]) -> list[Arm]:
    """The results by model and optimizer, in their order; models of the same title are told apart.

    Raises:
        UsageError: two rows are of the same trial.
    """
    trials: dict[tuple[str, str], list[TrialResult]] = defaultdict(list)
    for result in results:
        trials[result.model, result.optimizer].append(result)
    for (model, optimizer), own in trials.items():
        number, count = Counter(trial.trial for trial in own).most_common(1)[0]
        if count > 1:
            raise UsageError(f"collected results: {count} rows are of trial {model}/{optimizer}/{number}")
    titles = {model: own[0].model_title for (model, _), own in trials.items()}
    shared = {title for title, count in Counter(titles.values()).items() if count > 1}
    return [
        Arm(
            model,
            f"{titles[model]} ({model})" if titles[model] in shared else titles[model],
            re.sub(r"^adamw-(\d+)bit$", r"\1-bit", optimizer),
            own,
        )
        for (model, optimizer), own in trials.items()
    ]


def _perplexity(number: str, task: str, arms: list[Arm]) -> Table:
    """Table 1 or 2, with a summary of the runs and the base models' perplexity."""
    columns = [_measured((arm.title, arm.optimizer), arm, lambda trial: trial.perplexity) for arm in arms]
    measured = [_values(arm.done, lambda trial: trial.perplexity) for arm in arms]
    summary = _summary(["mean", "SD", "range", "n"], measured)
    base = {
        model: _values((trial for arm in own for trial in arm.done), lambda trial: trial.base_perplexity)
        for model, own in _by_model(arms).items()
    }
    summary.append(["base", *(_range(base[arm.model]) or _DASH for arm in arms)])
    caption = f"Perplexity of the fine-tuned {task} models on the test examples, by run and optimizer."
    notes = [_DEVIATION_NOTE, "base: the model before fine-tuning, measured alike.", *_diverged(arms)]
    return _by_run(number, caption, columns, summary=summary, notes=notes)


def _diverged(arms: list[Arm]) -> list[str]:
    found = []
    for arm in arms:
        for trial in arm.done:
            run = f"{arm.title} {arm.optimizer} run {trial.trial}"
            if trial.diverged_at is not None:
                found.append(f"{run} (from step {trial.diverged_at})")
            elif trial.perplexity is not None and not math.isfinite(trial.perplexity):
                found.append(run)
    return [f"Diverged, and kept in mean and SD: {'; '.join(found)}."] if found else []


def _memory(arms: list[Arm]) -> Table:
    """Table 3: a share of the GPU where all runs were measured on GPUs, otherwise MiB."""
    done = [trial for arm in arms for trial in arm.done]
    shares, sizes = _values(done, _share_percent), _values(done, _mebibytes)
    on_gpu = len(shares) >= max(len(sizes), 1)
    measure, unit, digits = (_share_percent, "% of GPU", 2) if on_gpu else (_mebibytes, "MiB", 1)
    if on_gpu:
        what = "GPU memory while fine-tuning, in percent of the GPU's memory"
    elif shares:
        what = "memory while fine-tuning, in MiB (of the GPU, or resident where there was none)"
    else:
        what = "resident memory of the fine-tuning process, in MiB"
    optimizers = _distinct(arm.optimizer for arm in arms)
    rows = []
    for own in _by_model(arms).values():
        means = {arm.optimizer: _mean(_values(arm.done, measure)) for arm in own}
        cells = [means.get(optimizer) for optimizer in optimizers]
        rows.append([own[0].title, *(_DASH if mean is None else f"{mean:,.{digits}f}" for mean in cells)])
    return Table(
        number="3",
        caption=f"Peak {what}, by model and optimizer; mean over the runs.",
        source=source_of(arms),
        stub="Model",
        columns=[(f"{optimizer} ({unit})",) for optimizer in optimizers],
        rows=rows,
        notes=_missing([Column((), arm, lambda trial: _number(measure(trial))) for arm in arms]),
    )


def _share_percent(trial: TrialResult) -> float | None:
    return None if trial.peak_memory_share is None else 100 * trial.peak_memory_share


def _mebibytes(trial: TrialResult) -> float | None:
    return None if trial.peak_memory_bytes is None else trial.peak_memory_bytes / 2**20


def _continuations(arms: list[Arm]) -> list[Table]:
    """Tables 4 to 7: each prompt with its response, by run; one table for each prompt and model."""
    tables = []
    for place, own in enumerate(_by_model(arms).values()):
        for first, prompt in zip((4, 6), _prompts(own) or _prompts(arms), strict=False):
            columns = [
                Column((arm.title, arm.optimizer), arm, partial(_continuation, prompt=prompt)) for arm in own
            ]
            responses = [_response(trial, prompt) for arm in own for trial in arm.done]
            shown = f"{own[0].title} makes of the prompt “{_shortened(prompt, _PROMPT_LENGTH)}”"
            caption = f"What {shown}, by run and optimizer{_samplings(responses)}."
            is_cut = any(response and len(response.text) > _RESPONSE_LENGTH for response in responses)
            notes = [f"Responses are cut (…) after {_RESPONSE_LENGTH} characters."] if is_cut else []
            tables.append(_by_run(_letter(first, place), caption, columns, notes=notes, prose=True))
    return tables


def _answers(arms: list[Arm]) -> list[Table]:
    """Tables 8 and 9: the answers to the instructions, by run; one table for each model."""
    tables = []
    for place, own in enumerate(_by_model(arms).values()):
        prompts = _prompts(own) or _prompts(arms)
        columns = [
            Column((arm.optimizer, f"Instruction {number}"), arm, partial(_answer, prompt=prompt))
            for arm in own
            for number, prompt in enumerate(prompts, 1)
        ]
        if not columns:
            continue
        responses = [_response(trial, prompt) for arm in own for trial in arm.done for prompt in prompts]
        caption = (
            f"Answers of {own[0].title} to the instructions, by run and optimizer{_samplings(responses)}."
        )
        notes = ["A letter is the option answered; other responses are shown by how they begin."]
        for number, prompt in enumerate(prompts, 1):
            notes.append(f"Instruction {number}: {_shortened(prompt, _PROMPT_LENGTH)}")
        tables.append(_by_run(_letter(8, place), caption, columns, notes=notes, prose=True))
    return tables


def _prompts(arms: list[Arm]) -> list[str]:
    done = [trial for arm in arms for trial in arm.done]
    return _distinct(response.prompt for trial in done for response in trial.responses)[:_PROMPTS]


def _response(trial: TrialResult, prompt: str) -> Response | None:
    """The trial's response at the highest temperature; the first, if there are several."""
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
    settings = _distinct(f"temperature {one.temperature:g}, top-p {one.top_p:g}" for one in responses if one)
    return f" ({' or '.join(settings)})" if settings else ""


def _letter(first: int, place: int) -> str:
    """The number of the table of a task's model: 4, 5, then 5b, 5c."""
    return str(first + place) if place < 2 else f"{first + 1}{ascii_lowercase[place - 1]}"


def _seconds(number: str, task: str, arms: list[Arm]) -> Table:
    """Table 10 or 11: the optimizers side by side, in each the models, as in the paper."""
    measures: dict[str, Measure] = {
        "train (s)": lambda trial: trial.train_seconds,
        "test (s)": lambda trial: trial.test_seconds,
    }
    columns, measured = [], []
    for optimizer in _distinct(arm.optimizer for arm in arms):
        for arm in (arm for arm in arms if arm.optimizer == optimizer):
            for name, measure in measures.items():
                columns.append(_measured((optimizer, arm.title, name), arm, measure))
                measured.append(_values(arm.done, measure))
    caption = f"Seconds to fine-tune (train) and to answer the prompts (test), {task} models, by run."
    return _by_run(number, caption, columns, _summary(["mean", "SD", "n"], measured), [_DEVIATION_NOTE])


def _measured(headings: tuple[str, ...], arm: Arm, measure: Measure) -> Column:
    return Column(headings, arm, lambda trial: _number(measure(trial)))


def _by_run(
    number: str,
    caption: str,
    columns: list[Column],
    summary: list[list[str]] | None = None,
    notes: list[str] | None = None,
    prose: bool = False,
) -> Table:
    """A table with a row for each run that any of its columns has."""
    cells = [{trial.trial: column.cell(trial) for trial in column.arm.done} for column in columns]
    found = {run: [own.get(run) for own in cells] for run in _runs(columns)}
    return Table(
        number=number,
        caption=caption,
        source=source_of([column.arm for column in columns]),
        stub="Run",
        columns=[column.headings for column in columns],
        rows=[[str(run), *(_DASH if cell is None else cell for cell in row)] for run, row in found.items()],
        summary=summary or [],
        notes=[*(notes or []), *_missing(columns)],
        prose=prose,
    )


def _runs(columns: list[Column]) -> list[int]:
    return sorted({trial.trial for column in columns for trial in column.arm.trials})


def _missing(columns: list[Column]) -> list[str]:
    """A note of how many of the columns' trials lack a value, and why."""
    runs = _runs(columns)
    reasons = {}
    for column in columns:
        own = {trial.trial: trial for trial in column.arm.trials}
        for run in runs:
            trial, key = own.get(run), (column.arm.model, column.arm.optimizer, run)
            if trial is None or trial.status != "done":
                reasons[key] = trial.status if trial else "missing"
            elif column.cell(trial) is None:
                reasons[key] = "done, but without this value"
    if not reasons:
        return []
    trials = len({(column.arm.model, column.arm.optimizer) for column in columns}) * len(runs)
    counted = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(reasons.values()).items()))
    return [f"No value ({_DASH}) from {len(reasons)} of {trials} trials: {counted}."]


def source_of(arms: list[Arm]) -> str:
    """Where the rows come from: study, devices, first to last day, software."""
    done = [trial for arm in arms for trial in arm.done]
    days = sorted(_distinct(trial.finished[:10] for trial in done if trial.finished))
    facts = {
        "Study": _distinct(trial.study for arm in arms for trial in arm.trials),
        "Device": _distinct(trial.device for trial in done if trial.device),
        "Finished (UTC)": [" to ".join(_distinct([days[0], days[-1]]))] if days else [],
        "Software": _distinct(trial.software for trial in done if trial.software),
    }
    return " ".join(f"{name}: {'; '.join(found)}." for name, found in facts.items() if found)


def _by_model(arms: list[Arm]) -> dict[str, list[Arm]]:
    models: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        models[arm.model].append(arm)
    return models


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _values(trials: Iterable[TrialResult], measure: Measure) -> list[float]:
    return [value for value in map(measure, trials) if value is not None]


def _summary(names: list[str], measured: list[list[float]]) -> list[list[str]]:
    statistic: dict[str, Callable[[list[float]], str | None]] = {
        "mean": lambda values: _number(_mean(values)),
        "SD": lambda values: _number(_deviation(values)),
        "range": _range,
        "n": lambda values: str(len(values)),
    }
    return [[name, *(statistic[name](values) or _DASH for values in measured)] for name in names]


def _mean(values: list[float]) -> float | None:
    if not values:
        return None
    return statistics.mean(values) if all(map(math.isfinite, values)) else sum(values)


def _deviation(values: list[float]) -> float | None:
    """The sample standard deviation (n - 1)."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def _range(values: list[float]) -> str | None:
    if not values:
        return None
    if any(map(math.isnan, values)):
        return "nan"
    return "–".join(_distinct(_number(value) or "" for value in (min(values), max(values))))


def _number(value: float | None) -> str | None:
    """Readable at 0.00021, at 3.567 and at 233,812.79; not finite as ``nan`` and ``inf``."""
    if value is None:
        return None
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.01:
        return f"{value:.2g}"
    if size < 1000:
        return f"{value:.3f}"
    return f"{value:,.2f}" if size < 1e7 or not math.isfinite(size) else f"{value:.3e}"
