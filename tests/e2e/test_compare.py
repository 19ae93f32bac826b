"""`condu compare`: methods side by side on trained experts, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fusion.versions.history import Versions
from tests.e2e.project import Project
from tests.e2e.test_mistakes import refused

CHOSEN = "average,adamerging,low-rank,bitdelta,joint,lowrank,signed-2"


@pytest.fixture(scope="module")
def compared(finished: Project) -> dict[str, Any]:
    """The report of one comparison, which left the store as it was."""
    before = sorted(info.key for info in finished.store.list(""))
    options = ("--methods", CHOSEN, "--rank", "4", "--images", "8", "--steps", "3", "--output", "compared", "--json")
    done = finished.condu("compare", "condu.yaml", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(info.key for info in finished.store.list("")) == before, "nothing is trained or published"
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def methods(compared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {method["method"]: method for method in compared["methods"]}


def test_chosen_methods_and_both_references_are_measured_with_intervals(methods: dict[str, dict[str, Any]]) -> None:
    assert next(iter(methods)) == "zero-shot"
    assert set(methods) == {"zero-shot", "checkpoints", *CHOSEN.split(",")}
    assert methods["checkpoints"]["loss"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert methods["low-rank"]["title"] == "low rank 4, fp16"
    for method in methods.values():
        accuracies = [one["accuracy"] for one in method["tasks"].values()]
        assert list(method["tasks"]) == ["colours", "shapes"]
        assert method["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert method["accuracy"]["low"] <= method["accuracy"]["mean"] <= method["accuracy"]["high"]
        assert all(one["interval"][0] <= one["accuracy"] <= one["interval"][1] for one in method["tasks"].values())


def test_figures_are_those_of_the_run_itself(methods: dict[str, dict[str, Any]], finished: Project) -> None:
    """What compare measures of the base, the experts and the store's own mode is what `condu run` reported."""
    ran = json.loads((finished.folder / "out" / "report.json").read_text())
    for task in ran["tasks"]:
        assert methods["zero-shot"]["tasks"][task["name"]]["accuracy"] == task["zero_shot"]
        assert methods["checkpoints"]["tasks"][task["name"]]["accuracy"] == task["expert"]
        assert methods["lowrank"]["tasks"][task["name"]]["accuracy"] == task["fused"]["lowrank"]
    (unseen,) = ran["unseen"]
    assert methods["zero-shot"]["unseen"]["sets"]["red-or-circle"]["accuracy"] == unseen["zero_shot"]
    assert methods["lowrank"]["unseen"]["sets"]["red-or-circle"]["accuracy"] == unseen["aggregated"]
    assert methods["lowrank"]["shared_bytes"] == ran["shared_bytes"]


def test_never_trained_sets_are_answered_by_methods_with_a_rule_for_them(methods: dict[str, dict[str, Any]]) -> None:
    for name in ("zero-shot", "average", "adamerging", "joint", "lowrank", "signed-2"):
        assert methods[name]["unseen"]["sets"]["red-or-circle"]["n_test"] == 10
    for name in ("checkpoints", "low-rank", "bitdelta"):
        assert methods[name]["unseen"] is None
        assert "no rule for images of no known task" in methods[name]["note"]
    assert "without their labels" in methods["adamerging"]["note"]


def test_bytes_are_told_for_a_task_and_for_all(methods: dict[str, dict[str, Any]]) -> None:
    for method in methods.values():
        all_bytes = 2 * method["bytes_per_task"] + method["shared_bytes"]
        assert 2 * method["total_bytes_per_task"] == pytest.approx(all_bytes, abs=4)
    assert methods["average"]["bytes_per_task"] == 0
    assert methods["average"]["shared_bytes"] == methods["checkpoints"]["bytes_per_task"]
    assert methods["checkpoints"]["bytes_per_task"] > 31 * methods["bitdelta"]["bytes_per_task"]


def test_the_folder_holds_the_same_figures_and_a_picture(compared: dict[str, Any], finished: Project) -> None:
    folder = finished.folder / "compared"
    assert json.loads((folder / "compare.json").read_text()) == compared
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_expert_is_named_and_not_measured(finished: Project) -> None:
    path = next((finished.folder / "store" / "experts").glob("*/expert-*.safetensors"))
    sound = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    try:
        done = finished.condu("compare", "condu.yaml", "--methods", "average")
    finally:
        path.write_bytes(sound)
    message = " ".join(done.stderr.split())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "is damaged" in message
    assert path.parent.name in message.replace(" ", "")
    assert "Traceback" not in message


def test_compare_refuses_what_it_does_not_know_or_what_has_no_effect(project: Project) -> None:
    command = ("compare", "condu.yaml")
    refused(project, *command, "--methods", "tis", code=2, says="'tis' is unknown: did you mean ties?")
    refused(project, *command, "--methods", "x", code=2, says="'x' is unknown: choose zero-shot")
    refused(project, *command, "--methods", "ties", "--rank", "4", code=2, says="add it to --methods")
    project.write_config(tasks=[])
    refused(project, *command, code=2, says="there is nothing to compare")


def test_compare_names_the_tasks_that_were_never_trained(finished: Project, project: Project) -> None:
    says = (
        "no trained expert for colours, shapes (with the data, recipe and seed that condu.yaml gives): compare trains "
    )
    says += "nothing, so run `condu run condu.yaml` first"
    refused(project, "compare", "condu.yaml", code=1, says=says)
    assert Versions(project.store).newest() is None
    other = {"name": "shapes", "data": finished.tasks["shapes"], "steps": 21}
    finished.write_config(tasks=[{"name": "colours", "data": finished.tasks["colours"]}, other])
    try:
        refused(finished, "compare", "condu.yaml", code=1, says="no trained expert for shapes (with the data")
    finally:
        finished.write_config()
