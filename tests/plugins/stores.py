"""Stores for tests: a local folder, and a fresh prefix on the real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion.store import Store, open_store


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store, once of each kind."""
    if request.param == "local":
        return f"file://{tmp_path}/store"
    url: str = request.getfixturevalue("s3_url")
    return url


@pytest.fixture
def any_store(store_url: str) -> Store:
    return open_store(store_url)
