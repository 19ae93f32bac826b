"""A thousand tasks and a thousand versions: how many requests each command makes."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from cluster.commands.versions import edits as edit_commands
from cluster.commands.versions import listing
from fusion.fuse import fuse_experts
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.versions import edits
from fusion.versions.gc import Policy, collect
from fusion.versions.history import Versions
from tests.counting import CountingStore
from tests.fusion.many import many_tasks, many_versions
from tests.fusion.vectors import SIGNED, random_base, random_expert

COUNT = 1000


@pytest.fixture
def counted(store_url: str, monkeypatch: pytest.MonkeyPatch) -> CountingStore:
    """The store that the commands get."""
    counting = CountingStore(open_store(store_url))
    for module in (listing, edit_commands):
        monkeypatch.setattr(module, "open_store", lambda url: counting)
    return counting


def condu(*arguments: str) -> Any:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(sys, "argv", ["condu", "versions", *arguments, "--store", "x", "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code, out.getvalue()
    return json.loads(out.getvalue())


def test_a_thousand_tasks_cost_one_request_each_where_records_are_read_and_none_elsewhere(
    counted: CountingStore, tmp_path: Path
) -> None:
    many_tasks(counted, tmp_path, COUNT)
    counted.taken()

    assert [row["num_tasks"] for row in condu("list")] == [1, COUNT]
    assert counted.taken() == {"list": 1, "get": 2 + COUNT}

    shown = condu("show")
    assert len(shown["tasks"]) == COUNT
    assert shown["added_bytes"] < shown["total_bytes"]
    assert counted.taken() == {"list": 1, "get": 2 + COUNT}, "two manifests, every record once"

    plan = collect(Versions(counted), Policy(keep=1, keep_days=0), dry_run=True)
    assert (plan.versions, plan.blobs) == ((1,), ())
    calls = counted.taken()
    assert calls.keys() == {"list", "get"}, "nothing is written"
    assert calls["get"] <= 3 + COUNT

    base, path = random_base(tmp_path, counted)
    counted.taken()
    expert = random_expert(tmp_path, path, "one-more", seed=8)
    fuse_experts(NodeCache(counted, tmp_path / "cache"), base, [expert], mode=SIGNED)
    calls = counted.taken()
    assert calls["get"] + calls.get("stream", 0) < 10, "no other task's record or trigger is read"
    assert calls["put_if_absent"] == 3, "trigger, record, manifest"
    assert calls["head"] <= COUNT + 10

    assert condu("rollback", "1")["tasks"] == ["t0000"]
    calls = counted.taken()
    assert calls["get"] < 10
    assert calls["put_if_absent"] == 1

    watching = Versions(counted)
    watching.newest_number()
    counted.taken()
    assert watching.newest_number() == 4
    assert counted.taken() == {"head": 1}


def test_a_thousand_versions_are_listed_with_one_request_each_and_collected_without_reading_old_ones(
    counted: CountingStore, tmp_path: Path
) -> None:
    many_versions(counted, tmp_path, COUNT)
    counted.taken()
    rows = condu("list")
    assert [row["version"] for row in rows] == list(range(1, COUNT + 1))
    assert len({row["bytes"] for row in rows}) == 1
    assert counted.taken() == {"list": 1, "get": COUNT + 1}, "one record, which all share"

    condu("show", "500")
    assert counted.taken()["get"] < 10

    found = collect(Versions(counted), Policy(keep=20, keep_days=0))
    assert found.versions == tuple(range(1, COUNT - 19))
    calls = counted.taken()
    assert calls["get"] < 60
    assert calls["delete"] == COUNT - 20

    assert not edits.rollback(Versions(counted), COUNT).changed
    assert counted.taken()["get"] < 5
