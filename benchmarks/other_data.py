"""Claim: what the default rule gets on the demo holds on data sets that had no part in its making.

Takes any folder of data sets (one folder each, in any layout that `condu run` reads). Fine-tunes an expert for each
with the demo's base and recipe, beside the demo's never-trained sets. Then leaves two of them out at a time, as tasks
that were never trained: the same experts are fused without them into a store of its own, and their test sets are
measured with the others. Everything goes through `condu run`. The last line is JSON.

    python -m benchmarks.other_data FOLDER     # six small sets: a quarter of an hour on 2 cores
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.config import load_config

_ROWS = {
    "base": lambda tasks, _: _mean(task["zero_shot"] for task in tasks),
    "linear probe": lambda tasks, _: _mean(task["frozen"]["linear-probe"] for task in tasks),
    "discriminant of frozen features": lambda tasks, _: _mean(task["frozen"]["discriminant"] for task in tasks),
    "expert, by its texts alone": lambda tasks, _: _mean(task["expert"] for task in tasks),
    "answered, task named": lambda _, answers: f"{answers['known']:.1f}",
    "- against the expert": lambda _, answers: _estimate(answers["over_experts"]),
    "- against the discriminant": lambda _, answers: _estimate(answers["over_discriminant"]),
    "labels given, task unknown": lambda _, answers: f"{answers['unknown']:.1f}",
    "nothing given: task and class": lambda _, answers: f"{answers['seen']:.1f}",
    "calibration error: task / labels / seen": lambda _, answers: " / ".join(
        f"{answers['calibration'][way]['ece']:.1f}" for way in ("task", "labels", "seen")
    ),
    "refused at a nominal 5 %: learned": lambda _, answers: f"{answers['abstention']['refused_learned']:.1f}",
    "refused: never trained": lambda _, answers: f"{answers['abstention']['refused_unseen']:.1f}",
    "AUROC of familiarity (of the base)": lambda _, answers: (
        f"{answers['abstention']['auroc']:.1f} ({answers['abstention']['auroc_base']:.1f})"
    ),
    "experts per image": lambda _, answers: f"{answers['forwards']['labels']:.2f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="one folder per data set")
    parser.add_argument("--like", type=Path, default=Path("configs/demo.yaml"), help="base, recipe, never-trained sets")
    parser.add_argument("--left-out", type=int, default=2, help="how many sets to leave out at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder of stores and reports, kept; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="condu-other-data-") as temporary:
        reports = _run_all(options, (options.work or Path(temporary)).resolve())
    for left_out, report in reports.items():
        _show(f"without {left_out}" if left_out else "all sets learned", report)
    print(json.dumps({left_out or "none": report for left_out, report in reports.items()}))


def _run_all(options: argparse.Namespace, work: Path) -> dict[str, dict[str, Any]]:
    """Reports by the names that were left out; the first leaves out none and trains all experts."""
    names = sorted(path.name for path in options.folder.resolve().iterdir() if path.is_dir())
    groups = [names[start : start + options.left_out] for start in range(0, len(names), options.left_out)]
    reports = {}
    for group in [[], *groups]:
        folder = work / ("-".join(group) or "all")
        folder.mkdir(parents=True, exist_ok=True)
        if group and not (folder / "store").exists():  # the experts, but none of the versions
            shutil.copytree(work / "all" / "store", folder / "store", ignore=shutil.ignore_patterns("versions"))
        config = _config(options, names, group, folder)
        (folder / "condu.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        print(f"condu run {folder / 'condu.yaml'}", flush=True)
        condu = Path(sys.executable).parent / "condu"
        command = [condu, "run", folder / "condu.yaml", "--output", folder / "report"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        reports[" and ".join(group)] = json.loads((folder / "report" / "report.json").read_text())
    return reports


def _config(options: argparse.Namespace, names: Sequence[str], left_out: Sequence[str], folder: Path) -> dict[str, Any]:
    like = load_config(options.like)
    values: dict[str, Any] = yaml.safe_load(options.like.read_text())
    data = {name: str(options.folder.resolve() / name) for name in names}
    return {
        "store": str(folder / "store"),
        "base": like.base.model_dump(),
        "tasks": [{"name": name, "data": data[name]} for name in names if name not in left_out],
        "unseen": [{"name": one.name, "data": one.data} for one in like.unseen]
        + [{"name": name, "data": data[name]} for name in left_out],
        "seed": options.seed,
        **{section: values[section] for section in ("train", "fusion", "predict", "ray") if section in values},
    }


def _show(title: str, report: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, figure in _ROWS.items():
        print(f"  {name:42s}{figure(report['tasks'], report['answers'])}")
    print(f"  {'routing, top-1':42s}{report['routing_accuracy']:.1f}")
    print(f"  {'never trained, against the base':42s}{_estimate(report['unseen_gain'])}")
    for task in report["tasks"]:
        figures = [task["zero_shot"], task["frozen"]["discriminant"], task["expert"], task["answered"]]
        print(f"    {task['name']:20s}base, discriminant, expert, answered: " + " / ".join(f"{x:.1f}" for x in figures))
    for one in report["unseen"]:
        refused = report["answers"]["abstention"]["refused_unseen_by_set"][one["name"]]
        print(
            f"    {one['name']:20s}never trained: base {one['zero_shot']:.1f}, answered {one['aggregated']:.1f}, "
            f"refused {refused:.1f}"
        )


def _mean(values: Any) -> str:
    found = list(values)
    return f"{sum(found) / len(found):.1f}"


def _estimate(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:+.1f} ({estimate['low']:+.1f} to {estimate['high']:+.1f})"


if __name__ == "__main__":
    main()
