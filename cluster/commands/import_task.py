"""`condu import-task`: a task from an expert that was trained elsewhere and its images, without training."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.fuse import JsonOption, check_plausible, open_given
from cluster.commands.options import names_of
from cluster.commands.run import ConfigArgument, ReplaceOption, check_new_name, tell_report
from cluster.config import TaskConfig, load_config
from cluster.measure import measure
from cluster.output import console, errors
from cluster.report.figures import build_report
from cluster.run import Run, config_hash, jobs, measure_jobs, open_run
from cluster.showcase import publish_showcase
from fusion.errors import TaskNameError
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.task_vectors import check_expert_finite
from fusion.tensors import TensorFile, sha256_file
from fusion.versions.history import Versions
from training.data.raw_task import CUT_NOTE
from training.data.sources import absolute_source
from training.data.task_data import Reading, TaskData, with_checked_texts
from training.imported import import_expert
from training.lanes.task_queue import TaskStatus

_SEEN = "If the expert was trained on them as well, its figures are too good"


def import_task(
    config: ConfigArgument,
    name: Annotated[str, typer.Argument(help="The new task's name.")],
    expert: Annotated[
        Path, typer.Option("--expert", help="As in `condu fuse`: a file, an index, or a folder.", metavar="FILE")
    ],
    data: Annotated[str, typer.Option("--data", help="Folder, s3://…, or torchvision:NAME.", metavar="PATH")],
    classes: Annotated[
        str | None, typer.Option("--classes", help="Names of the classes, as in a configuration.", metavar="A,B,C")
    ] = None,
    replace: ReplaceOption = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse an expert that is equal to the base or looks unrelated to it.")
    ] = False,
    evaluate: Annotated[bool, typer.Option(help="Measure the task if it has test images.")] = True,
    device: Annotated[str, typer.Option(help="Where images are encoded: cpu, cuda, cuda:1 …")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Publish a task from an expert that was trained elsewhere, and its images. Trains nothing and needs no cluster."""
    settings = load_config(config)
    check_new_name(settings, name, config)
    task = TaskConfig(name=name, data=absolute_source(data), classes=names_of(classes, "--classes"))
    one = settings.model_copy(update={"tasks": (task,), "unseen": ()})
    (job,) = jobs(one)
    images = job.load(Reading(one.address))
    run = open_run(one, readd=True)
    if run.base.model_cfg is not None:
        images = with_checked_texts(images, run.base.model_cfg)
    if evaluate and CUT_NOTE in images.notes:
        errors.print(f"warning: {name}: {CUT_NOTE}. {_SEEN}", markup=False, soft_wrap=True)
    if not as_json:
        console.print(f"{name:<16} {images.summary()}", markup=False, soft_wrap=True)
    _publish(run, ExpertToFuse(name, expert), images, replace=replace, strict=strict, device=device)
    report = None
    if evaluate and len(images.test):
        with run.stage("evaluate"):
            measured = [measure(one) for one in measure_jobs(run)]
        report = build_report(run, measured)
        publish_showcase(run, report)
    tell_report(run, report, as_json=as_json)


def _publish(run: Run, given: ExpertToFuse, data: TaskData, *, replace: bool, strict: bool, device: str) -> None:
    """Check everything, then keep the expert with its evidence, then fuse it. Nothing is stored of one that is bad."""
    store, fusion, name = run.store, run.config.fusion, given.task
    base = run.cache.tensors(run.base.weights)
    with ExitStack() as opened:
        expert = open_given(opened, given, base, store)
        assert isinstance(expert.weights, Path), "an opened expert is a file"
        _check_not_taken(run, name, sha256_file(expert.weights), replace=replace)
        check_plausible(base, [expert], strict=strict)
        check_expert_finite(base, TensorFile(expert.weights, label=expert.label))
        with run.stage("encode"):
            record = import_expert(store, run.cache, run.base, data, expert.weights, device=device)
    with run.stage("fuse"):
        result = fuse_experts(
            run.cache,
            run.base,
            [dataclasses.replace(ExpertToFuse.from_record(record), task=name, aliases=data.aliases)],
            mode=fusion.settings(),
            archive=fusion.archive_experts,
            archive_dtype=fusion.archive_dtype,
            replace=replace,
            created={"config": config_hash(run.config)},
            device=fusion.device,
        )
    run.statuses = [TaskStatus(name, record.identity, state="done")]
    run.versions = {name: result.manifest.version}


def _check_not_taken(run: Run, name: str, sha256: str, *, replace: bool) -> None:
    """Refuse a name before images are encoded. Raises `TaskNameError`."""
    parent = Versions(run.store).newest()
    entry = parent.state.tasks.get(name) if parent else None
    if parent and entry and entry.expert_sha256 != sha256 and not replace:
        raise TaskNameError(
            f"task name {name!r} is taken in version {parent.version} of {run.store.url} by another expert: choose "
            "another name, or replace the old one with --replace"
        )
