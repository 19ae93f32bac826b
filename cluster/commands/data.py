"""`condu data`: what a task's data is, before anything is trained on it; and which images to label."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.data_select import select
from cluster.commands.options import JsonOption, names_of
from cluster.output import console, print_json, table
from fusion.errors import ConfigError

if TYPE_CHECKING:
    from training.data.data_check import DataReport, Finding

app = typer.Typer(add_completion=False, help="A task's data: check it, choose what to label.", no_args_is_help=True)

app.command()(select)

_SHOWN = 5


@app.callback()
def _group() -> None:
    """A task's data: check it, choose what to label."""


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="Folder, s3://…, or torchvision:NAME.", metavar="PATH")],
    classes: Annotated[str | None, typer.Option(help="Class names, as a task's `classes`.", metavar="A,B,C")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of a table that holds the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of a table that holds the labels.")] = None,
    background: Annotated[str | None, typer.Option(help="Colour under transparent pixels. Default: white.")] = None,
    sheets: Annotated[
        Path | None, typer.Option(help="Write a contact sheet per class into this folder.", metavar="FOLDER")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is understood of a task's data, and what is wrong with it. Exit code 1 if something is."""
    from training.data.data_check import check_data, class_sheet
    from training.data.task_data import Reading, load_task_data, with_checked_texts

    name = Path(source.rstrip("/")).name
    data = load_task_data(
        name,
        source,
        Reading(verify=False),
        classes=names_of(classes, "--classes"),
        image_column=image_column,
        label_column=label_column,
        background=background,
    )
    data = with_checked_texts(data, _CLIP)
    report = check_data(data)
    written = []
    if sheets is not None:
        try:
            sheets.mkdir(parents=True, exist_ok=True)
            for label, called in enumerate(data.classes):
                path = sheets / f"{label:03d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', called)[:60]}.png"
                class_sheet(data.train, label).save(path)
                written.append(str(path))
        except OSError as error:
            raise ConfigError(f"--sheets {sheets} can't be written: {error.strerror or error}") from error
    if as_json:
        print_json(_as_json(source, report, written))
    else:
        _tell(source, report, written)
    if not report.ok:
        raise typer.Exit(1)


_CLIP: dict[str, Any] = {"text_cfg": {"context_length": 77}}
"""Whose tokenizer judges the texts: CLIP's own. A run judges them with its base's."""


def _tell(source: str, report: DataReport, sheets: list[str]) -> None:
    data = report.data
    console.print(f"{source}: {data.layout}", markup=False, soft_wrap=True)
    for note in data.notes:
        console.print(f"  {note}", markup=False, soft_wrap=True)
    rows = [(name, train, test) for name, (train, test) in report.counts.items()]
    title = f"{len(data.classes)} classes, {len(data.train)} images to train, {len(data.test)} to test"
    console.print(title)
    console.print(table("", ["class", "train", "test"], rows))
    formats = ", ".join(f"{count} {kind}" for kind, count in report.formats.items())
    console.print(f"formats: {formats or 'none'}", markup=False)
    for finding in report.findings:
        _tell_finding(finding)
    if sheets:
        console.print(f"contact sheets: {Path(sheets[0]).parent}", markup=False, soft_wrap=True)
    if not report.findings:
        console.print("nothing wrong was found")


def _tell_finding(finding: Finding) -> None:
    style = "bold red" if finding.serious else "yellow"
    console.print(f"[{style}]{finding.kind}[/]", end=" ")
    console.print(finding.message, markup=False, soft_wrap=True)
    for image in finding.images[:_SHOWN]:
        console.print(f"    {image}", markup=False, soft_wrap=True)
    if (more := len(finding.images) - _SHOWN) > 0:
        console.print(f"    and {more} more")


def _as_json(source: str, report: DataReport, sheets: list[str]) -> dict[str, Any]:
    data = report.data
    return {
        "source": source,
        "layout": data.layout,
        "notes": list(data.notes),
        "sha256": data.sha256,
        "classes": [{"name": name, "train": train, "test": test} for name, (train, test) in report.counts.items()],
        "templates": list(data.templates),
        "formats": dict(report.formats),
        "findings": [
            {
                "kind": finding.kind,
                "message": finding.message,
                "serious": finding.serious,
                "images": list(finding.images),
            }
            for finding in report.findings
        ],
        "sheets": sheets,
        "ok": report.ok,
    }
