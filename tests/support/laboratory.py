"""A folder with a study and its results, and ways to run commands on them."""

import dataclasses
from pathlib import Path

from click.testing import CliRunner, Result

from qlora_repeat.cli.main import cli
from qlora_repeat.errors import KitError


@dataclasses.dataclass(frozen=True)
class Lab:
    """A folder with a study and its results."""

    folder: Path
    cache: Path

    @property
    def study(self) -> Path:
        return self.folder / "tiny.toml"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def archive(self) -> Path:
        return self.folder / "runs" / "tiny.zip"

    @property
    def tables(self) -> Path:
        return self.folder / "tables"

    def kit(self, command: str, *arguments: object) -> Result:
        """Run a subcommand on the study in this folder."""
        where = ["--runs", self.runs, "--cache", self.cache]
        given = [command, self.study, *where, *arguments]
        return CliRunner().invoke(cli, [str(each) for each in given])

    def pack(self, *options: object) -> bytes:
        result = self.kit("pack", *options)
        assert result.exit_code == 0, (result.output, result.exception)
        return self.archive.read_bytes()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def failure(result: Result) -> KitError:
    assert isinstance(result.exception, KitError), (result.output, result.exception)
    assert "\n" not in str(result.exception)
    return result.exception
