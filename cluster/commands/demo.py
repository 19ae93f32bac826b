"""`condu demo`: the whole story on the embedded default."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from cluster.config import Config, load_config
from cluster.demo import run_demo
from cluster.demo_service import ask_held_out_images, free_port
from cluster.output import console, table
from cluster.report.page import write_report
from cluster.report.tables import report_tables
from cluster.run import open_run
from cluster.session import ray_session
from fusion.errors import ConfigError

_ROOT = Path(__file__).resolve().parents[2]
_NUM_IMAGES_PER_SET = 1


def demo(
    config: Annotated[Path, typer.Option(help="Another configuration of the demo.", metavar="FILE")] = _ROOT
    / "configs"
    / "demo.yaml",
    output: Annotated[Path, typer.Option(help="Folder for the store and the report.", metavar="FOLDER")] = Path(
        "demo-output"
    ),
) -> None:
    """Fine-tune small real tasks in parallel, fuse, compare, and serve them over HTTP. Minutes on 2 cores."""
    start = time.perf_counter()
    if not config.is_file():
        raise ConfigError(f"{config}: no such file. The demo's data is part of the repository: run it from a clone")
    settings, written = _into_folder(load_config(config), output.resolve())
    run = open_run(settings)
    with ray_session(settings.ray, store=settings.store) as ray:
        report = run_demo(run, output.resolve() / "scratch", ray)
        for part in report_tables(report):
            console.print(part, "")
        console.rule("3. Serve it, and ask")
        with run.stage("serve"):
            answers = ask_held_out_images(run, free_port(), images_per_set=_NUM_IMAGES_PER_SET)
    report["served"] = answers
    report["seconds"] = {
        **{k: round(v, 1) for k, v in run.seconds.items()},
        "total": round(time.perf_counter() - start, 1),
    }
    write_report(report, output)
    _print_answers(answers)
    _print_goodbye(report, output, written)


def _into_folder(config: Config, output: Path) -> tuple[Config, Path]:
    """The configuration with its store inside the output folder, and the file that says so, to go on with."""
    output.mkdir(parents=True, exist_ok=True)
    settings = config.model_copy(update={"store": (output / "store").as_uri(), "cache": output / "cache"})
    written = output / "condu.yaml"
    values = settings.model_dump(mode="json", exclude_defaults=True)
    written.write_text(
        "# The demo's configuration with absolute paths: what `condu serve` and `condu add-task` take.\n"
        + yaml.safe_dump(values, sort_keys=False)
    )
    return load_config(written), written


def _print_answers(answers: list[dict[str, Any]]) -> None:
    rows = [
        (a["image"], a["asked"], a["truth"], ("" if a["right"] else "✗ ") + a["answer"], ", ".join(a["experts"]))
        for a in answers
    ]
    columns = ["image", "label space", "truth", "answer", "experts consulted"]
    console.print(table("Held-out images, answered over HTTP", columns, rows))


def _print_goodbye(report: dict[str, Any], output: Path, written: Path) -> None:
    shown = written.relative_to(Path.cwd()) if written.is_relative_to(Path.cwd()) else written
    console.print(f"\nreport: {output / 'report.html'} and report.json  (total {report['seconds']['total']:.0f} s)")
    console.print("go on with:")
    console.print(f"  .venv/bin/condu serve {shown}")
    more = sorted((_ROOT / "demo" / "more").glob("*/"))
    if more:
        data = more[0].relative_to(Path.cwd()) if more[0].is_relative_to(Path.cwd()) else more[0]
        console.print(f"  .venv/bin/condu add-task {shown} {more[0].name} --data {data}")
