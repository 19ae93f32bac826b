"""What the files of a data set hold, each read at most once: from the index where it knows them, else by reading them.

Letters: N images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.errors import DataError, StoreError
from training.data.blocks import PLACE
from training.data.contents import Columns, Unread, merged, schema
from training.data.file_reader import FileReader
from training.data.files import starts_like_an_image
from training.data.images import Rows
from training.data.index import DataIndex
from training.data.scan import Scan, chunks_of, scan_here
from training.data.tree import Tree

if TYPE_CHECKING:
    import pyarrow as pa

_SAVE_EVERY_S = 120.0


@dataclass(frozen=True)
class Table:
    """Labelled images as their files have them.

    Attributes:
        labels: numbers, texts or None, one per image.
        rows: the images, whose labels are not decided yet; `size` is -1 where a row has no image.
    """

    labels: list[Any]
    rows: Rows

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Found:
    """The images of some files, in the order in which they were asked for.

    Attributes:
        keys: the files.
        counts: number of images of each, int64 [files].
        table: all of them.
        outside: by row, the file beside a table that holds its image.
        named: class names that tables give, None if a table gives none, to the first file that does.
    """

    keys: Sequence[str]
    counts: np.ndarray
    table: Table
    outside: Mapping[int, str]
    named: Mapping[tuple[str, ...] | None, str]

    def relabelled(self, labels: list[Any]) -> Found:
        """The same images with other labels."""
        return replace(self, table=Table(labels, self.table.rows))

    def split(self, parts: Mapping[str, Sequence[str]]) -> dict[str, Table]:
        """The images of parts, whose keys are together all that were asked for, in that order."""
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        tables, first = {}, 0
        for name, keys in parts.items():
            rows = np.arange(ends[first], ends[first + len(keys)])
            tables[name] = Table([self.table.labels[row] for row in rows], self.table.rows.take(rows))
            first += len(keys)
        return tables


class Survey:
    """One look at a data set. When its block ends, what was read and verified is in the index.

    Args:
        tree: all its files.
        columns: of its tables.
        index: what earlier looks found; None: nothing.
        scan: reads many files; None: threads of this process.
        verify: decode every image that is read.
        refresh: read all files again, whatever the index says.
        validation: whether a validation split beside a test split is wanted.
    """

    def __init__(
        self,
        tree: Tree,
        *,
        columns: Columns | None = None,
        index: DataIndex | None = None,
        scan: Scan | None = None,
        verify: bool = False,
        refresh: bool = False,
        validation: bool = False,
    ) -> None:
        self.columns = columns or Columns()
        self.validation = validation
        self.notes: list[str] = []
        self._paths = {tree.prefix + key for key in tree.files}
        self._index = index
        self._scan = scan or scan_here
        self._verify = verify
        self._known = schema().empty_table()
        self._kinds: dict[str, bool] = {}
        if index is not None:
            self._known, damage = index.read()
            self.notes += [damage] if damage else []
        self._trusted = schema().empty_table() if refresh else self._known
        self._unsaved = False

    def __enter__(self) -> Survey:
        return self

    def __exit__(self, *error: object) -> None:
        self._save()

    def is_image(self, tree: Tree, key: str) -> bool:
        """Whether a file without a suffix is an image. Reads its beginning, once, unless the index knows it."""
        path, file = tree.prefix + key, tree.files[key]
        if not self._kinds:
            self._kinds = {f"{path}\0{stamp}": True for path, stamp in _stamps(self._trusted) if stamp}
        known = f"{path}\0{file.stamp}"
        if known not in self._kinds:
            try:
                self._kinds[known] = starts_like_an_image(file)
            except (OSError, StoreError) as error:
                raise DataError(f"{tree.root}/{key} can't be read: {error}") from error
        return self._kinds[known]

    def look(self, tree: Tree, keys: Sequence[str]) -> Found:
        """The images of some files of the tree. Raises `DataError` for a file that can't be read."""
        import pyarrow as pa
        import pyarrow.compute as pc

        different = list(dict.fromkeys(keys))  # a list may name a file twice
        paths = [tree.prefix + key for key in different]
        stamps = pa.array([tree.files[key].stamp for key in different], pa.string())
        at = pc.index_in(pa.array(paths, pa.string()), value_set=self._trusted["path"].combine_chunks())
        same = pc.and_(pc.equal(self._trusted["stamp"].combine_chunks().take(at), stamps), pc.not_equal(stamps, ""))
        is_known = pc.fill_null(same, False).to_numpy(zero_copy_only=False)
        unread = [
            Unread(path, f"{tree.root}/{key}", tree.files[key], self.columns, size=tree.files[key].size)
            for path, key, known in zip(paths, different, is_known, strict=True)
            if not known
        ]
        table, positions = self._trusted, pc.fill_null(at, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        if unread:
            fresh = self._read(unread)
            positions[~is_known] = len(table) + np.arange(len(fresh))
            table = pa.concat_tables([table, fresh])
        row = dict(zip(different, positions.tolist(), strict=True))
        return _found(tree, keys, table.take(pa.array([row[key] for key in keys], pa.int64())), self.columns)

    def with_outside(self, tree: Tree, found: Found) -> Found:
        """The same with the images that rows of tables name, where they are. Those that are not there stay missing."""
        if not found.outside:
            return found
        owner = np.repeat(np.arange(len(found.keys)), found.counts)
        wanted: dict[int, str] = {}
        for row, name in found.outside.items():
            key = str(PurePosixPath(found.keys[owner[row]]).parent / name)
            if key in tree.files:
                wanted[row] = key
        keys = list(dict.fromkeys(wanted.values()))
        images = self.look(tree, keys)
        place = {key: number for number, key in enumerate(keys)}
        rows, others = found.table.rows, images.table.rows
        assert isinstance(rows.reader, FileReader), "what is found is in files"
        assert isinstance(others.reader, FileReader), "what is found is in files"
        places, hashes = rows.places.copy(), rows.hashes.copy()
        for row, key in wanted.items():
            places[row], hashes[row] = others.places[place[key]], others.hashes[place[key]]
            places[row]["file"] += len(found.keys)
        both = rows.reader.joined(others.reader)
        return replace(found, table=Table(found.table.labels, Rows(both, rows.labels, hashes, places)))

    def _read(self, unread: Sequence[Unread]) -> pa.Table:
        """Contents of files that are not known, one row each. What has come is kept, whatever ends the reading."""
        import pyarrow as pa

        chunks = chunks_of(unread)
        whole = [all(one.groups is None for one in chunk) for chunk in chunks]
        read: dict[int, pa.Table] = {}
        saved = time.monotonic()
        try:
            for number, contents in self._scan(chunks, self._verify):
                read[number] = contents
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self._learn([table for number, table in read.items() if whole[number]])
                    self._save()
                    saved = time.monotonic()
        except BaseException:
            self._learn([table for number, table in read.items() if whole[number]])
            raise
        fresh = merged(pa.concat_tables([read[number] for number in range(len(chunks))]))
        self._learn([fresh])
        return fresh

    def _learn(self, fresh: Sequence[pa.Table]) -> None:
        """Put what was just read in place of what was known of the same files. Files that are gone are forgotten."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not fresh:
            return
        new = pa.concat_tables(fresh)
        left_out = set(self._known["path"].to_pylist()) - self._paths | set(new["path"].to_pylist())
        kept = self._known.filter(pc.invert(pc.is_in(self._known["path"], pa.array(sorted(left_out), pa.string()))))
        self._known = pa.concat_tables([kept, new])
        self._unsaved = True

    def _save(self) -> None:
        if self._unsaved and self._index is not None and self._verify:
            self._index.save(self._known)
        self._unsaved = False


def _stamps(table: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(table["path"].to_pylist(), table["stamp"].to_pylist(), strict=True)


def _found(tree: Tree, keys: Sequence[str], table: pa.Table, columns: Columns) -> Found:
    """Contents of files, one row each in the order of `keys`, as images."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = table["images"].combine_chunks() if len(table) else pa.array([], schema().field("images").type)
    counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    images = lists.flatten()
    places = np.zeros(len(images), PLACE)
    places["file"] = np.repeat(np.arange(len(keys)), counts)
    for name in ("group", "start", "size"):
        places[name] = images.field(name).to_numpy(zero_copy_only=False)
    reader = FileReader(
        [tree.files[key] for key in keys],
        [f"{tree.root}/{key}" for key in keys],
        columns,
        called=_filled(places, images.field("called")),
        problems=_filled(places, images.field("problem")),
    )
    labels = _labels(images.field("label"))
    rows = Rows(reader, np.full(len(images), -1, np.int64), _hashes(images.field("sha256")), places)
    named: dict[tuple[str, ...] | None, str] = {}
    for key, text in zip(keys, table["class_names"].to_pylist(), strict=True):
        named.setdefault(tuple(json.loads(text)) if text else None, key)
    outside = {row: name for row, name in _valid(images.field("outside"))}
    return Found(keys, counts, Table(labels, rows), outside, named)


def _hashes(values: pa.Array) -> np.ndarray:
    """uint8 [N, 32], zeros where there is none."""
    import pyarrow.compute as pc

    filled = pc.fill_null(values, b"\0" * 32)
    bytes_of = np.frombuffer(filled.buffers()[1], np.uint8) if len(filled) else np.zeros(0, np.uint8)
    start = 32 * filled.offset
    return bytes_of[start : start + 32 * len(filled)].reshape(-1, 32)


def _labels(values: pa.Array) -> list[Any]:
    """From JSON, each different one parsed once."""
    coded = values.dictionary_encode()
    meant = [json.loads(text) for text in coded.dictionary.to_pylist()]
    return [None if code is None else meant[code] for code in coded.indices.to_pylist()]


def _valid(values: pa.Array) -> list[tuple[int, str]]:
    import pyarrow.compute as pc

    if values.null_count == len(values):
        return []
    rows = np.flatnonzero(pc.is_valid(values).to_numpy(zero_copy_only=False))
    return [(int(row), text) for row, text in zip(rows, values.take(rows).to_pylist(), strict=True)]


def _filled(places: np.ndarray, values: pa.Array) -> dict[tuple[int, int], str]:
    """File and start to a text, where there is one."""
    return {(int(places["file"][row]), int(places["start"][row])): text for row, text in _valid(values)}
