"""`condu demo`: the whole story on the embedded default."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cluster.config import Config, DemoConfig, load_config
from cluster.demo import run_demo
from cluster.demo_service import ask_held_out_images, free_port
from cluster.output import console, table
from cluster.planning import Planning
from cluster.report.page import write_report
from cluster.report.records import RunReport, ServedAnswer
from cluster.report.tables import report_tables
from cluster.run import open_run
from cluster.session import ray_session
from cluster.showcase import publish_showcase
from fusion.errors import ConfigError

_CONFIG = Path("configs", "demo.yaml")
_CLONE = Path(__file__).resolve().parents[2]
_DEFAULT = _CLONE / _CONFIG if (_CLONE / _CONFIG).is_file() else _CONFIG
"""In a clone, wherever it is called from; where condu is installed, as in the image, in the working folder."""
_NUM_IMAGES_PER_SET = 1


def demo(
    config: Annotated[Path, typer.Option(help="Another configuration for the demo.", metavar="FILE")] = _DEFAULT,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the store and the report. Default: demo-output; with --quick, none stays."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps of two tasks: whether what is installed works, in two minutes.")
    ] = False,
) -> None:
    """Fine-tune small real tasks in parallel, fuse, compare, and serve them over HTTP. Minutes on 2 cores."""
    if not config.is_file():
        raise ConfigError(f"{config}: no such file. The demo's data is part of the repository: run it from a clone")
    settings = load_config(config)
    if quick and output is None:
        with tempfile.TemporaryDirectory(prefix="condu-demo-") as folder:
            report, _ = _demo(shortened(settings), Path(folder))
        seconds = report.seconds["total"]
        console.print(f"\ncondu trains, fuses, measures and answers here ({seconds:.0f} s). Nothing was kept")
        return
    output = output or Path("demo-output")
    report, written = _demo(shortened(settings) if quick else settings, output)
    _print_goodbye(report, output, written)


def shortened(config: Config) -> Config:
    """A few steps of the first tasks, and nothing to compare them with: what breaks is found, nothing is learned."""
    short = {
        "train": replace(config.train, steps=20, probe_steps=5),
        "tasks": config.tasks[:2],
        "unseen": config.unseen[:1],
        "demo": DemoConfig(),
    }
    return Config.model_validate({name: getattr(config, name) for name in Config.model_fields} | short)


def _demo(config: Config, output: Path) -> tuple[RunReport, Path]:
    """The whole story. Returns its report and the file with its configuration."""
    start = time.perf_counter()
    settings, written = _into_folder(config, output.resolve())
    run = open_run(settings)
    with (
        Planning(run) as planning,
        ray_session(settings.ray, store=settings.store, beside=planning.start) as ray,
    ):
        report = run_demo(run, planning.result().plan, output.resolve() / "scratch", ray)
        publish_showcase(run, report)
        for part in report_tables(report):
            console.print(part, "")
        console.rule("3. Serve it, and ask")
        with run.stage("serve"):
            answers = ask_held_out_images(run, free_port(), images_per_set=_NUM_IMAGES_PER_SET)
    seconds = {**run.seconds, "total": time.perf_counter() - start}
    report = replace(report, served=tuple(answers), seconds={name: round(value, 1) for name, value in seconds.items()})
    write_report(report, output)
    _print_answers(answers, {task.name for task in settings.unseen})
    return report, written


def _into_folder(config: Config, output: Path) -> tuple[Config, Path]:
    """The configuration with its store inside the output folder, and the file that it was written to."""
    output.mkdir(parents=True, exist_ok=True)
    settings = config.model_copy(update={"store": (output / "store").as_uri(), "cache": output / "cache"})
    written = output / "condu.yaml"
    values = settings.model_dump(mode="json", exclude_defaults=True)
    written.write_text(
        "# The demo's configuration with absolute paths, for `condu serve` and `condu add-task`.\n"
        + yaml.safe_dump(values, sort_keys=False)
    )
    return load_config(written), written


def _print_answers(answers: Sequence[ServedAnswer], never_trained: Collection[str]) -> None:
    columns = ["image", "label space", "truth", "answer", "probability", "experts consulted"]
    foreign = [a for a in answers if a.asked == "seen" and a.image.split("/")[0] in never_trained]
    own = [a for a in answers if a.asked == "labels"]
    learned = [a for a in answers if a not in foreign and a not in own]
    for title, group in {
        "An image of each task, named and not": learned,
        'An image of no task: right is "unknown", or its class in a task that has it': foreign,
        "Labels of your own, the same for every image": own,
    }.items():
        rows = [
            (
                a.image,
                a.asked,
                a.truth,
                ("" if a.right else "✗ ") + a.answer,
                f"{a.probability:.0%}",
                ", ".join(a.experts),
            )
            for a in group
        ]
        console.print(table(title, columns, rows), "", markup=False)


def _print_goodbye(report: RunReport, output: Path, written: Path) -> None:
    shown = written.relative_to(Path.cwd()) if written.is_relative_to(Path.cwd()) else written
    console.print(f"\nreport: {output / 'report.html'} and report.json (total {report.seconds['total']:.0f} s)")
    console.print("next steps:")
    console.print(f"  .venv/bin/condu serve {shown}")
    more = sorted((_CLONE / "demo" / "more").glob("*/"))
    if more:
        data = more[0].relative_to(Path.cwd()) if more[0].is_relative_to(Path.cwd()) else more[0]
        console.print(f"  .venv/bin/condu add-task {shown} {more[0].name} --data {data}")
