"""The report as a page for people, with the heat map of A[t, i]. One file, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table

from cluster.output import json_text
from cluster.report.pictures import png, pyplot
from cluster.report.records import RunReport
from cluster.report.tables import METHOD_NAMES, WAYS, report_tables
from fusion.disk import replace_file

_PANELS = (
    (METHOD_NAMES["condu"], "known"),
    (METHOD_NAMES["continual_finetuning"], "continual_finetuning"),
)
"""Of the heat map: title, and the matrix that it shows."""


def write_report(report: RunReport, folder: Path) -> None:
    """Write `report.json`, `report.html`, `accuracy.png` and `calibration.png` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"accuracy.png": heat_map(report), "calibration.png": reliability_diagram(report)}
    replace_file(folder / "report.json", json_text(report.to_json()).encode())
    for name, picture in pictures.items():
        replace_file(folder / name, picture)
    replace_file(folder / "report.html", page(report, *pictures.values()).encode())


def heat_map(report: RunReport) -> bytes:
    """PNG of A[t, i]: rows are sessions, columns tasks; condu beside plain continual fine-tuning where it was run."""
    names = [task.name for task in report.tasks]
    panels = [(title, report.matrices[key]) for title, key in _PANELS if key in report.matrices]
    width = 1.6 + 0.62 * len(names)
    figure, axes = pyplot().subplots(
        1, len(panels), figsize=(width * len(panels), 1.9 + 0.5 * len(names)), squeeze=False
    )
    for axis, (title, rows) in zip(axes[0], panels, strict=True):
        matrix = np.array([[np.nan if value is None else value for value in row] for row in rows], float)
        axis.imshow(matrix, cmap="YlGnBu", vmin=0, vmax=100, aspect="auto")
        for (t, i), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                axis.text(
                    i, t, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value > 60 else "black"
                )
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        axis.set_yticks(range(len(matrix)), [f"{t + 1}: {names[t]}" for t in range(len(matrix))], fontsize=8)
        axis.set_ylabel("after session", fontsize=8)
        axis.set_title(title, fontsize=10)
    figure.tight_layout()
    return png(figure)


def reliability_diagram(report: RunReport) -> bytes:
    """PNG of accuracy by stated probability, per label space: on the diagonal, 76 % is right 76 times in 100."""
    spaces = report.answers.calibration
    figure, axes = pyplot().subplots(1, len(spaces), figsize=(3.1 * len(spaces), 3.3), squeeze=False, sharey=True)
    for axis, (way, found) in zip(axes[0], spaces.items(), strict=True):
        total = sum(one.count for one in found.bins)
        axis.plot([0, 100], [0, 100], color="#999999", linewidth=1, linestyle="--")
        axis.plot([one.confidence for one in found.bins], [one.accuracy for one in found.bins], color="#225ea8")
        axis.scatter(
            [one.confidence for one in found.bins],
            [one.accuracy for one in found.bins],
            s=[12 + 300 * one.count / max(total, 1) for one in found.bins],
            color="#225ea8",
            alpha=0.7,
        )
        axis.set_title(f"{WAYS[way]}: error {found.ece:.1f} points", fontsize=9)
        axis.set_xlabel("probability of the answer (%)", fontsize=8)
        axis.set_xlim(0, 102)
        axis.set_ylim(0, 104)
        axis.tick_params(labelsize=8)
    axes[0][0].set_ylabel("answers that are right (%)", fontsize=8)
    figure.tight_layout()
    return png(figure)


def page(report: RunReport, accuracy: bytes, calibration: bytes) -> str:
    """The page: the terminal's tables, the pictures, and what a reader needs to read them.

    Args:
        accuracy, calibration: of `heat_map` and `reliability_diagram`; they become part of the page.
    """
    environment = Environment(
        loader=PackageLoader("cluster.report"),
        autoescape=True,  # names of tasks and classes, and reasons of failures, come from users
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("report.html").render(
        report=report,
        tables=[_cells(table) for table in report_tables(report)],
        heat_map=base64.b64encode(accuracy).decode(),
        reliability=base64.b64encode(calibration).decode(),
    )


def _cells(table: Table) -> dict[str, Any]:
    """What stands in a table of the terminal, for the template."""
    columns = [list(column.cells) for column in table.columns]
    return {
        "title": table.title,
        "headers": [column.header for column in table.columns],
        "rows": list(zip(*columns, strict=True)),
        "caption": table.caption,
    }
