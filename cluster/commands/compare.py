"""`condu compare`: condu's modes and other methods on the same experts, side by side."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.base_source import resolve_base
from cluster.commands.options import JsonOption
from cluster.commands.run import ConfigArgument
from cluster.compare import REFERENCES, CompareJob, CompareOptions, all_methods, compare_all, default_methods
from cluster.config import load_config
from cluster.output import console, json_text, print_json
from cluster.report.comparison import build_comparison, comparison_table
from cluster.report.comparison_picture import picture
from cluster.report.records import ComparisonReport
from cluster.run import Run, jobs
from cluster.session import ray_session
from fusion.disk import replace_file
from fusion.errors import ConduError, ConfigError, own_cause
from fusion.versions.experts import ExpertRecord, find_expert
from training.data.task_data import Reading
from training.identity import identity_of
from training.lanes.task_queue import TaskJob

_DEFAULTS = CompareOptions()


def compare(
    config: ConfigArgument,
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated, from {', '.join(all_methods())}. Default: all up to {default_methods()[-1]}.",
            metavar="A,B,…",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help=f"For low-rank: the rank. Default: {_DEFAULTS.rank}.")] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"For adamerging: training images per task, without labels. Default: {_DEFAULTS.num_images}."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help=f"For adamerging: training steps. Default: {_DEFAULTS.num_steps}.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for compare.json and compare.png.", metavar="FOLDER")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Store the trained experts of a configuration in every way we know, and measure each. Trains no expert."""
    settings = load_config(config)
    chosen = _chosen(methods)
    _refuse_idle_options({"low-rank": {"--rank": rank}, "adamerging": {"--images": images, "--steps": steps}}, chosen)
    if not settings.tasks:
        raise ConfigError("tasks: is empty: there is nothing to compare")
    store = settings.address.open()
    run = Run(settings, store, resolve_base(settings.base, store))
    given = {"rank": rank, "num_images": images, "num_steps": steps, "seed": settings.seed}
    options = replace(_DEFAULTS, **{name: value for name, value in given.items() if value is not None})
    work = _jobs(run, chosen, options, config)
    with ray_session(settings.ray, store=settings.store) as ray:
        compared = _collect(ray, work, show=not as_json)
    report = build_comparison(run, compared, settings=asdict(options))
    if as_json:
        print_json(report.to_json())
    else:
        console.print(comparison_table(report))
    if output is not None:
        _write(report, output)
        if not as_json:
            console.print(f"{output / 'compare.json'} and compare.png")


def _refuse_idle_options(options: Mapping[str, Mapping[str, int | None]], chosen: Sequence[str]) -> None:
    """Raises `ConfigError` for an option of a method that is not compared."""
    for method, given in options.items():
        for option, value in given.items():
            if value is not None and method not in chosen:
                raise ConfigError(f"{option} {value} has no effect without method {method}: add it to --methods")


def _jobs(run: Run, methods: Sequence[str], options: CompareOptions, config: Path) -> list[CompareJob]:
    pairs = [
        (task, record) for task, record in zip(jobs(run.config), _trained(run, config), strict=True) if record.expert
    ]
    if not pairs:
        raise ConduError("no task has an expert (all were published with method head): there is nothing to compare")
    return [
        CompareJob(
            method=method,
            address=run.config.address,
            base=run.base,
            tasks=tuple(task for task, _ in pairs),
            records=tuple(record for _, record in pairs),
            unseen=tuple(TaskJob(task.name, task.data) for task in run.config.unseen),
            options=options,
            predict=run.config.predict,
        )
        for method in methods
    ]


def _chosen(methods: str | None) -> list[str]:
    """The methods to run, references first: every figure is compared with those. Raises `ConfigError`."""
    if methods is None:
        return default_methods()
    names, known = [name.strip() for name in methods.split(",")], all_methods()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(known)}"
            raise ConfigError(f"--methods: {name!r} is unknown: {hint}")
    return [name for name in known if name in names or name in REFERENCES]


def _trained(run: Run, config: Path) -> tuple[ExpertRecord, ...]:
    """The record of every configured task's expert. Raises `ConduError` naming the tasks that have none."""
    work, reading = jobs(run.config), Reading(run.config.address, verify=False)
    found = [find_expert(run.store, identity_of(run.base, job.load(reading), job.recipe, job.seed)) for job in work]
    if missing := [job.name for job, record in zip(work, found, strict=True) if record is None]:
        raise ConduError(
            f"{run.store.url} has no trained expert for {', '.join(missing)} (with the data, recipe and seed that "
            f"{config} gives): compare trains nothing, so run `condu run {config}` first"
        )
    return tuple(record for record in found if record is not None)


def _collect(ray: Any, work: list[CompareJob], *, show: bool) -> list[Any]:
    """Wait for all jobs, printing each that is done. Raises a job's own error unchanged."""
    running = compare_all(ray, work)
    names = {reference: job.method for reference, job in zip(running, work, strict=True)}
    waiting = running
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1)
        try:
            ray.get(ready)  # fails now, not when all others are done
        except ray.exceptions.RayTaskError as error:
            if own := own_cause(error):
                raise own from None
            raise
        if show:
            console.print(f"measured {names[ready[0]]}")
    return list(ray.get(running))


def _write(report: ComparisonReport, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "compare.json", json_text(report.to_json()).encode())
    replace_file(folder / "compare.png", picture(report))
