"""Measuring on a cluster: a set that no node could measure is named, with what each node lacks."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.measure import MeasureError, MeasureJob, measure_all
from fusion.answers.options import PredictOptions
from fusion.store import Store
from fusion.store.address import StoreAddress
from tests.tiny import tiny_base
from training.lanes.task_queue import TaskJob

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.parametrize("trained", [True, False])
def test_data_that_no_node_has_is_named_with_the_node(trained: bool, local_store: Store, tmp_path: Path) -> None:
    import ray

    job = MeasureJob(
        address=StoreAddress(local_store.url, cache_folder=tmp_path / "cache"),
        base=tiny_base(local_store),
        sessions=(1,),
        task=TaskJob("birds", str(tmp_path / "gone")),
        expert=None,
        kinds=("unknown",),
        predict=PredictOptions(),
        trained=trained,
    )
    with pytest.raises(MeasureError) as caught:
        measure_all(ray, [job])
    said = str(caught.value)
    assert said.startswith("everything is published, but no node could measure\n")
    assert f"birds: on {socket.gethostname()}: data folder {tmp_path / 'gone'} does not exist" in said
