"""Find files that belong to the kit: its studies, the paper's numbers and templates, a lock file."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parents[1]
"""The checkout, if the kit runs from one."""
WHEEL_DATA = PACKAGE / "data"
"""The copies in a wheel; a checkout has no such folder."""


def kit_path(name: str) -> Path:
    """Return the path of a file or folder of the kit, such as ``paper/templates``.

    It is in the checkout or in the installed package. A wheel contains ``studies``, ``paper`` and
    ``lockfiles/pocket.txt``.
    """
    return (WHEEL_DATA if WHEEL_DATA.is_dir() else ROOT) / name


def in_wheel(path: Path) -> bool:
    """Return whether a path is in the installed package, which must not contain users' files."""
    return path.resolve().is_relative_to(WHEEL_DATA)
