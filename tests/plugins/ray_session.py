"""One small Ray session for all tests that need one: starting it takes 4-8 s."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
AS_NICE_AS_OTHERS = {"RAY_worker_niceness": "0"}
"""Ray's default is 15: beside one busy test without Ray, workers got a thirtieth of a core, and lanes never started."""


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local Ray with 4 logical CPUs, whatever the machine has. Its token file, if any, stays out of the real home."""
    import ray

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_SERVE_LOG_TO_STDERR", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, value in AS_NICE_AS_OTHERS.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        ray.init(
            address="local",  # never a Ray that already runs on this machine
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=200 << 20,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        try:
            yield
        finally:
            ray.shutdown()
