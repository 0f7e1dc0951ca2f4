"""Table S0: the ablation of the paper's section IX, which tests one unchanged model repeatedly."""

from qlora_repeat.render.footnotes import dash_note, source_of, stale, stale_bases
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, base_perplexities, by_model, distinct
from qlora_repeat.results.number_format import DASH, statistic
from qlora_repeat.results.trial_result import Response


def ablation_tables(arms: list[Arm]) -> list[Table]:
    """Make Table S0 if a base was tested, or a model prompted, more than once; otherwise nothing."""
    models = by_model(arms)
    bases = {model: base_perplexities(own) for model, own in models.items()}
    repeated = {arm.key: _repeated(arm) for arm in arms}
    if not any(repeated.values()) and all(len(tests) < 2 for tests in bases.values()):
        return []
    asked = [
        (optimizer, sampling, place)
        for optimizer in dict.fromkeys(arm.optimizer for arm in arms)
        for sampling in distinct(
            _sampling(response)
            for arm in arms
            if arm.optimizer == optimizer
            for response in repeated[arm.key]
        )
        for place in range(max(len(_prompts(responses)) for responses in repeated.values()))
    ]
    rows = [
        [
            own[0].title,
            *(statistic(name, bases[model]) for name in ("mean", "SD", "n")),
            *(
                _distinct(repeated.get((model, optimizer.name), []), sampling, place)
                for optimizer, sampling, place in asked
            ),
        ]
        for model, own in models.items()
    ]
    notes = ["SD: sample standard deviation (n-1)."]
    if asked:
        runs = distinct(str(trial.trial) for arm in arms for trial in arm.done if trial.repeated_responses)
        notes.append(
            f"Distinct responses: one fine-tuned model (run {', '.join(runs)} of each arm) got each prompt "
            "repeatedly, each time with another seed. T: temperature. Prompts are in the study's order."
        )
    return [
        Table(
            number="S0",
            caption="Tests of the same model, repeated (section IX): perplexity of each base model, one "
            "process for each test" + (", and distinct responses of fine-tuned models." if asked else "."),
            source=source_of(arms),
            stub="Model",
            columns=[
                *(("before fine-tuning", "perplexity", name) for name in ("mean", "SD", "tests")),
                *(
                    (f"distinct responses, {optimizer.heading}", sampling, f"prompt {place + 1}")
                    for optimizer, sampling, place in asked
                ),
            ],
            rows=rows,
            notes=[
                *notes,
                *stale_bases(arms),
                *stale(arms, lambda trial: bool(trial.repeated_responses)),
                *dash_note(rows, "not measured; an SD needs two tests"),
            ],
        )
    ]


def _repeated(arm: Arm) -> list[Response]:
    """Return the responses of the arm's trial that got its prompts repeatedly."""
    return next((trial.repeated_responses for trial in arm.done if trial.repeated_responses), [])


def _prompts(responses: list[Response]) -> list[str]:
    return distinct(response.prompt for response in responses)


def _sampling(response: Response) -> str:
    return f"T {response.temperature:g}, top-p {response.top_p:g}"


def _distinct(responses: list[Response], sampling: str, place: int) -> str:
    """Return how many of the responses to a prompt are distinct."""
    prompt = dict(enumerate(_prompts(responses))).get(place)
    texts = [
        response.text
        for response in responses
        if _sampling(response) == sampling and response.prompt == prompt
    ]
    return f"{len(set(texts))} of {len(texts)}" if texts else DASH
