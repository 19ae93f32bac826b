"""`condu versions`: every subcommand through the real command, and every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusion.store import open_store
from fusion.versions.history import manifest_key
from tests.e2e.project import Project
from tests.e2e.test_mistakes import refused
from tests.fusion.faults import flip_a_bit
from tests.golden import Golden


class FusedStore:
    """A store with one version per task, made by `condu fuse`, and the command that works on it."""

    def __init__(self, folder: Path) -> None:
        golden = Golden("iterative_t6")
        base, experts = golden.write(folder)
        self.project = Project(folder / "project")
        self.url = (folder / "store").as_uri()
        self.store = open_store(self.url)
        self.tasks = golden.tasks
        self.base = base
        self.experts = dict(zip(golden.tasks, experts, strict=True))
        named = [f"--expert={task}={path}" for task, path in self.experts.items()]
        done = self.project.condu_here(
            "fuse", "--store", self.url, "--base", base, *named, "--mode", "iterative", "--each"
        )
        assert done.returncode == 0, done.stderr

    def says(self, *arguments: str, code: int = 0) -> str:
        done = self.project.condu_here("versions", *arguments, "--store", self.url)
        assert done.returncode == code, done.stdout + done.stderr
        return " ".join(done.stdout.split())

    def json(self, *arguments: str, code: int = 0) -> Any:
        done = self.project.condu_here("versions", *arguments, "--store", self.url, "--json")
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)


def test_a_store_is_rolled_back_pruned_verified_and_goes_on(tmp_path: Path) -> None:
    fused = FusedStore(tmp_path)
    first = fused.tasks[0]
    listed = fused.json("list")
    assert [(row["version"], row["kind"], row["num_tasks"]) for row in listed] == [(n, "fuse", n) for n in range(1, 7)]
    assert listed[5]["bytes"] > listed[0]["bytes"] > 0

    assert "version 7 has the state of version 3" in fused.says("rollback", "3")
    assert fused.json("rollback", "3")["changed"] is False
    assert fused.json("rollback", "6")["tasks"] == list(fused.tasks)

    told = fused.says("remove-task", first)
    assert f"version 9 is without {first}" in told
    assert "the unified vector keeps the magnitudes and signs" in told
    assert "condu fuse --from-archive" in told
    assert f"already without {first}: nothing to do" in fused.says("remove-task", first)

    assert fused.json("pin", "2")["pinned"] == [2]
    plan = fused.json("gc", "--dry-run", "--keep", "1", "--keep-days", "0")
    assert plan["versions"] == [1, *range(3, 10)]
    assert len(fused.json("list")) == 10, "a dry run publishes nothing"
    assert "deleted versions 1, 3-9," in fused.says("gc", "--keep", "1", "--keep-days", "0")
    assert fused.json("gc", "--keep", "1", "--keep-days", "0")["version"] is None
    assert [row["version"] for row in fused.json("list")] == [2, 10, 11]

    shown = fused.json("show")
    assert (shown["removed"], shown["pinned"], shown["oldest_kept"], shown["last_gc"]) == ([first], [2], 10, 11)
    assert [parent["version"] for parent in shown["lineage"]] == [10]
    assert shown["added_bytes"] == 0, "a collection writes no blob"
    text = fused.says("show", "10")
    for part in ("kind pin", "parents 9 (gone)", "packages condu", f"removed {first}", "pinned 2"):
        assert part in text, text

    assert "nothing is missing or damaged" in fused.says("verify")
    assert fused.json("unpin", "2")["pinned"] == []
    key = json.loads(fused.store.get(manifest_key(10)))["state"]["shared"]["last_flip"]["key"]
    flip_a_bit(fused.store, key)
    (finding,) = fused.json("verify", code=1)["findings"]
    assert (finding["key"], finding["versions"]) == (key, [10, 11, 12])
    bad = fused.project.condu_here("versions", "verify", "--store", fused.url)
    assert bad.returncode == 1
    assert f"versions 10-12: {fused.url}/{key} is damaged" in bad.stdout


def test_what_can_not_be_done_is_refused_with_what_can(tmp_path: Path) -> None:
    fused = FusedStore(tmp_path)
    store = ("--store", fused.url)

    def no(*arguments: str, code: int = 1, says: str) -> None:
        refused(fused.project, "versions", *arguments, *store, code=code, says=says)

    no("rollback", "9", says="has no version 9: the newest is 6")
    no("rollback", "x", code=2, says="should be a valid integer")
    no("pin", "0", says="has no version 0")
    no("unpin", "7", says="has no version 7")
    no("remove-task", "nobody", says="version 6 has no task 'nobody'")
    no("gc", "--keep", "0", code=2, says="--keep 0: it must be 1 or more, because the newest version is always kept")
    no("gc", "--keep-days", "-1", code=2, says="--keep-days -1: it must be 0 or more")
    no("show", "8", says="has no version 8")
    assert fused.project.condu_here("versions", "gc", "--keep", "2", "--keep-days", "0", *store).returncode == 0
    no("rollback", "1", says="version 1 of")
    no("rollback", "1", says="is gone; kept: 5-7")
    no("pin", "2", says="is gone; kept: 5-7")
    for command in ("verify", "gc"):
        refused(fused.project, "versions", command, "--store", tmp_path / "none", code=1, says="nothing was published")
    refused(fused.project, "versions", "rollback", "1", "--store", "ftp://x/y", code=2, says="does not name a store")
    flip_a_bit(fused.store, manifest_key(6))
    no("gc", "--keep", "3", says="00000006.json is damaged")
    rows = {row["version"]: row for row in fused.json("list")}
    assert "damaged" in rows[6]["problem"]
    assert rows[7]["problem"] is None
    flip_a_bit(fused.store, manifest_key(7))
    for arguments in (("rollback", "5"), ("remove-task", fused.tasks[0]), ("pin", "5"), ("gc",), ("show",)):
        no(*arguments, says="00000007.json is damaged")


def test_a_run_leaves_a_removed_task_out_until_it_is_asked_for_again(finished: Project) -> None:
    newest = json.loads(finished.condu_here("versions", "show", "--store", finished.store_url, "--json").stdout)[
        "version"
    ]
    try:
        removed = finished.condu_here("versions", "remove-task", "shapes", "--store", finished.store_url)
        assert removed.returncode == 0, removed.stderr
        done = finished.condu("run", "condu.yaml", "--no-evaluate", "--json")
        assert done.returncode == 0, done.stderr
        assert "skipped shapes: it was removed" in " ".join(done.stderr.split())
        assert json.loads(done.stdout)["removed"] == ["shapes"]
        assert list(json.loads(done.stdout)["tasks"]) == ["colours"]
        # what gc takes of `experts/` costs no training, and a report does without
        collected = finished.condu_here("versions", "gc", "--experts", "--store", finished.store_url, "--json")
        gone = [item["key"] for item in json.loads(collected.stdout)["experts"]]
        assert gone, collected.stdout
        again = finished.condu("run", "condu.yaml", "--readd", "--json")
        assert again.returncode == 0, again.stderr
        report = json.loads(again.stdout)
        assert {task["name"]: task["expert"] is None for task in report["tasks"]} == {"colours": True, "shapes": False}
        assert all(task["fused"]["lowrank"] > 90 for task in report["tasks"] if task["name"] == "colours")
    finally:
        back = finished.condu_here("versions", "rollback", str(newest), "--store", finished.store_url)
        assert back.returncode == 0, back.stderr


@pytest.mark.parametrize("command", ["rollback", "remove-task", "pin", "unpin", "verify", "gc", "list", "show"])
def test_every_subcommand_explains_itself(command: str, bare: Project) -> None:
    refused(bare, "versions", command, "--help", code=0, says="")
