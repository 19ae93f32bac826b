"""`condu drift`: whether what a service is asked still looks like what its tasks were trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.options import JsonOption, WhereArgument, address_of, duration
from cluster.output import console, errors, print_json, table
from fusion.disk import replace_file, writing
from fusion.errors import ConduError, ConfigError

if TYPE_CHECKING:
    from cluster.drift import DriftReport
    from fusion.answers.drift import TaskDrift

_DRIFTED = 1
_BINS = 10


def drift(
    where: WhereArgument,
    since: Annotated[
        str, typer.Option(help="How far back: 7d, 12h, 30m, or a day or time in UTC such as 2026-12-01.")
    ] = "7d",
    version: Annotated[int | None, typer.Option(min=1, help="Compare with this version. Default: the newest.")] = None,
    alpha: Annotated[
        float, typer.Option(min=1e-9, max=0.5, help="How often some task may be called drifted by chance.")
    ] = 0.01,
    min_shift: Annotated[float, typer.Option(min=0, max=1, help="Least shift that counts, however sure it is.")] = 0.1,
    picture: Annotated[Path | None, typer.Option(help="Write a picture, PNG.", metavar="FILE")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what was asked, from the service's request log, with what each task was trained on.

    Exit code 0: images look as they did in training. 1: those of some task do not. 2: that can't be told.
    """
    from cluster.drift import compare_with_training
    from fusion.answers.drift import Thresholds

    with _errors_are_2():
        thresholds = Thresholds(alpha, min_shift)
        report = compare_with_training(address_of(where), since=_time(since), version=version, thresholds=thresholds)
        if picture is not None:
            from cluster.report.drift_picture import picture as drawn

            with writing(picture):
                replace_file(picture, drawn(report.drift))
    for warning in report.warnings:
        errors.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if as_json:
        print_json(_as_json(report))
    else:
        _tell(report)
    if report.drift.drifted:
        raise typer.Exit(_DRIFTED)


@contextmanager
def _errors_are_2() -> Iterator[None]:
    """Here 1 means drift, so every error has to be something else."""
    try:
        yield
    except ConfigError:
        raise
    except ConduError as error:
        raise ConfigError(str(error)) from error


def _time(since: str) -> datetime:
    try:
        found = datetime.fromisoformat(since)
    except ValueError:
        return datetime.now(UTC) - duration(since, "--since")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _tell(report: DriftReport) -> None:
    found = report.drift
    columns = ["task", "images", "share %", "named", "below 0.05 %", "shift", "p", ""]
    rows = [_row(one, found.num_images) for one in sorted(found.tasks, key=lambda one: -one.num_images)]
    rows += [(name, None, None, None, None, None, None, "no evidence") for name in report.without_evidence]
    if found.num_of_no_task:
        share = 100 * found.num_of_no_task / found.num_images
        rows.append(("(of no task)", found.num_of_no_task, share, None, None, None, None, ""))
    title = f"{found.num_images} images since {report.oldest:%Y-%m-%d %H:%M}, against version {report.version}"
    console.print(table(title, columns, rows))
    console.print(f"familiar to no task: {100 * found.no_known_task:.1f} % of all; 5 % at most, if all were as trained")
    names = [one.task for one in found.tasks if one.drifted]
    if names:
        console.print(f"[bold]drift[/]: the images of {', '.join(names)} are unlike what was trained")
    else:
        console.print("no drift")


def _row(one: TaskDrift, num_images: int) -> tuple[Any, ...]:
    share = 100 * one.num_images / num_images
    if not one.num_images:
        return one.task, 0, share, 0, None, None, None, ""
    verdict = "too few" if one.p_value is None else "drift" if one.drifted else "as trained"
    p_value = None if one.p_value is None else f"{one.p_value:.2g}"
    return one.task, one.num_images, share, one.num_named, 100 * one.unfamiliar, f"{one.shift:.2f}", p_value, verdict


def _as_json(report: DriftReport) -> dict[str, Any]:
    import numpy as np

    found = report.drift
    return {
        "store": report.store,
        "version": report.version,
        "oldest": report.oldest.isoformat(),
        "images": found.num_images,
        "of_no_task": found.num_of_no_task,
        "familiar_to_no_task": found.no_known_task,
        "drifted": found.drifted,
        "tasks": {
            one.task: {
                "images": one.num_images,
                "named": one.num_named,
                "below_0.05": one.unfamiliar,
                "shift": one.shift,
                "p_value": one.p_value,
                "drifted": one.drifted,
                "familiarity": np.histogram(one.familiarity, bins=_BINS, range=(0, 1))[0].tolist(),
            }
            for one in found.tasks
        },
        "without_evidence": list(report.without_evidence),
        "warnings": list(report.warnings),
    }
