"""Trains a configuration's tasks with a fifth of the training images held out, and makes those the test images.

What was chosen with figures of a test set in sight is confirmed on images that had no part: the experts of this run
have not seen the held-out fifth, and no constant was chosen on it. The run, its data and its report stay in the folder;
other benchmarks take its configuration.

    python -m benchmarks.held_out_fifth configs/demo.yaml --seed 1 --folder /tmp/fifth-1     # 8 minutes on 2 cores
    python -m benchmarks.trigger_fidelity /tmp/fifth-1/condu.yaml
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from cluster.config import load_config
from training.data.task_data import Reading, TaskData, load_task_data
from training.held_out import held_out_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where data, store and report go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=json.loads, default={}, help='JSON over the recipe, such as {"steps": 90}')
    options = parser.parse_args()
    path = _write(options, options.folder.resolve())
    condu = Path(sys.executable).parent / "condu"
    subprocess.run([condu, "run", path, "--output", path.parent / "report"], check=True)


def _write(options: argparse.Namespace, folder: Path) -> Path:
    """The configuration, and the data that it names."""
    like = load_config(options.config)
    values: dict[str, Any] = yaml.safe_load(options.config.read_text())
    tasks = []
    for task, entry in zip(like.tasks, values["tasks"], strict=True):
        data = folder / "data" / task.name
        _divide(load_task_data(task.name, task.data, Reading(verify=False)), data)
        tasks.append({**entry, "data": str(data)})
    config = {
        **{section: values[section] for section in ("fusion", "predict", "ray") if section in values},
        "store": str(folder / "store"),
        "base": like.base.model_dump(),
        "tasks": tasks,
        "train": {**values.get("train", {}), **options.train},
        "seed": options.seed,
    }
    path = folder / "condu.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _divide(data: TaskData, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    out = held_out_images(torch.from_numpy(data.train.labels)).tolist()
    for split, held_out in (("train", False), ("test", True)):
        rows = [index for index, one in enumerate(out) if one == held_out]
        table = {"image": [data.train.encoded(row) for row in rows], "label": data.train.labels[rows].tolist()}
        pq.write_table(pa.table(table), folder / f"{split}.parquet")
    described = {"name": data.name, "classes": data.classes, "templates": data.templates}
    (folder / "task.json").write_text(json.dumps(described))


if __name__ == "__main__":
    main()
