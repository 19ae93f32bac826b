"""The report as a page for people, with the heat map of A[t, i]. One file, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.report.pictures import png, pyplot, replace_file
from cluster.report.tables import METHOD_NAMES, report_tables

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1c2430; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; }
caption { caption-side: bottom; text-align: left; color: #5b6675; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e3e7ec; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #9aa5b1; }
img { max-width: 100%; } .note { color: #5b6675; }
"""


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write `report.json`, `report.html` and `accuracy.png` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = heat_map(report)
    for name, content in (
        ("report.json", (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()),
        ("accuracy.png", picture),
        ("report.html", page(report, picture).encode()),
    ):
        replace_file(folder / name, content)


def heat_map(report: dict[str, Any]) -> bytes:
    """PNG of A[t, i]: rows are sessions, columns tasks; condu beside plain continual fine-tuning where it was run."""
    names = [task["name"] for task in report["tasks"]]
    panels = [(title, report["matrices"][key]) for title, key in _PANELS if key in report["matrices"]]
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


def page(report: dict[str, Any], picture: bytes) -> str:
    """The page: the terminal's tables, the heat map, and what a reader needs to read them."""
    tables = "\n".join(_html_table(table) for table in report_tables(report))
    failed = "".join(
        f"<li>{html.escape(item['name'])}: {html.escape(str(item['reason']))}</li>" for item in report["failed"]
    )
    failures = f"<h2>Failed tasks</h2><ul>{failed}</ul>" if failed else ""
    served = _served(report.get("served", []))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>condu: report of version {report["version"]}</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>condu: version {report["version"]}</h1>
<p>{len(report["tasks"])} tasks fused into one model, mode {html.escape(str(report["mode"]["name"]))}, base
{html.escape(str(report["base"]["architecture"]))} <code>{report["base"]["sha256"][:12]}</code>.</p>
{tables}
{failures}
<h2>Accuracy on every task after every session</h2>
<p class="note">Percent of test images. Below the diagonal a task is learned already, above it is not yet.</p>
<img alt="Heat map of accuracy by session and task" src="data:image/png;base64,{base64.b64encode(picture).decode()}">
{served}
</body></html>
"""


_PANELS = (
    (METHOD_NAMES["condu"], "known"),
    (METHOD_NAMES["continual_finetuning"], "continual_finetuning"),
)


def _html_table(table: Any) -> str:
    head = "".join(f"<th>{html.escape(str(column.header))}</th>" for column in table.columns)
    cells = [list(column.cells) for column in table.columns]
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(column[row]))}</td>" for column in cells) + "</tr>"
        for row in range(table.row_count)
    )
    caption = f"<caption>{html.escape(str(table.caption))}</caption>" if table.caption else ""
    title = html.escape(str(table.title))
    return f"<h2>{title}</h2><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _served(answers: Sequence[dict[str, Any]]) -> str:
    if not answers:
        return ""
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(str(value))}</td>"
            for value in (a["image"], a["asked"], a["truth"], a["answer"], ", ".join(a["experts"]))
        )
        + "</tr>"
        for a in answers
    )
    return (
        "<h2>Answers over HTTP</h2><table><thead><tr><th>image</th><th>label space</th><th>truth</th><th>answer</th>"
        f"<th>experts consulted</th></tr></thead><tbody>{rows}</tbody></table>"
    )
