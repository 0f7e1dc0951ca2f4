"""Table S0: the ablation of the paper's section IX, which tests one unchanged model repeatedly."""

from collections import defaultdict

from qlora_repeat.render.footnotes import dash_note, source_of, stale, stale_bases
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, base_perplexities, by_model, distinct
from qlora_repeat.results.number_format import DASH, statistic
from qlora_repeat.results.scope import of_paper


def ablation_tables(arms: list[Arm]) -> list[Table]:
    """Make Table S0 if a base was tested, or a model prompted, more than once; otherwise nothing."""
    models = by_model(arms)
    bases = {model: base_perplexities(own) for model, own in models.items()}
    responses = _repeated_responses(arms)
    if not responses and all(len(tests) < 2 for tests in bases.values()):
        return []
    asked = [
        (optimizer, sampling, prompt)
        for optimizer in distinct(optimizer for _, optimizer, _, _ in responses)
        for sampling in distinct(sampling for _, own, sampling, _ in responses if own == optimizer)
        for prompt in sorted({prompt for _, _, _, prompt in responses})
    ]
    rows = []
    for model, own in models.items():
        texts = [responses.get((model, *key), []) for key in asked]
        base = [statistic(name, bases[model]) for name in ("mean", "SD", "n")]
        distinct_texts = [f"{len(set(each))} of {len(each)}" if each else DASH for each in texts]
        rows.append([own[0].title, *base, *distinct_texts])
    section = " (section IX)" if of_paper(arms) else ""
    caption = "perplexity of each base model, one process for each test"
    notes = ["SD: sample standard deviation (n-1)."]
    if asked:
        caption += ", and distinct responses of fine-tuned models"
        runs = distinct(str(trial.trial) for arm in arms for trial in arm.done if trial.repeated_responses)
        notes.append(
            f"Distinct responses: one fine-tuned model (run {', '.join(runs)} of each arm) got each prompt "
            "repeatedly, each time with another seed. T: temperature. Prompts are in the study's order."
        )
    return [
        Table(
            number="S0",
            caption=f"Tests of the same model, repeated{section}: {caption}.",
            source=source_of(arms),
            stub="Model",
            columns=[
                *(("before fine-tuning", "perplexity", name) for name in ("mean", "SD", "tests")),
                *((f"distinct responses, {own}", sampling, f"prompt {n}") for own, sampling, n in asked),
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


def _repeated_responses(arms: list[Arm]) -> dict[tuple[str, str, str, int], list[str]]:
    """Return the texts by model, optimizer, sampling and prompt, of the trial of each arm that was asked."""
    texts = defaultdict(list)
    for arm in arms:
        responses = next((trial.repeated_responses for trial in arm.done if trial.repeated_responses), [])
        prompts = distinct(response.prompt for response in responses)
        for response in responses:
            sampling = f"T {response.temperature:g}, top-p {response.top_p:g}"
            prompt = prompts.index(response.prompt) + 1
            texts[arm.model, arm.heading, sampling, prompt].append(response.text)
    return texts
