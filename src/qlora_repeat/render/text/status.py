"""The state of a study's trials and tests of bases, as text."""

from collections.abc import Mapping, Sequence
from typing import get_args

from tabulate import tabulate

from qlora_repeat.records.trial_state import State, TrialState, stopped_at


def status_text(trials: Sequence[TrialState], base_tests: Mapping[str, State], width: int | None) -> str:
    """Return a table of states, and a line that counts them.

    The table has a row for each model's base and for each arm; a table wider than `width` characters is split
    into parts, one below the other. `base_tests` has the state of each test of a base by its name,
    ``model/base/number``.
    """
    states = dict[str, str](base_tests)
    states |= {each.trial.name: "stopped" if stopped_at(each) else each.state for each in trials}
    models = list(dict.fromkeys(name.partition("/")[0] for name in base_tests))
    rows: dict[str, list[str]] = {}
    for name in sorted(states, key=lambda name: models.index(name.partition("/")[0])):
        rows.setdefault(name.rpartition("/")[0], []).append(states[name])
    of_trials = f"{len(trials)} trials: {_counted([states[each.trial.name] for each in trials])}"
    of_bases = f"{len(base_tests)} tests of bases: {_counted(list(base_tests.values()))}"
    return f"{_table(rows, width)}\n\n{of_trials}; {of_bases}"


def _table(rows: Mapping[str, Sequence[str]], width: int | None) -> str:
    columns = part = max(map(len, rows.values()))
    if width is not None:
        widest = max(len(state) for row in rows.values() for state in row)
        part = max((width - max(map(len, rows))) // (2 + widest), 1)
    parts = []
    for first in range(0, columns, part):
        shown = [[name, *row[first : first + part]] for name, row in rows.items() if len(row) > first]
        headers = ["", *map(str, range(first + 1, min(first + part, columns) + 1))]
        parts.append(tabulate(shown, headers=headers, disable_numparse=True))
    return "\n\n".join(parts)


def _counted(states: Sequence[str]) -> str:
    words = [*get_args(State)[:-1], "stopped", "missing"]
    return ", ".join(f"{count} {state}" for state in words if (count := states.count(state)))
