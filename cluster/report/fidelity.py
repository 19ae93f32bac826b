"""A fidelity report for people: a table on the terminal, JSON and one picture per version on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.output import human_bytes, json_text, table
from cluster.report.pictures import png, pyplot, replace_file
from fusion.errors import ConfigError
from fusion.fidelity import FidelityReport
from fusion.modes import in_words

_COLUMNS = ["task", "session", "cosine", "relative error", "bits set", "bits lost", "trigger", "archive"]


def fidelity_table(report: FidelityReport) -> Table:
    """One row per task; the caption says what the fuse took."""
    rows = [
        (
            task.task,
            task.session,
            _number(task.cosine),
            _number(task.relative_error),
            f"{100 * task.bits_set:.1f} %",
            f"{100 * task.bits_lost:.1f} %",
            human_bytes(task.trigger_bytes),
            human_bytes(task.archive_bytes) if task.archive_bytes else None,
        )
        for task in report.tasks
    ]
    rounding = "".join(f"; rounding of {what}: {error:.1e}" for what, error in report.rounding.items())
    caption = (
        f"shared {human_bytes(report.shared_bytes)}; fused in {report.seconds:.2f} s, wrote "
        f"{human_bytes(report.written_bytes)}, peak memory {human_bytes(report.peak_bytes)} "
        f"(grew by {human_bytes(report.extra_bytes)}){rounding}"
    )
    return table(f"fidelity of version {report.version}, {in_words(report.mode)}", _COLUMNS, rows, caption=caption)


def write_fidelity(reports: Sequence[FidelityReport], path: Path) -> list[Path]:
    """Write the reports as JSON to `path`, and beside it one picture per version. Returns the pictures' paths.

    Raises `ConfigError` where the folder can't be written.
    """
    _replace(path, json_text([report.to_json() for report in reports]).encode())
    pictures = []
    for report in reports:
        pictures.append(path.with_name(f"{path.stem}-v{report.version}.png"))
        _replace(pictures[-1], picture(report))
    return pictures


def picture(report: FidelityReport) -> bytes:
    """PNG: cosine and lost bits of every task, in fused order."""
    names = [task.task for task in report.tasks]
    figure, axes = pyplot().subplots(1, 2, figsize=(9.5, 1.6 + 0.28 * len(names)), sharey=True)
    panels: list[tuple[Any, str, list[float | None]]] = [
        (axes[0], "cosine of the decoupled to the original task vector", [task.cosine for task in report.tasks]),
        (axes[1], "bits lost since the task was added (%)", [100 * task.bits_lost for task in report.tasks]),
    ]
    for axis, title, values in panels:
        bars = axis.barh(range(len(names)), [value or 0 for value in values], color="#2b7bba")
        labels = ["not available" if value is None else f"{value:.3g}" for value in values]
        axis.bar_label(bars, labels, padding=3, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xlim(0, 1.15)
    axes[1].set_xlim(left=0)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].invert_yaxis()
    figure.suptitle(f"version {report.version}, {in_words(report.mode)}", fontsize=10)
    figure.tight_layout()
    return png(figure)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _replace(path: Path, body: bytes) -> None:
    try:
        replace_file(path, body)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}") from error
