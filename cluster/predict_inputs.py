"""What `condu predict` is asked about: files, folders, patterns, prefixes on S3, and tables of paths, as named images.

Nothing is read here but listings and tables; an image is read when its turn comes. What an image is called in the
output is its path or URL, or what a table calls it.
"""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.errors import ConduError, ConfigError, DataError
from serving.client.images import NamedImage, read_file

if TYPE_CHECKING:
    from fusion.store.s3_folder import S3Folder

_S3 = "s3://"
_TABLES = (".csv", ".tsv", ".parquet")


def images_of(arguments: Sequence[str], column: str | None = None) -> list[NamedImage]:
    """The images that arguments mean, in their order; those of a folder or prefix by name.

    Args:
        column: of a table: which column holds the paths. None: one that is called as such columns are.
    Raises: DataError for a folder, prefix, pattern or table that cannot be read or holds no images. A file that is not
        there is an error only when it is read.
    """
    return [image for argument in arguments for image in _images_of(argument, column)]


def _images_of(argument: str, column: str | None) -> Iterator[NamedImage]:
    if argument.lower().endswith(_TABLES):
        yield from _listed(argument, column)
    elif argument.startswith(_S3):
        yield from _in_bucket(argument)
    elif Path(argument).is_dir():
        yield from _in_folder(argument)
    elif glob.has_magic(argument) and not Path(argument).exists():
        found = sorted(path for path in glob.glob(argument, recursive=True) if Path(path).is_file())
        if not found:
            raise DataError(f"no file matches {argument!r}")
        for path in found:
            yield from _images_of(path, column)
    else:
        yield NamedImage(argument, partial(read_file, Path(argument)))


def _in_folder(argument: str) -> Iterator[NamedImage]:
    from training.data.tree import read_tree

    tree = read_tree(argument, None)
    found = [key for key in sorted(tree.files) if _is_image(key)]
    if not found:
        raise DataError(f"{argument} holds no images: none of its {len(tree.files)} files is called like one")
    for key in found:
        path = Path(argument) / key
        yield NamedImage(str(path), partial(read_file, path))


def _in_bucket(url: str) -> Iterator[NamedImage]:
    if _is_image(url):
        yield NamedImage(url, partial(_read_object, url))
        return
    root = url.rstrip("/")
    try:
        keys = [info.key for info in _bucket(root).objects()]
    except ConduError as error:
        raise DataError(f"{url} can't be listed: {error}") from error
    found = [key for key in keys if _is_image(key) and not any(part.startswith(".") for part in key.split("/"))]
    if not found:
        raise DataError(f"{url} holds no images: none of its {len(keys)} objects is called like one")
    for key in found:
        yield NamedImage(f"{root}/{key}", partial(_bucket(root).read, key))


def _listed(table: str, column: str | None) -> Iterator[NamedImage]:
    folder = table.rpartition("/")[0] if table.startswith(_S3) else str(Path(table).parent)
    for name in _paths(table, column):
        yield NamedImage(name, partial(_read_listed, name, folder))


def _paths(table: str, column: str | None) -> list[str]:
    body = _read_object(table) if table.startswith(_S3) else read_file(Path(table))
    if table.lower().endswith(".parquet"):
        return _paths_of_parquet(table, body, column)
    try:
        rows = csv.DictReader(
            io.StringIO(body.decode("utf-8-sig")),
            delimiter="\t" if table.lower().endswith(".tsv") else ",",
            strict=True,
        )
        name = _pick(table, list(rows.fieldnames or ()), column)
        found = [row[name] or "" for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} can't be read: {error}") from error
    return _all_named(table, name, found)


def _paths_of_parquet(table: str, body: bytes, column: str | None) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(body))
        name = _pick(table, file.schema_arrow.names, column)
        kind = file.schema_arrow.field(name).type
        if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            raise DataError(f"{table}: column {name!r} holds {kind}, not paths: name another with --column")
        found = [path or "" for path in file.read(columns=[name])[name].to_pylist()]
    except pa.ArrowException as error:
        raise DataError(f"{table} can't be read: {error}") from error
    return _all_named(table, name, found)


def _pick(table: str, present: Sequence[str], column: str | None) -> str:
    from training.data.listed import PATH_COLUMNS

    if column is not None and column not in present:
        raise ConfigError(f"--column {column!r}: {table} has the columns {', '.join(present) or '(none)'}")
    known = [column] if column else [name for name in present if name.casefold() in PATH_COLUMNS]
    if not known:
        raise DataError(
            f"{table} has no column of paths ({', '.join(PATH_COLUMNS)}) but {', '.join(present) or 'none'}: "
            "name it with --column"
        )
    return known[0]


def _all_named(table: str, column: str, found: list[str]) -> list[str]:
    if not found:
        raise DataError(f"{table} lists no images")
    if "" in found:
        raise DataError(f"{table}: row {found.index('') + 1} has no path in column {column!r}")
    return found


def _read_listed(name: str, folder: str) -> bytes:
    """Relative to the table, else to the working folder."""
    if name.startswith(_S3):
        return _read_object(name)
    if folder.startswith(_S3):
        return _read_object(f"{folder}/{name.removeprefix('./')}")
    beside = Path(folder) / name
    return read_file(beside if beside.exists() else Path(name))


def _read_object(url: str) -> bytes:
    root, _, key = url.rpartition("/")
    try:
        return _bucket(root).read(key)
    except ConduError as error:
        raise DataError(f"{url} can't be read: {error}") from error


@cache
def _bucket(root: str) -> S3Folder:
    from fusion.store.s3_folder import S3Folder

    return S3Folder(root)


def _is_image(name: str) -> bool:
    from fusion.answers.images import SUFFIXES

    return name.lower().endswith(SUFFIXES)
