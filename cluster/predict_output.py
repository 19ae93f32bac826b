"""The file that `condu predict --output` writes: CSV, JSON lines or Parquet, one row per answered image.

Rows are appended as answers come, so that a run that was cut is continued by the same command: what the file has is not
asked again, and a last line that was cut is removed. Parquet cannot be appended to: its rows wait in `FILE.partial`, as
JSON lines, and become part of the file when the run ends. A file that is no such output is never touched.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from fusion.disk import replacing, writing
from fusion.errors import ConfigError, DataError
from serving.client import Answer

COLUMNS = (
    "image",
    "label",
    "task",
    "probability",
    "familiarity",
    "unknown",
    "rule",
    "experts",
    "label_space",
    "version",
)
"""Of every format; JSON lines and Parquet have `top` as well."""
SUFFIXES = (".csv", ".jsonl", ".parquet")
_CHUNK_BYTES = 1 << 20
_ROWS_PER_GROUP = 10_000

Row = dict[str, Any]


class Output(Protocol):
    """An open output."""

    done: dict[str, None]
    """The images that it has, in order."""
    some: Row | None
    """One of its rows, as read: numbers of a CSV are text."""

    def write(self, answers: list[Answer]) -> None: ...


@contextmanager
def open_output(path: Path) -> Iterator[Output]:
    """Open or continue an output, by its suffix. Raises `ConfigError`, `DataError` for a file that is something else,
    `DiskError`."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"--output {path}: its ending must be one of {', '.join(SUFFIXES)}")
    lines = path.with_name(path.name + ".partial") if suffix == ".parquet" else path
    with writing(lines), open(lines, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{path} is being written by another `condu predict`: wait for it, or stop it") from None
        if suffix == ".csv":
            yield _Csv(path, file)
        elif suffix == ".jsonl":
            yield _JsonLines(path, file)
        else:
            yield from _parquet(path, lines, file)


class _Csv:
    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.done: dict[str, None] = {}
        self.some: Row | None = None
        self._file = file
        header = self._lines([COLUMNS])
        _cut(file, path, header, quoted=True)
        file.seek(0)
        try:
            rows = csv.reader((line.decode("utf-8", errors="surrogateescape") for line in file), strict=True)
            found = next(rows, None)
            if found is not None and tuple(found) != COLUMNS:
                raise _foreign(path, f"its columns are {', '.join(found)}")
            for row in rows:
                self.some = dict(zip(COLUMNS, row, strict=True))
                self.done[row[0]] = None
        except (csv.Error, ValueError) as error:
            raise _foreign(path, str(error)) from error
        file.seek(0, io.SEEK_END)
        if file.tell() == 0:
            file.write(header)

    def write(self, answers: list[Answer]) -> None:
        rows = [row_of(answer) for answer in answers]
        self._file.write(self._lines([[_cell(row[name]) for name in COLUMNS] for row in rows]))
        self._file.flush()
        self.done |= dict.fromkeys(row["image"] for row in rows)

    def _lines(self, rows: Any) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode("utf-8", errors="surrogateescape")


class _JsonLines:
    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.done: dict[str, None] = {}
        self.some: Row | None = None
        self._file = file
        _cut(file, path, b'{"image": "', quoted=False)
        for row in self.rows(path):
            self.some = row
            self.done[row["image"]] = None

    def rows(self, path: Path) -> Iterator[Row]:
        """What the file holds."""
        self._file.flush()
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not set(COLUMNS) <= set(row):
                    raise ValueError("it lacks columns")
            except ValueError as error:
                raise _foreign(path, f"line {number}: {error}") from error
            yield row

    def write(self, answers: list[Answer]) -> None:
        rows = [row_of(answer) for answer in answers]
        self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file.flush()
        self.done |= dict.fromkeys(row["image"] for row in rows)


def _parquet(path: Path, partial: Path, file: IO[bytes]) -> Iterator[_JsonLines]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = _JsonLines(partial, file)
    there: dict[str, None] = {}
    try:
        if path.exists():
            kept = pq.ParquetFile(path)
            if not kept.schema_arrow.equals(_schema()):
                raise _foreign(path, f"its columns are {', '.join(kept.schema_arrow.names)}")
            for batch in kept.iter_batches(columns=["image", "label_space", "task", "version"]):
                there |= dict.fromkeys(batch["image"].to_pylist())
                lines.some = lines.some or next(iter(batch.slice(0, 1).to_pylist()), None)
        lines.done |= there
        yield lines
        with replacing(path) as temporary, pq.ParquetWriter(temporary, _schema()) as writer:
            if path.exists():
                for batch in pq.ParquetFile(path).iter_batches(_ROWS_PER_GROUP):
                    writer.write_batch(batch)
            group: list[Row] = []
            for row in lines.rows(partial):
                if row["image"] not in there:  # a run that was killed between here and `unlink` left both
                    group.append(row)
                if len(group) == _ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(group, schema=_schema()))
                    group = []
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema=_schema()))
        partial.unlink()
    except pa.ArrowException as error:
        raise _foreign(path, str(error)) from error


def _schema() -> Any:
    import pyarrow as pa

    candidate = pa.struct([("task", pa.string()), ("label", pa.string()), ("probability", pa.float64())])
    kinds = {
        "probability": pa.float64(),
        "familiarity": pa.float64(),
        "unknown": pa.bool_(),
        "experts": pa.list_(pa.string()),
        "version": pa.int64(),
    }
    return pa.schema([*((name, kinds.get(name, pa.string())) for name in COLUMNS), ("top", pa.list_(candidate))])


def row_of(answer: Answer) -> Row:
    """An answered image as a row."""
    assert answer.prediction is not None
    assert answer.response is not None
    row: Row = {name: getattr(answer.prediction, name, None) for name in COLUMNS}
    row |= {"image": answer.image, "version": answer.response.version, "label_space": answer.response.label_space}
    return row | {"top": [one.model_dump() for one in answer.prediction.top]}


def check_question(path: Path, output: Output, label_space: str, task: str | None) -> None:
    """Raises `ConfigError` if the rows that an output has answer another question."""
    row: Mapping[str, Any] = output.some or {}
    if row and row["label_space"] != label_space:
        raise ConfigError(
            f"{path} has answers in label space {row['label_space']!r}, and this asks in {label_space!r}: "
            "choose another file"
        )
    if row and label_space == "task" and row["task"] != task:
        raise ConfigError(f"{path} has answers for task {row['task']}, and this asks for {task}: choose another file")


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(value)  # names of tasks have no spaces
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def _cut(file: IO[bytes], path: Path, beginning: bytes, *, quoted: bool) -> None:
    """Remove what follows the last complete line: the end of a line that was being written when the run was killed.

    Args:
        beginning: of every such file. One that does not begin so is refused.
        quoted: a newline between quotes ends no line.
    """
    file.seek(0)
    start = file.read(len(beginning))
    if start != beginning[: len(start)]:
        raise _foreign(path, "it begins otherwise")
    file.seek(0)
    end, place, inside = 0, 0, False
    while chunk := file.read(_CHUNK_BYTES):
        for found in re.finditer(b'["\n]', chunk):
            if found[0] == b'"':
                inside = quoted and not inside
            elif not inside:
                end = place + found.end()
        place += len(chunk)
    if end < place:
        file.truncate(end)


def _foreign(path: Path, why: str) -> DataError:
    return DataError(f"{path} is there and cannot be continued ({why}): choose another file, or move it away")
