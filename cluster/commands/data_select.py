"""`condu data select`: which of many unlabelled images to label next."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import JsonOption, config_of
from cluster.output import console, errors, print_json, progress_bar, table
from fusion.disk import replace_file, writing
from fusion.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from cluster.data_select import Chosen, Selection

_SHOWN = 20
_HERE = "condu.yaml"
_COLUMNS = ("rank", "image", "speaks_for", "uncertainty", "label", "probability")


def select(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Unlabelled images: files, folders, patterns, s3:// prefixes, or a table with a column of paths.",
            metavar="PATH…",
        ),
    ],
    budget: Annotated[int, typer.Option(min=1, help="How many images you can label.", metavar="N")],
    where: Annotated[
        str,
        typer.Option(
            "--model", help="A configuration, whose base sees the images, or a store.", metavar="CONFIG|STORE"
        ),
    ] = _HERE,
    task: Annotated[
        str | None, typer.Option(help="Choose what this published task is uncertain of.", metavar="NAME")
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(help="What is labelled already, as `condu run` reads it: not chosen again.", metavar="PATH"),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the choice to this .csv.", metavar="FILE")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Write the chosen images side by side, PNG.", metavar="FILE")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of paths in a table. Default: found by its name.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose which images to label next: those that tell most about the images that nobody is sure of.

    Without --task and --labelled there is no answer to be sure of; then the choice covers the images evenly.
    """
    from cluster.data_select import select_images
    from cluster.predict_inputs import images_of
    from fusion.store.address import StoreAddress

    if where == _HERE and not Path(where).is_file():
        raise ConfigError(f"there is no {_HERE} here: name a configuration or a store with --model")
    if output is not None and output.suffix.lower() != ".csv":
        raise ConfigError(f"--output {output}: the choice is written as .csv")
    images = images_of(sources, column)
    config = config_of(where)
    with progress_bar(len(images)) as advance:
        selection = select_images(
            images,
            budget,
            address=config.address if config else StoreAddress(where),
            base=config.base if config else None,
            task=task,
            labelled=labelled,
            progress=advance,
        )
    if output is not None:
        with writing(output):
            replace_file(output, _csv(selection))
    if sheet is not None:
        with writing(sheet):
            replace_file(sheet, _png(selection))
    for problem in selection.problems[:_SHOWN]:
        errors.print(f"left out: {problem}", markup=False, soft_wrap=True)
    if as_json:
        print_json(_as_json(selection))
    else:
        _tell(selection, budget, [str(path) for path in (output, sheet) if path is not None])


def _tell(selection: Selection, budget: int, written: list[str]) -> None:
    how = f"by the answers of {selection.answered_by}" if selection.answered_by else "which nothing answers for yet"
    rows = [_row(rank, one) for rank, one in enumerate(selection.chosen[:_SHOWN], 1)]
    columns = ["image", "rank", "speaks for", "uncertainty %", "answer", "probability %"]
    console.print(table(f"{len(selection.chosen)} of {selection.num_images} images, {how}", columns, rows))
    if (more := len(selection.chosen) - _SHOWN) > 0:
        console.print(f"and {more} more" + ("" if written else ": write them with --output"))
    if len(selection.chosen) < budget:
        console.print(f"there are no more than {len(selection.chosen)} images to choose from")
    if selection.num_labelled:
        console.print(f"left out, because they are labelled already: {selection.num_labelled}")
    if selection.problems:
        console.print(f"left out, because they can't be used: {len(selection.problems)}")
    if written:
        console.print(f"written: {', '.join(written)}", markup=False, soft_wrap=True)


def _row(rank: int, one: Chosen) -> tuple[str | int | float | None, ...]:
    percent = [None if value is None else 100 * value for value in (one.uncertainty, one.probability)]
    return one.image.name, rank, one.speaks_for, percent[0], one.label, percent[1]


def _csv(selection: Selection) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for one in _records(selection):
        rows.writerow(["" if one[name] is None else one[name] for name in _COLUMNS])
    return text.getvalue().encode()


def _as_json(selection: Selection) -> dict[str, object]:
    return {
        "images": selection.num_images,
        "already_labelled": selection.num_labelled,
        "answered_by": selection.answered_by,
        "chosen": _records(selection),
        "failed": list(selection.problems),
    }


def _records(selection: Selection) -> list[dict[str, object]]:
    return [
        {
            "rank": rank,
            "image": one.image.name,
            "speaks_for": round(one.speaks_for, 4),
            "uncertainty": None if one.uncertainty is None else round(one.uncertainty, 4),
            "label": one.label,
            "probability": None if one.probability is None else round(one.probability, 4),
        }
        for rank, one in enumerate(selection.chosen, 1)
    ]


def _png(selection: Selection) -> bytes:
    from fusion.answers.images import decode
    from training.data.contact_sheet import contact_sheet

    def pictures() -> Iterator[Image.Image]:
        for one in selection.chosen:
            yield decode(one.image.read(), one.image.name)

    file = io.BytesIO()
    contact_sheet(pictures()).save(file, "PNG")
    return file.getvalue()
