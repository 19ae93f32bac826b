"""A run's report as JSON: programs read it, so its keys, their order and its values stay."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.output import json_text
from cluster.report.fidelity import write_fidelity
from cluster.report.figures import build_report
from cluster.report.page import write_report
from cluster.report.records import RunReport, ServedAnswer
from fusion.fidelity import measure_fidelity
from tests.cluster.report.runs import TASKS, finished_run, measured_sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def report(folder: Path) -> RunReport:
    return build_report(finished_run(folder), measured_sets(), forgetting=[[8, 3], [4, 19]])


@pytest.fixture(scope="module")
def values(report: RunReport) -> dict[str, Any]:
    """The JSON, read back."""
    found: dict[str, Any] = json.loads(json_text(report.to_json()))
    return found


KEYS = """
    version mode base tasks loss_to_experts kept metrics matrices unseen unseen_gain answers routing_accuracy
    bytes_per_task shared_bytes checkpoint_bytes fidelity removed failed seconds
"""
TASK_KEYS = """
    name classes n_test zero_shot zero_shot_interval frozen expert expert_interval fused fused_interval kept answered
    answered_interval held_out early_stop
"""
ANSWERS_KEYS = """
    rule known unknown seen over_experts over_discriminant forwards one_request calibration abstention
"""
UNSEEN_KEYS = "name classes n_test zero_shot zero_shot_interval aggregated aggregated_interval"
FIDELITY_KEYS = "version mode tasks shared_bytes seconds peak_bytes extra_bytes written_bytes rounding"
TASK_FIDELITY_KEYS = "task session bits_set bits_lost cosine relative_error trigger_bytes archive_bytes trigger"


def test_a_training_that_stopped_early_says_where_and_how_good_it_was(values: dict[str, Any]) -> None:
    pets, food = values["tasks"]
    assert pets["early_stop"] is None
    assert food["early_stop"] == {"steps": 250, "best_step": 150, "images": 16, "accuracy": 75.0}


def test_the_keys_stand_in_this_order(values: dict[str, Any]) -> None:
    assert list(values) == KEYS.split()
    assert list(values["base"]) == ["architecture", "sha256"]
    assert [list(task) for task in values["tasks"]] == [TASK_KEYS.split()] * 2
    assert [list(task) for task in values["unseen"]] == [UNSEEN_KEYS.split()]
    assert list(values["metrics"]) == ["condu", "zero_shot", "condu_unknown", "condu_union", "continual_finetuning"]
    assert list(values["matrices"]) == ["known", "unknown", "union", "continual_finetuning"]
    assert all(list(metrics) == ["transfer", "avg", "last"] for metrics in values["metrics"].values())
    assert list(values["answers"]) == ANSWERS_KEYS.split()
    assert list(values["answers"]["calibration"]) == ["task", "labels", "seen"]
    assert list(values["fidelity"]) == list(TASKS)
    assert all(list(one) == ["cosine", "relative_error", "bits_lost"] for one in values["fidelity"].values())


def test_the_values_are_those_that_were_measured(values: dict[str, Any]) -> None:
    pets, food = values["tasks"]
    assert (pets["name"], pets["classes"], pets["n_test"]) == ("pets", 2, 10)
    assert (pets["zero_shot"], pets["expert"], pets["fused"]) == (50.0, 90.0, {"another": 60.0, "signed": 70.0})
    assert food["fused_interval"]["signed"] == pytest.approx([53.1299, 88.8138], abs=1e-3)
    assert values["loss_to_experts"]["another"] == pytest.approx({"mean": 25, "low": 8.3115, "high": 41.6885}, abs=1e-3)
    assert values["loss_to_experts"]["signed"] == pytest.approx(
        {"mean": 12.5, "low": -0.7841, "high": 25.7841}, abs=1e-3
    )
    assert pets["kept"] == {
        "another": {"agreement": 75.0, "divergence": 0.2},
        "signed": {"agreement": 90.0, "divergence": 0.02},
    }
    assert values["kept"]["signed"] == {"agreement": 90.0, "divergence": 0.02}
    assert values["metrics"]["condu"] == {"transfer": 20.0, "avg": 61.25, "last": 72.5}
    assert values["metrics"]["condu_union"] == {"transfer": None, "avg": 75.0, "last": 72.5}
    assert values["metrics"]["continual_finetuning"] == {"transfer": 15.0, "avg": 57.5, "last": 67.5}
    assert values["matrices"]["union"] == [[80.0, None], [70.0, 75.0]], "NaN is null"
    assert values["matrices"]["continual_finetuning"] == [[80.0, 15.0], [40.0, 95.0]]
    assert (values["unseen"][0]["zero_shot"], values["unseen"][0]["aggregated"]) == (50.0, 62.5)
    assert values["unseen_gain"] == pytest.approx({"mean": 12.5, "low": -10.4172, "high": 35.4172}, abs=1e-3)
    assert values["routing_accuracy"] == pytest.approx(100 * 28 / 30)
    assert (values["version"], values["removed"]) == (2, [])
    assert values["failed"] == [{"name": "bad", "reason": "there is no <image>"}]
    assert values["seconds"] == {"train": 12.3, "evaluate": 2.0}


def test_what_was_measured_of_the_answers(values: dict[str, Any]) -> None:
    found = values["answers"]
    assert (found["rule"], found["known"], found["forwards"]["seen"]) == ("matched", 72.5, 1.0)
    assert found["over_experts"]["mean"] == pytest.approx(-12.5)
    assert found["over_discriminant"]["mean"] == pytest.approx(22.5)
    assert found["calibration"]["task"]["ece"] == pytest.approx(100 * abs(22 / 30 - 0.7))
    assert found["calibration"]["task"]["ece_before"] == pytest.approx(100 * abs(22 / 30 - 0.9))
    assert found["one_request"]["everything"] == {
        "labels": 6,
        "learned": 72.5,
        "learned_base": 72.5,
        "unseen": 50.0,
        "unseen_base": 50.0,
    }
    assert found["abstention"]["false_alarm"] == 0.05
    assert found["abstention"]["refused_learned"] == pytest.approx((10 + 5) / 2)
    assert found["abstention"]["refused_unseen"] == pytest.approx(62.5)
    assert found["abstention"]["auroc_base"] == 50.0, "all ties"
    assert [task["held_out"]["needed"] for task in values["tasks"]] == [False, False]
    assert values["tasks"][1]["held_out"]["gain"] == pytest.approx({"mean": 10, "low": 0, "high": 20})


def test_answers_over_http_come_last_and_only_where_the_service_was_asked(report: RunReport) -> None:
    answer = ServedAnswer("pets/test/1", "seen", "cat", "cat (pets)", True, 0.75, ("pets", "food"))
    served = replace(report, served=(answer,)).to_json()
    assert list(served) == [*KEYS.split(), "served"]
    assert served["served"] == [
        {
            "image": "pets/test/1",
            "asked": "seen",
            "truth": "cat",
            "answer": "cat (pets)",
            "right": True,
            "probability": 0.75,
            "experts": ["pets", "food"],
        }
    ]


def test_the_folder_holds_the_same_json_and_nothing_else_stays(
    report: RunReport, values: dict[str, Any], tmp_path: Path
) -> None:
    for _ in range(2):  # the second one replaces the first one's files
        write_report(report, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "accuracy.png",
        "calibration.png",
        "report.html",
        "report.json",
    ]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == values


def test_the_fidelity_report_keeps_its_keys(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    path = tmp_path / "fidelity.json"
    pictures = write_fidelity([measure_fidelity(run.cache, run.newest())], path)
    (found,) = json.loads(path.read_text())
    assert list(found) == FIDELITY_KEYS.split()
    assert [list(task) for task in found["tasks"]] == [TASK_FIDELITY_KEYS.split()] * 2
    assert [task["cosine"] for task in found["tasks"]] == [None, None], "no archive, no expert at hand"
    assert [picture.name for picture in pictures] == ["fidelity-v2.png"]
