"""A tiny study of a classification and a summarization, with rows from files."""

import hashlib
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


def scored_workspace(folder: Path) -> Workspace:
    """Write the study and its rows, fill a cache for it, and open it."""
    colors = [
        {"instruction": _QUESTION.format(thing=thing), "answer": _COLORS[place % 3]}
        for place, thing in enumerate(_THINGS * 3)
    ]
    stories = [
        {"instruction": _SUMMARY.format(thing=thing), "answer": f"A {thing}."} for thing in _THINGS * 2
    ]
    text = write_study(folder, *_AS_SCORED).read_text()
    for name, rows in (("colors", colors), ("stories", stories)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        file = f'file = {{ file = "{path.name}", sha256 = "{sha256}" }}\nrows = {len(rows)}'
        text = text.replace(f'file = "{path.name}"', file)
    (folder / "tiny.toml").write_text(text)
    study = load_study(str(folder / "tiny.toml"))
    fill_cache(study, folder / "cache")
    return at(study, folder / "runs", folder / "cache")


_AS_SCORED = (
    ("[evaluation]\n", "[evaluation]\nanswers = { examples = 5, batch_size = 2, prompt_length = 24 }\n"),
    (
        'task = "text-generation"\nsource = "fortunes"\nrows = 60\n',
        'task = "classification"\nfile = "colors.jsonl"\n',
    ),
    (
        'task = "question-answering"\nsource = "reasoning-gym"\nrows = 60\n',
        'task = "summarization"\nfile = "stories.jsonl"\n',
    ),
    ('seed = 1\nsha256 = "', '#"'),
    ('families = ["gcd"]\nfamilies_with_options = ["leg_counting"]\n', ""),
    ('prompts = ["Your silence will", "Let the improvement of yourself keep you"]', ""),
    ('prompts = ["Your task is to count", "Find the Greatest"]', ""),
    ('profile = "as-published"', 'profile = "bitwise"'),
    ('"{quote}"', '"{instruction} {answer}."'),
)
