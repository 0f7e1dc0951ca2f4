"""Check the documents: links, anchors and commands exist; lines and documents are short.

Each check is a function that returns the problems of a page. Tests also run it on pages with known problems.
"""

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from support.checkout import ROOT

from qlora_repeat.cli.main import cli

LONGEST_LINE = 100
MOST_WORDS = 20_900
"""In all documents together, without what is generated."""
MOST_WORDS_README = 920
GENERATED = (ROOT / "docs/commands.md", ROOT / "docs/reference/architectures.md")
OTHER_TOOLS = {"--containall", "--no-home", "--no-deps", "--no-build-isolation", "--require-hashes"}
"""Options of other programs in the documents."""


@dataclass(frozen=True)
class Page:
    """A document; relative links start from its path."""

    path: Path
    text: str

    @property
    def prose(self) -> str:
        """Return the text with an empty line in place of each line of code blocks."""
        return "\n".join(line if block is None else "" for line, block in _lines(self.text))

    @property
    def code(self) -> list[str]:
        """Return the lines of shell code blocks (continued lines are joined), and inline code."""
        shell = "\n".join(line for line, block in _lines(self.text) if block == "")
        inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", self.prose)
        return [*shell.replace("\\\n", " ").splitlines(), *(" ".join(each.split()) for each in inline)]


def _lines(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each line with the language of the code block that it is in; None in prose.

    An indented block begins after an empty line, outside of lists.
    """
    fence, indented, listed, before = None, False, False, ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            yield line, "fence"
            fence = line.strip("` ") if fence is None else None
        elif fence is not None:
            yield line, fence
        else:
            if line.strip():
                listed = bool(re.match(r" *([-*]|\d+\.) ", line)) or (listed and line.startswith(" "))
                indented = line.startswith("    ") and not listed and (indented or not before.strip())
            yield line, "" if indented and line.strip() else None
        before = line


@cache
def pages() -> list[Page]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]
    return [Page(path, path.read_text(encoding="utf-8")) for path in paths]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", Page(Path(), text).prose, re.MULTILINE):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = found.get(name, 0)
        found[name] = number + 1
        names.add(f"{name}-{number}" if number else name)
    return names


def dead_links(page: Page) -> list[str]:
    """Return the relative links of a page to missing files and to missing headings."""
    text = re.sub(r"`[^`]*`", "", page.prose)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    dead = []
    for link in links:
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.path.parent / name if name else page.path
        there = not name or target.exists()
        if not there or (anchor and anchor not in anchors(target.read_text("utf-8") if name else page.text)):
            dead.append(link)
    labels = set(re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE))
    return dead + [label for label in re.findall(r"\]\[([^\]]+)\]", text) if label not in labels]


@cache
def options(command: str) -> frozenset[str]:
    """Return the options of a subcommand; raise KeyError if it does not exist."""
    with click.Context(cli, **cli.context_settings) as context:
        context.invoked_subcommand = command
        found = cli.get_command(context, command)
        if found is None:
            raise KeyError(command)
        with click.Context(found, parent=context) as own:
            names = [name for parameter in found.get_params(own) for name in parameter.opts]
            names += [name for parameter in found.get_params(own) for name in parameter.secondary_opts]
    return frozenset(name for name in names if name.startswith("-"))


@cache
def all_options() -> frozenset[str]:
    with click.Context(cli, **cli.context_settings) as context:
        return frozenset().union(*(options(name) for name in cli.list_commands(context)))


@cache
def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def unknown_commands(page: Page) -> list[str]:
    """Return commands, options, make targets and files that a page names but do not exist."""
    found = []
    for line in page.code:
        found += [f"{line}: {problem}" for problem in _unknown(line)]
    return found


def _unknown(line: str) -> Iterator[str]:
    for part in re.split(r"; |&& |\| ", re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ")):
        try:
            words = shlex.split(part)
        except ValueError:  # not a command: it has an apostrophe
            continue
        while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in ("time", "export")):
            words.pop(0)
        if words and words[0] in ("docker", "apptainer", "container/run.sh"):  # a command in a container
            starts = [place for place, word in enumerate(words) if word in ("make", "qlora-repeat")]
            words = words[starts[0] :] if starts else []
        name, *rest = words or [""]
        if name.startswith("--"):
            yield from _not_in(all_options() | OTHER_TOOLS, words)
        elif Path(name).name == "qlora-repeat" and rest and not rest[0].startswith("-"):
            try:
                yield from _not_in(options(rest[0]), rest[1:])
            except KeyError:
                yield f"no subcommand {rest[0]}"
        elif name == "make":
            for word in rest:
                variable = re.match(r"([A-Z_]+)=", word)
                if variable and not re.search(rf"\b{variable[1]}\b", makefile()):
                    yield f"the Makefile has no variable {variable[1]}"
                if re.fullmatch(r"[a-z-]+", word) and not re.search(rf"^{word}:.*## ", makefile(), re.M):
                    yield f"the Makefile has no target {word}"
        elif Path(name).name in ("python", "pytest") and rest:
            if "-m" in rest[:1] and "." in rest[1] and find_spec(rest[1]) is None:
                yield f"no module {rest[1]}"
            yield from _missing_files(rest)
        elif len(words) == 1:
            yield from _missing_files(words)


def _not_in(known: frozenset[str], words: list[str]) -> Iterator[str]:
    for word in words:
        option = word.partition("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]*", option) and option not in known | {"--help"}:
            yield f"no option {option}"


def _missing_files(words: list[str]) -> Iterator[str]:
    for word in words:
        named = re.fullmatch(
            r"(src|tests|docs|studies|benchmarks|container|lockfiles)/.+\.(py|toml|md|sh|in)", word
        )
        if named and "*" not in word and not (ROOT / word).exists():
            yield f"no file {word}"


def long_lines(page: Page) -> list[str]:
    """Return the lines of prose and tables that are too long and contain spaces."""
    return [line for line in page.prose.splitlines() if len(line) > LONGEST_LINE and " " in line.strip()]


def words(page: Page) -> int:
    """Return the number of words with letters outside of code blocks."""
    return sum(any(map(str.isalpha, word)) for word in page.prose.split())


def written() -> list[Page]:
    return [page for page in pages() if page.path not in GENERATED]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.path.relative_to(ROOT)))
@pytest.mark.parametrize("problems", [dead_links, unknown_commands])
def test_links_and_commands_of_a_page_exist(page: Page, problems: Callable[[Page], list[str]]) -> None:
    assert problems(page) == []


@pytest.mark.parametrize("page", written(), ids=lambda page: str(page.path.relative_to(ROOT)))
def test_a_page_has_short_lines(page: Page) -> None:
    assert long_lines(page) == []


def test_documents_are_short() -> None:
    assert sum(map(words, written())) <= MOST_WORDS
    (readme,) = (page for page in pages() if page.path == ROOT / "README.md")
    assert len(readme.text.split()) <= MOST_WORDS_README


@pytest.mark.parametrize(
    ("problems", "text"),
    [
        (dead_links, "See [the plan](docs/none.md)."),
        (dead_links, "See [the plan](docs/commands.md#none)."),
        (dead_links, "# A title\n\nSee [above](#another-title)."),
        (dead_links, "See [the picture][none]."),
        (unknown_commands, "    qlora-repeat contrast a.zip b.zip"),
        (unknown_commands, "- Type `qlora-repeat diff A B\n  --fast`."),
        (unknown_commands, "    .venv/bin/qlora-repeat run pocket \\\n      --fast      # a comment"),
        (unknown_commands, "```\n$ qlora-repeat pack pocket && qlora-repeat publish\n```"),
        (unknown_commands, "It takes `--fast`."),
        (unknown_commands, "    make all bits STUDY=pocket"),
        (unknown_commands, "    docker run image make all PACE=fast"),
        (unknown_commands, "Run `python benchmarks/none.py`, `python -m qlora_repeat.none`."),
        (unknown_commands, "As `tests/study/test_none.py` shows."),
        (long_lines, "- " + 20 * "words " + "\n"),
        (long_lines, "| a table | " + 20 * "words " + "|\n"),
    ],
)
def test_a_check_finds_problems(problems: Callable[[Page], list[str]], text: str) -> None:
    assert problems(Page(ROOT / "page.md", text)) != []


@pytest.mark.parametrize("problems", [dead_links, unknown_commands, long_lines])
def test_a_check_accepts_a_correct_page(problems: Callable[[Page], list[str]]) -> None:
    text = f"""# It's `all` right: 8-bit

See [above](#its-all-right-8-bit), [commands](docs/commands.md#run) and
<https://example.org/{100 * "a"}>.

    make all STUDY=pocket OPTIONS="--steps 10"      # {100 * "b"}
    $ qlora-repeat diff smollm2-135m/adamw-8bit/1 smollm2-135m/adamw-8bit/2 --json
    smollm2-135m/adamw-8bit/1: made by qlora-repeat 0.1.0

A list: - `qlora-repeat`, `make` and `--jobs` in `src/qlora_repeat/study/study.py`.
"""
    assert problems(Page(ROOT / "page.md", text)) == []


def test_words_are_counted() -> None:
    page = Page(Path(), "Two words, 3 | numbers.\n\n    make all\n\n```\ncode\n```\nIt's four.\n")
    assert words(page) == 5
