"""`condu run` and `condu add-task`: fine-tune, fuse, measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cluster.commands.options import JsonOption
from cluster.config import Config, TaskConfig, load_config
from cluster.output import console, errors, print_json
from cluster.planning import Planning
from cluster.report.figures import build_report
from cluster.report.page import write_report
from cluster.report.records import RunReport
from cluster.report.tables import report_tables
from cluster.run import Run, measure_run, open_run, train_and_fuse
from cluster.session import ray_session
from cluster.showcase import publish_showcase
from fusion.errors import ConduError, TaskNameError
from fusion.versions.manifest import check_task_name
from training.data.sources import absolute_source

ConfigArgument = Annotated[Path, typer.Argument(help="YAML configuration.", metavar="CONFIG")]
ReplaceOption = Annotated[bool, typer.Option("--replace", help="Allow a new expert under a task name that is taken.")]
_SOME_TASKS_FAILED = 3
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Read and decode all data again, also what earlier runs have found sound.")
]
_READD = "Fuse tasks again that `condu versions remove-task` removed from the store."


def run(
    config: ConfigArgument,
    replace: ReplaceOption = False,
    readd: Annotated[bool, typer.Option("--readd", help=_READD)] = False,
    verify: VerifyOption = False,
    evaluate: Annotated[bool, typer.Option(help="Measure all tasks after fusing.")] = True,
    output: Annotated[
        Path | None, typer.Option(help="Folder for report.json, report.html and the heat map.", metavar="FOLDER")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune all tasks in parallel, fuse in order, evaluate, report. Safe to run again: finished work is kept."""
    _run(
        load_config(config),
        replace=replace,
        readd=readd,
        verify=verify,
        evaluate=evaluate,
        output=output,
        as_json=as_json,
    )


def add_task(
    config: ConfigArgument,
    name: Annotated[str, typer.Argument(help="The new task's name.")],
    data: Annotated[str, typer.Option("--data", help="Folder, s3://…, or torchvision:NAME.", metavar="PATH")],
    replace: ReplaceOption = False,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train, fuse and publish one more task. The old tasks' data is not needed; running services pick it up."""
    settings = load_config(config)
    check_new_name(settings, name, config)
    one = settings.model_copy(update={"tasks": (TaskConfig(name=name, data=absolute_source(data)),), "unseen": ()})
    _run(one, replace=replace, readd=True, verify=verify, evaluate=True, output=None, as_json=as_json)


def check_new_name(settings: Config, name: str, config: Path) -> None:
    """Refuse a name that is ill-formed, or that the configuration has. Raises `TaskNameError`."""
    check_task_name(name)
    if any(task.name == name for task in settings.tasks):
        raise TaskNameError(f"{config} already has a task {name!r}: `condu run {config}` trains it")


def tell_report(run: Run, report: RunReport | None, *, as_json: bool) -> None:
    """What was published, and the figures if there are any."""
    if as_json:
        newest = {"version": max(run.versions.values()), "tasks": run.versions, "removed": list(run.removed)}
        print_json(report.to_json() if report else newest)
        return
    for table in report_tables(report) if report else []:
        console.print(table, "")
    console.print(f"version [bold]{max(run.versions.values())}[/] in {run.config.store}")


def _run(
    config: Config,
    *,
    replace: bool,
    readd: bool,
    verify: bool,
    evaluate: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    report: RunReport | None = None
    this = open_run(config, readd=readd)
    for name in this.removed:
        errors.print(f"skipped {name}: it was removed from {config.store}; --readd brings it back", markup=False)
    with (
        Planning(this, unseen=evaluate, verify=verify) as planning,
        ray_session(config.ray, store=config.store, beside=planning.start) as ray,
    ):
        planned = planning.result()
        for name, understood in planned.unseen.items() if not as_json else ():
            console.print(f"{name:<16} {understood}", markup=False, soft_wrap=True)
        train_and_fuse(this, ray, planned.plan, replace=replace, readd=readd, show=not as_json)
        failed = [status for status in this.statuses if status.state == "failed"]
        if not this.versions:
            reasons = "\n".join(f"  {status.name}: {status.reason}" for status in failed)
            raise ConduError(f"no task could be trained:\n{reasons}")
        if evaluate:
            with this.stage("evaluate"):
                measured = measure_run(this, ray)
            report = build_report(this, measured)
            publish_showcase(this, report)
    tell_report(this, report, as_json=as_json)
    if output is not None and report is not None:
        write_report(report, output)
        if not as_json:
            console.print(f"report: {output / 'report.html'}")
    if failed:
        for status in failed:
            errors.print(f"[bold red]failed[/] {escape(f'{status.name}: {status.reason}')}")
        errors.print("Run the same command again to retry the failed tasks.")
        raise typer.Exit(_SOME_TASKS_FAILED)
