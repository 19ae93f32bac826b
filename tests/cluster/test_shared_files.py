"""What nodes that do not share their files are told; and which nodes a lane may run on."""

from __future__ import annotations

from pathlib import Path

from cluster.cluster_checks import NodeReport, _alike, _clocks
from cluster.nodes import ClusterNode, NodeAnswer
from cluster.shared_files import data_problems, local_paths, missing_sources, read_probe
from fusion.store import open_store
from fusion.store.address import StoreAddress
from training.lanes.capacity import LaneOptions, Node, lane_nodes

ONE = ClusterNode("1", "one", "10.0.0.1", {"CPU": 4.0}, {})
TWO = ClusterNode("2", "two", "10.0.0.2", {"CPU": 4.0}, {})


def test_only_paths_on_a_node_are_looked_for() -> None:
    sources = ["/data/pets", "s3://bucket/pets/", "torchvision:DTD", "file:///data/with%20space"]
    assert local_paths(sources) == ["/data/pets", "/data/with space"]


def test_a_node_that_lacks_data_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    there, absent = tmp_path / "there", tmp_path / "absent"
    there.mkdir()
    assert missing_sources([str(there), str(absent)]) == [str(absent)]
    lines = data_problems([NodeAnswer(ONE, []), NodeAnswer(TWO, [str(absent)])])
    assert len(lines) == 1
    assert "two (10.0.0.2) lacks" in lines[0]
    assert str(absent) in lines[0]


def test_a_node_that_says_nothing_is_a_problem_too() -> None:
    (line,) = data_problems([NodeAnswer(ONE, problem="no answer within 120 s")])
    assert "one (10.0.0.1) did not say" in line


def test_a_probe_that_is_not_there_reads_as_another_store(tmp_path: Path) -> None:
    address = StoreAddress((tmp_path / "store").as_uri())
    open_store(address.url).put_if_absent("probe/x", b"nonce")
    assert read_probe(address, "probe/x") == "nonce"
    assert read_probe(StoreAddress((tmp_path / "other").as_uri()), "probe/x") is None


def test_lanes_run_where_one_worker_fits_and_the_labels_are() -> None:
    head, small, big = Node({"CPU": 0.0}, {}), Node({"CPU": 2.0}, {}), Node({"CPU": 4.0}, {"disk": "fast"})
    assert lane_nodes(LaneOptions(), [head, small, big]) == [small, big]
    assert lane_nodes(LaneOptions(num_cpus=3), [head, small, big]) == [big]
    assert lane_nodes(LaneOptions(labels={"disk": "fast"}), [head, small, big]) == [big]


def report(*, python: str = "3.11.7", clock: float = 100.0) -> NodeReport:
    return NodeReport(python, {}, clock, 1 << 40, (), None)


def test_nodes_that_differ_are_named_with_what_each_has() -> None:
    same = _alike("python", [(ONE, report()), (TWO, report())], lambda one: one.python)
    assert (same.found, same.problem) == ("3.11.7", None)
    other = _alike("python", [(ONE, report()), (TWO, report(python="3.12.1"))], lambda one: one.python)
    assert "3.11.7 on one (10.0.0.1); 3.12.1 on two (10.0.0.2)" in (other.problem or "")


def test_a_clock_is_wrong_only_by_more_than_the_question_took() -> None:
    told = [(ONE, report(clock=100.0)), (TWO, report(clock=130.0))]
    assert _clocks(told, 95.0, 140.0).problem is None
    late = [(ONE, report(clock=100.0)), (TWO, report(clock=500.0))]
    assert "two (10.0.0.2) is 360 s off" in (_clocks(late, 95.0, 140.0).problem or "")
