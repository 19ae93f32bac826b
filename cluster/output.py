"""What the command line prints: tables for people, JSON for programs, one line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDTH_OF_FILES = 120
"""Columns where the output goes into a file or a pipe, which have no width of their own."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_OF_FILES)
errors = Console(stderr=True, highlight=False)


def json_text(value: Any) -> str:
    """A JSON document as condu prints and keeps it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def print_json(value: Any) -> None:
    """One JSON document on standard output, and nothing else there."""
    print(json_text(value), end="")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str | None = None) -> Table:
    """A table whose first column is text and whose others are right-aligned. Cells are formatted by `text`."""
    result = Table(title=title, title_justify="left", caption=caption, caption_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        result.add_row(*(text(value) for value in row))
    return result


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while the block runs, if that is a terminal. Yields what advances it."""
    if not errors.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=errors, transient=True) as bar:
        shown = bar.add_task("", total=total)
        yield lambda count: bar.advance(shown, count)


def text(value: Any) -> str:
    """A value in a table: a dash for None, one decimal for a float."""
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def human_bytes(count: float) -> str:
    """1234567 as `1.2 MB` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
