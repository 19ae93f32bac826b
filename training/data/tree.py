"""The files of a source, local or on S3, as one tree: relative paths to readers, and what was left out.

Each layout is parsed by one piece of code, for folders and buckets alike. Listing a tree reads none of its files.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fusion.errors import DataError, StoreAccessError, StoreUrlError
from fusion.store import S3Options
from training.data.files import File, LocalFile, ObjectFile

_LITTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "ehthumbs.db", "icon\r"}
"""What file managers leave behind, in lower case. Names that begin with a dot are left out as well."""
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Tree:
    """Files under one root.

    Attributes:
        root: as messages show it.
        files: relative path, with `/`, to the file.
        folders: all folders, empty ones too.
        notes: what was left out, a sentence each.
        prefix: of this root in the tree that was listed: '' or a folder and `/`.
    """

    root: str
    files: Mapping[str, File]
    folders: frozenset[str]
    notes: tuple[str, ...] = ()
    prefix: str = ""

    def inside(self, folder: str) -> Tree:
        """The tree below one of its folders."""
        prefix = f"{folder}/"
        files = {key.removeprefix(prefix): file for key, file in self.files.items() if key.startswith(prefix)}
        folders = frozenset(name.removeprefix(prefix) for name in self.folders if name.startswith(prefix))
        return Tree(f"{self.root}/{folder}", files, folders, self.notes, self.prefix + prefix)


def read_tree(source: str, options: S3Options | None) -> Tree:
    """List the files of a local folder, a `file://` URL or an `s3://bucket/prefix`. Raises `DataError`."""
    if source.startswith("s3://"):
        return _bucket(source, options)
    if source.startswith("hf://") or source.startswith("hf-hub:"):
        raise DataError(
            f"{source}: data is not read from the Hugging Face hub. Export it where the hub can be reached, with "
            "`datasets.load_dataset(…).to_parquet(…)` or `huggingface-cli download`, and name that folder"
        )
    if "://" in source and not source.startswith("file://"):
        raise DataError(f"{source!r} is not a source of data: use a folder, s3://bucket/prefix/ or torchvision:NAME")
    root = Path(unquote(urlsplit(source).path)) if source.startswith("file://") else Path(source).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"data folder {root} {what}: name a folder with train/ and test/, class folders, or Parquet files"
        )
    return _folder(root)


def suffix_of(key: str) -> str:
    """The suffix of a file's name, with its dot, in lower case; '' if it has none."""
    suffix = posixpath.splitext(key.rpartition("/")[2])[1].lower()
    return suffix if len(suffix) > 1 else ""


def names(keys: Iterable[str]) -> str:
    """The first few of some names, in order, and how many more there are."""
    found = sorted(keys)
    more = len(found) - _NAMES_SHOWN
    return ", ".join(found[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _folder(root: Path) -> Tree:
    files: dict[str, File] = {}
    folders: set[str] = set()
    litter: Counter[str] = Counter()
    loops: list[str] = []
    broken: list[str] = []

    def walk(folder: Path, prefix: str, above: frozenset[str]) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"data folder {folder} can't be listed: {error.strerror}") from error
        for entry in entries:
            key = prefix + entry.name
            if kind := _litter(entry.name):
                litter[kind] += 1
            elif entry.is_dir():  # a link to a folder, too
                real = os.path.realpath(entry.path)
                if real in above:
                    loops.append(key)
                    continue
                folders.add(key)
                walk(Path(entry.path), key + "/", above | {real})
            elif entry.is_file():
                found = entry.stat()
                files[key] = LocalFile(entry.path, found.st_size, found.st_mtime_ns)
            else:
                broken.append(key)

    walk(root, "", frozenset({os.path.realpath(root)}))
    notes = [*_litter_notes(litter)]
    if loops:
        notes.append(f"left out links that lead back to a folder above them: {names(loops)}")
    if broken:
        notes.append(f"left out {len(broken)} links to nothing, or no files: {names(broken)}")
    return Tree(str(root), files, frozenset(folders), tuple(notes))


def _bucket(source: str, options: S3Options | None) -> Tree:
    from fusion.store.s3_folder import S3Folder

    try:
        bucket = S3Folder(source.rstrip("/"), options=options)
        objects = bucket.objects()
    except (StoreUrlError, StoreAccessError) as error:
        raise DataError(f"{source} can't be listed: {error}") from error
    root = source.rstrip("/")
    files: dict[str, File] = {}
    origin: dict[str, str] = {}
    folders: set[str] = set()
    litter: Counter[str] = Counter()
    for info in objects:
        parts = [part for part in info.key.replace("\\", "/").split("/") if part]
        key = "/".join(parts)
        if kind := next(filter(None, map(_litter, parts)), None):
            litter[kind] += 1
        elif info.bytes == 0 and (info.key.endswith("/") or info.key.endswith("_$folder$")):
            folders.add(key.removesuffix("_$folder$"))  # how programs mark a folder that S3 does not have
        elif key in files:
            raise DataError(f"{root} holds two objects for the same file: {origin[key]!r} and {info.key!r}: delete one")
        elif key:
            stamp = f"{info.bytes}-{info.etag or info.modified}"
            files[key] = ObjectFile(bucket, info.key, info.bytes, stamp)
            origin[key] = info.key
    if not files:
        raise DataError(f"{root} holds no files: check the bucket, the prefix and the permission to list it")
    for key in [*files, *folders]:
        parts = key.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    odd = [key for key in origin.values() if "\\" in key or "//" in key]
    notes = [*_litter_notes(litter)]
    if odd:
        notes.append(f"{len(odd)} keys with backslashes or double slashes are read as paths: {names(map(repr, odd))}")
    return Tree(root, files, frozenset(folders), tuple(notes))


def _litter(name: str) -> str | None:
    """How a note calls it; None for a file or folder that belongs to the data."""
    if name.casefold() in _LITTER:
        return name
    if name == ".DS_Store":
        return name
    return "hidden files" if name.startswith(".") else None


def _litter_notes(litter: Counter[str]) -> list[str]:
    if not litter:
        return []
    return ["left out " + ", ".join(f"{count} {kind}" for kind, count in sorted(litter.items()))]
