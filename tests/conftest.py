"""Shared fixtures: stores, the real S3 server, a small disk, one Ray session. No test asserts a time."""

import pytest
from hypothesis import settings

pytest_plugins = [
    "tests.plugins.disk",
    "tests.plugins.needs",
    "tests.plugins.ray_session",
    "tests.plugins.s3",
    "tests.plugins.stores",
]

settings.register_profile("condu", deadline=None)  # a busy machine is not a failure
settings.load_profile("condu")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Test models are tiny: on busy cores, waiting for a second thread takes ten times as long as its work."""
    import torch

    torch.set_num_threads(1)
