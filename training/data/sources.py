"""Reading a task's images from where people keep them: which layout a tree of files has, and who parses it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from training.data.class_folders import enter, read_class_folders
from training.data.listed import read_listed, tables_in
from training.data.parquet import read_parquet
from training.data.raw_task import RawTask
from training.data.survey import Survey
from training.data.tree import Tree
from training.data.webdataset import read_webdataset


def absolute_source(source: str, folder: Path | None = None) -> str:
    """The same source for a process with another working directory: a relative path is made absolute.

    It is taken relative to `folder` (None: the working directory). URLs and `torchvision:` names stay as they are.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", source):
        return source
    return os.path.abspath((folder or Path()) / os.path.expanduser(source))


def read_raw(tree: Tree, survey: Survey) -> RawTask:
    """Parse a tree: as Parquet or WebDataset if it has such files, by a list of its files, else as class folders.

    Raises `DataError`.
    """
    endings = {key.rpartition(".")[2].lower() for key in tree.files}
    if "parquet" in endings:
        return read_parquet(tree, survey)
    if "tar" in endings:
        return read_webdataset(tree, survey)
    inside, notes = enter(tree, survey)
    if tables := tables_in(inside, survey.columns):
        return read_listed(replace(inside, notes=tuple(notes)), tables, survey)
    return read_class_folders(tree, survey)
