"""Read the columns of data files, in a process of its own.

Libraries parse the files in native code, which a damaged file or a stranger's may crash or fill with memory.
Then only this process ends.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_repeat.system.files import json_text, megabytes, read_file, write_text
from qlora_repeat.system.memory import memory_limit

_PARAGRAPHS = {"sample_by": "paragraph"}


def read_columns(
    kind: str,
    files: Sequence[Path],
    wanted: Sequence[str],
    rows: int,
    largest: int,
    memory: int,
    folder: Path,
) -> dict[str, Any]:
    """Return columns of the files of a data set.

    Args:
        kind: as `datasets.load_dataset` names it.
        rows: if not 0, read no values if there is another number of rows, except of ``text``.
        largest: the most bytes of the values.
        memory: the most bytes that the libraries may use.
        folder: for their files.

    Returns:
        The names of all ``columns``, the number of ``rows``, and the ``values`` row by row, if all wanted
        columns are there. A value that is not text is a list with its representation.

    Raises:
        ValueError: the files cannot be read as this kind, or their values are too large.
        OSError: the disk with the folder is full or fails.
    """
    request, answer = folder / "request.json", folder / "answer.json"
    asked = {
        "kind": kind,
        "files": [str(path) for path in files],
        "wanted": list(wanted),
        "rows": rows,
        "largest": largest,
        "memory": memory,
    }
    write_text(request, json_text(asked))
    command = [sys.executable, "-P", "-m", "qlora_repeat.assets.row_reader", str(request), str(answer)]
    environment = os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    if done.returncode != 0 or not answer.is_file():
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise ValueError(f"the library that reads it ended with {how}")
    # JSON needs about as many bytes as the values, but six for a control character.
    found: dict[str, Any] = json.loads(read_file(answer, 6 * largest + 1_000_000))
    if "errno" in found:
        raise OSError(found["errno"], os.strerror(found["errno"]), found["file"])
    if "error" in found:
        raise ValueError(found["error"])
    return found


def _read(asked: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    import datasets

    kind, wanted = asked["kind"], asked["wanted"]
    _require_plain([Path(path) for path in asked["files"]], kind, asked["largest"])
    more = _PARAGRAPHS if kind == "text" else {}
    table = datasets.load_dataset(
        kind, data_files=asked["files"], split="train", cache_dir=str(scratch), **more
    )
    found = {"columns": table.column_names, "rows": table.num_rows}
    is_other = kind != "text" and asked["rows"] not in (0, table.num_rows)
    if not set(wanted) <= set(table.column_names) or is_other:
        return found
    chosen = table.select_columns(wanted)
    if chosen.data.nbytes > asked["largest"]:
        raise ValueError(f"its rows are larger than {megabytes(asked['largest'])}")
    return found | {"values": [[_text(row[column]) for column in wanted] for row in chosen]}


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else [repr(value)[:200]]


def _require_plain(files: Sequence[Path], kind: str, largest: int) -> None:
    """Raise ValueError for files whose rows could be much larger than they are, or that are too large."""
    from datasets.utils.extract import Extractor
    from pyarrow.parquet import ParquetFile

    size = sum(path.stat().st_size for path in files)
    for path in files:
        if kind != "parquet" and (found := Extractor.infer_extractor_format(path)):
            raise ValueError(f"it is compressed ({found})")
        if kind == "parquet":
            with ParquetFile(path) as file:
                for batch in file.iter_batches(1000):
                    size += batch.nbytes
                    if size > largest:
                        break
    if size > largest:
        raise ValueError(f"its rows are larger than {megabytes(largest)}")


def _answer(asked: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        with memory_limit(asked["memory"]):
            return _read(asked, scratch)
    except (DatasetsError, ValueError, StopIteration, ArrowException, MemoryError, OSError) as error:
        for each in (error, error.__cause__):  # errors of pyarrow have no number
            if isinstance(each, OSError) and each.errno is not None:
                return {"errno": each.errno, "file": str(each.filename or scratch)}
        return {"error": " ".join(str(error.__cause__ or error).split()) or "it is empty"}


if __name__ == "__main__":
    given, target = map(Path, sys.argv[1:])
    write_text(target, json.dumps(_answer(json.loads(given.read_text("utf-8")), given.parent)))
