"""A tiny study of a classification and a summarization, with rows from files."""

import json
from pathlib import Path

from support.places import at
from support.tiny import fill_cache, write_study

from qlora_repeat.study.loading import load_study
from qlora_repeat.study.workspace import Workspace

_COLORS = ("red", "green", "dark green")
_QUESTION = "What is the color of the {thing}?"
_SUMMARY = "A very long story about the {thing}."
_THINGS = ("sky", "sea", "frog", "coat", "wall", "tree", "moon", "door", "road", "sand")


def scored_workspace(folder: Path, *replacements: tuple[str, str]) -> Workspace:
    """Write the study after these replacements and its rows, fill a cache for it, and open it."""
    colors = [
        {"instruction": _QUESTION.format(thing=thing), "answer": _COLORS[place % 3]}
        for place, thing in enumerate(_THINGS * 3)
    ]
    stories = [
        {"instruction": _SUMMARY.format(thing=thing), "answer": f"A {thing}."} for thing in _THINGS * 2
    ]
    for name, rows in (("colors", colors), ("stories", stories)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_study(folder, *_as_scored()).read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "tiny.toml").write_text(text)
    study = load_study(str(folder / "tiny.toml"))
    fill_cache(study, folder / "cache")
    return at(study, folder / "runs", folder / "cache")


def _as_scored() -> list[tuple[str, str]]:
    quotes = 'task = "text-generation"\nsource = "fortunes"\nrows = 60\n'
    return [
        ("[evaluation]\n", "[evaluation]\nanswers = { examples = 5, batch_size = 2, prompt_length = 24 }\n"),
        (quotes, 'task = "classification"\nfile = "colors.jsonl"\n'),
        ('seed = 1\nsha256 = "', '#"'),
        ('prompts = ["Your silence will", "Let the improvement of yourself keep you"]', ""),
        ('"{quote}"', '"{instruction} {answer}."'),
        (
            '"question-answering"\nsource = "reasoning-gym"\nrows = 60\n',
            '"summarization"\nfile = "stories.jsonl"\n',
        ),
        ('families = ["gcd"]\nfamilies_with_options = ["leg_counting"]\n', ""),
        ('prompts = ["Your task is to count", "Find the Greatest"]', ""),
    ]
