"""Reading a task's images: a tree of files in a local folder or an S3 bucket, as class folders or as Parquet.

A tree maps relative paths to functions that read the files, so that each layout is parsed by one piece of code, for
folders and buckets alike. Local files stay on disk; objects of a bucket are kept in memory, encoded, once read.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fusion.errors import BlobNotFoundError, DataError, StoreAccessError, StoreUrlError
from fusion.store import S3Options, open_store
from training.images import Sample, raise_all, sha256_of

TEST_SHARE = 0.2
"""Fraction of the images that goes into the test split of a data set that has none."""


@dataclass(frozen=True)
class RawTask:
    """What a source says about a task, before the caller's own choices. A split that does not exist is None."""

    classes: tuple[str, ...]
    templates: tuple[str, ...] | None
    train: list[Sample] | None
    test: list[Sample] | None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """Files under one root: relative path to reader, and all folders, empty ones too."""

    root: str
    files: Mapping[str, Callable[[], bytes]]
    folders: frozenset[str]


def is_test_share(sha256: str) -> bool:
    """Whether an image belongs to the test split: decided by its content alone, so adding images moves no others."""
    return int(sha256[:8], 16) < TEST_SHARE * 2**32


def absolute_source(source: str, folder: Path | None = None) -> str:
    """The same source for a process with another working directory: a relative path is made absolute.

    It is taken relative to `folder` (None: the working directory). URLs and `torchvision:` names stay as they are.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", source):
        return source
    return os.path.abspath((folder or Path()) / os.path.expanduser(source))


def read_tree(source: str, options: S3Options | None) -> Tree:
    """List the files of a local folder, a `file://` URL or an `s3://bucket/prefix`. Hidden files are left out."""
    if source.startswith("s3://"):
        try:
            store = open_store(source.rstrip("/"), options)
            keys = [info.key for info in store.list("") if not _hidden(info.key)]
        except (StoreUrlError, StoreAccessError) as error:
            raise DataError(f"{source} can't be listed: {error}") from error
        files = {key: functools.cache(functools.partial(store.get, key)) for key in keys}
        if not files:
            raise DataError(f"{source} holds no files: check the bucket, the prefix and the permission to list it")
        parents = {"/".join(key.split("/")[:depth]) for key in files for depth in range(1, key.count("/") + 1)}
        return Tree(source.rstrip("/"), files, frozenset(parents))
    if "://" in source and not source.startswith("file://"):
        raise DataError(f"{source!r} is not a source of data: use a folder, s3://bucket/prefix/ or torchvision:NAME")
    root = Path(unquote(urlsplit(source).path)) if source.startswith("file://") else Path(source).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"data folder {root} {what}: name a folder with train/ and test/, class folders, or Parquet files"
        )
    local: dict[str, Callable[[], bytes]] = {}
    folders = set()
    for path in sorted(root.rglob("*")):
        key = path.relative_to(root).as_posix()
        if _hidden(key):
            continue
        if path.is_dir():
            folders.add(key)
        else:
            local[key] = path.read_bytes
    return Tree(str(root), local, frozenset(folders))


def read_raw(tree: Tree) -> RawTask:
    """Parse a tree: as Parquet if it has a Parquet file at its root, else as class folders."""
    if "train.parquet" in tree.files or "test.parquet" in tree.files:
        return _read_parquet(tree)
    return _read_folders(tree)


def _read_folders(tree: Tree) -> RawTask:
    info = _task_json(tree)
    top = {folder for folder in tree.folders if "/" not in folder}
    splits = top & {"train", "test"}
    if splits:
        train = _class_folders(tree, "train/") if "train" in splits else None
        test = _class_folders(tree, "test/") if "test" in splits else None
        if train is not None and test is None:
            raise DataError(
                f"{tree.root} has train/ but no test/: add one, or move the class folders up into {tree.root} "
                "for an 80/20 split"
            )
        folders = train if train is not None else test
        assert folders is not None
        if train is not None and test is not None and (extra := sorted(set(test) - set(train))):
            raise DataError(f"{tree.root}/test has classes that train/ lacks: {', '.join(extra)}")
    else:
        folders = _class_folders(tree, "")
        train = test = None
    classes, names = _class_names(tree.root, sorted(folders), info.get("classes"))
    if not splits:
        everything = _samples(tree, folders, names)
        hidden = [sample for sample in everything if is_test_share(sample.sha256)]
        shown = [sample for sample in everything if not is_test_share(sample.sha256)]
        return RawTask(classes, info.get("templates"), shown, hidden, info.get("aliases", {}))
    return RawTask(
        classes,
        info.get("templates"),
        None if train is None else _samples(tree, train, names),
        None if test is None else _samples(tree, test, names),
        info.get("aliases", {}),
    )


def _class_folders(tree: Tree, prefix: str) -> dict[str, list[str]]:
    """Files of each class folder directly under `prefix`."""
    found: dict[str, list[str]] = {
        folder[len(prefix) :]: []
        for folder in tree.folders
        if folder.startswith(prefix) and "/" not in folder[len(prefix) :]
    }
    for key in tree.files:
        name, separator, _ = key[len(prefix) :].partition("/")
        if key.startswith(prefix) and separator:
            found[name].append(key)
    if not found:
        raise DataError(
            f"{tree.root}/{prefix} has no class folders: it needs one folder per class, named after it, with its images"
        )
    return found


def _class_names(
    root: str, folders: Sequence[str], given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Classes in order, and the index of each folder. A `_` reads as a space: `golden_retriever` is two words."""
    spoken = {folder: folder.replace("_", " ") for folder in folders}
    if given is None:
        if len(set(spoken.values())) < len(spoken):
            twice = sorted(name for name in set(spoken.values()) if list(spoken.values()).count(name) > 1)
            raise DataError(
                f"{root}: class folders that read alike once '_' is a space: {', '.join(twice)}: rename one of each"
            )
        return tuple(spoken[folder] for folder in folders), {folder: index for index, folder in enumerate(folders)}
    position = {name: index for index, name in enumerate(given)}
    indices = {folder: position.get(folder, position.get(spoken[folder], -1)) for folder in folders}
    problems = [f"folder {folder} is not a class of task.json" for folder, index in indices.items() if index < 0]
    problems += [
        f"class {given[index]!r} of task.json has no folder" for index in set(position.values()) - set(indices.values())
    ]
    raise_all([f"{root}: {problem}" for problem in problems])
    return given, indices


def _samples(tree: Tree, folders: Mapping[str, Sequence[str]], names: Mapping[str, int]) -> list[Sample]:
    found = []
    for folder, keys in folders.items():
        for key in keys:
            origin = f"{tree.root}/{key}"
            try:
                sha256 = sha256_of(tree.files[key]())
            except (OSError, StoreAccessError, BlobNotFoundError) as error:
                raise DataError(f"{origin} can't be read: {error}") from error
            found.append(Sample(names[folder], sha256, origin, tree.files[key]))
    return found


def _read_parquet(tree: Tree) -> RawTask:
    if "task.json" not in tree.files:
        raise DataError(
            f'{tree.root} has Parquet files but no task.json beside them: write one with "name", "classes" (a list in '
            'the order of the labels) and "templates" (such as "a photo of a {}.")'
        )
    info = _task_json(tree)
    if info.get("classes") is None:
        raise DataError(f"{tree.root}/task.json lacks 'classes': a list of names in the order of the labels")
    classes = info["classes"]

    def split(name: str) -> list[Sample] | None:
        return _rows(tree, name, len(classes)) if name in tree.files else None

    train, test = split("train.parquet"), split("test.parquet")
    if train is not None and test is None:
        raise DataError(f"{tree.root} has train.parquet but no test.parquet")
    return RawTask(classes, info.get("templates"), train, test, info.get("aliases", {}))


def _rows(tree: Tree, name: str, num_classes: int) -> list[Sample]:
    """Samples of one Parquet file: columns `image` (encoded bytes) and `label` (integer)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = f"{tree.root}/{name}"
    try:
        table = pq.read_table(io.BytesIO(tree.files[name]()), columns=["image", "label"])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path} can't be read as Parquet with columns 'image' and 'label': {error}") from error
    image_type, label_type = table.schema.field("image").type, table.schema.field("label").type
    if not (pa.types.is_binary(image_type) or pa.types.is_large_binary(image_type)) or not pa.types.is_integer(
        label_type
    ):
        raise DataError(
            f"{path}: 'image' has to be binary (encoded images) and 'label' integer; they are {image_type} and "
            f"{label_type}"
        )
    images, labels = table.column("image").to_pylist(), table.column("label").to_pylist()
    problems, samples = [], []
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        origin = f"{path} row {row}"
        if label is None or not 0 <= label < num_classes:
            problems.append(f"{origin} has label {label}; the labels of task.json's classes are 0 to {num_classes - 1}")
        elif image is None:
            problems.append(f"{origin} has no image")
        else:
            samples.append(Sample(int(label), sha256_of(image), origin, functools.partial(bytes, image)))
    raise_all(problems)
    return samples


def _task_json(tree: Tree) -> dict[str, Any]:
    """`classes` and `templates` of task.json as tuples of strings, and `aliases`, as far as it exists and has them."""
    if "task.json" not in tree.files:
        return {}
    path = f"{tree.root}/task.json"
    try:
        info = json.loads(tree.files["task.json"]())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(info, dict):
        raise DataError(f"{path} has to be an object with 'classes' and 'templates'")
    found: dict[str, Any] = {}
    for key in ("classes", "templates"):
        value = info.get(key)
        if value is None:
            continue
        if not _is_texts(value):
            raise DataError(f"{path}: {key!r} has to be a list of non-empty strings")
        found[key] = tuple(value)
    if (aliases := info.get("aliases")) is not None:
        if not isinstance(aliases, dict) or not all(_is_texts(others) for others in aliases.values()):
            raise DataError(f'{path}: "aliases" has to be an object of lists, such as {{"0": ["zero", "nought"]}}')
        found["aliases"] = {name: tuple(others) for name, others in aliases.items()}
    return found


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


def _hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))
