"""The comparison's figures, checked by hand, its table and its picture."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.compare import Compared
from cluster.config import BaseConfig, Config, UnseenConfig
from cluster.output import json_text
from cluster.report.comparison import build_comparison, comparison_table
from cluster.report.comparison_picture import picture
from cluster.report.records import ComparisonReport
from cluster.run import Run
from fusion.store import open_store
from fusion.store.blobs import BlobRef
from fusion.versions.bases import Base


def right(*counts: int) -> np.ndarray:
    """Answers from the number of right and of wrong ones."""
    return np.repeat([True, False], counts)


def compared(method: str, kind: Any, pets: np.ndarray, food: np.ndarray, **changes: Any) -> Compared:
    sizes = {"pets": 100, "food": 300}
    values: dict[str, Any] = {"task_bytes": sizes, "shared_bytes": 0, "seconds": 1.0, "unseen": None, **changes}
    return Compared(method, f"the {method}", kind, {"pets": pets, "food": food}, **values)


@pytest.fixture
def report(tmp_path: Path) -> ComparisonReport:
    config = Config(
        store=(tmp_path / "store").as_uri(),
        base=BaseConfig(architecture="ViT-B-16", weights="openai"),
        unseen=(UnseenConfig(name="birds", data="birds"),),
    )
    run = Run(config, open_store(config.store), Base(BlobRef("bases/x", "a" * 64, 4000), "tiny"))
    found = [
        compared("checkpoints", "per task", right(9, 1), right(15, 5)),
        compared("bitdelta", "per task", right(7, 3), right(15, 5)),
        compared("emr", "per task", right(8, 2), right(15, 5), shared_bytes=4000),
        compared("signed-2", "condu", right(9, 1), right(16, 4), unseen={"birds": right(1, 3)}),
        compared("zero-shot", "base", right(2, 8), right(5, 15), task_bytes={"pets": 0, "food": 0}),
        compared("ties", "one model", right(5, 5), right(10, 10), task_bytes={"pets": 0, "food": 0}, shared_bytes=4000),
    ]
    return build_comparison(run, found, settings={"rank": 16})


def test_figures_are_means_over_tasks_and_bytes_count_what_is_shared_once(report: ComparisonReport) -> None:
    methods = {method["method"]: method for method in report.to_json()["methods"]}
    assert methods["bitdelta"]["accuracy"]["mean"] == pytest.approx((70 + 75) / 2)
    assert methods["bitdelta"]["loss"]["mean"] == pytest.approx((20 + 0) / 2)
    assert methods["signed-2"]["loss"]["mean"] == pytest.approx((0 - 5) / 2)
    assert methods["signed-2"]["unseen"]["sets"]["birds"]["accuracy"] == 25
    assert (methods["emr"]["bytes_per_task"], methods["emr"]["total_bytes_per_task"]) == (200, 2200)
    assert methods["ties"]["total_bytes_per_task"] == 2000


def test_methods_are_sorted_by_what_they_keep_then_by_accuracy(report: ComparisonReport) -> None:
    order = [method.method for method in report.methods]
    assert order == ["zero-shot", "ties", "emr", "bitdelta", "checkpoints", "signed-2"]


def test_the_table_has_a_row_per_method_and_a_dash_where_there_is_no_answer(report: ComparisonReport) -> None:
    columns = {str(column.header): list(column.cells) for column in comparison_table(report).columns}
    row = columns["method"].index("the emr")
    cells = [columns[name][row] for name in ("accuracy", "points lost", "unseen", "per task", "shared", "all / tasks")]
    assert cells == ["77.5", "+5.0", "–", "200 B", "4.0 kB", "2.2 kB"]


def test_the_picture_is_drawn_from_any_choice_of_methods(report: ComparisonReport) -> None:
    few = tuple(method for method in report.methods if method.method in ("zero-shot", "checkpoints"))
    for methods in (report.methods, few):
        image = Image.open(io.BytesIO(picture(replace(report, methods=methods))))
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors(1 << 16) or []) > 10, "something is drawn"


def test_the_json_has_these_keys_in_this_order(report: ComparisonReport) -> None:
    """Programs read `compare.json` and `--json`."""
    found = json.loads(json_text(report.to_json()))
    assert list(found) == ["store", "base", "tasks", "unseen", "settings", "methods"]
    assert found["base"] == {"architecture": "tiny", "sha256": "a" * 64, "bytes": 4000}
    assert (found["tasks"], found["unseen"], found["settings"]) == (["pets", "food"], ["birds"], {"rank": 16})
    keys = "method title kind accuracy loss tasks unseen bytes_per_task shared_bytes total_bytes_per_task seconds note"
    for method in found["methods"]:
        assert list(method) == keys.split()
        assert [list(method[name]) for name in ("accuracy", "loss")] == [["mean", "low", "high"]] * 2
        assert all(list(one) == ["accuracy", "interval", "n_test"] for one in method["tasks"].values())
        assert [len(one["interval"]) for one in method["tasks"].values()] == [2, 2]
    methods = {method["method"]: method for method in found["methods"]}
    assert methods["ties"]["unseen"] is None
    assert list(methods["signed-2"]["unseen"]) == ["mean", "low", "high", "sets"]
    assert list(methods["signed-2"]["unseen"]["sets"]["birds"]) == ["accuracy", "interval", "n_test"]
    assert (methods["emr"]["seconds"], methods["emr"]["note"]) == (1.0, None)
