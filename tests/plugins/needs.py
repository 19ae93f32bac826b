"""What a test needs, as markers, and which tests stay in one process under `pytest -n`.

Markers follow from fixtures where they can; a test that starts processes by other means is marked by hand. `make check`
skips every test with such a marker.

Tests that share something costly form a group and run one after another in one process. Groups that take minutes start
first, so that none is left to a single process at the end. A group's name is the end of a test's id, after `@`:
pytest-xdist 3.8 reads it there (`--dist loadgroup`), but where it writes it, pytest 9.2 does not look.
"""

from __future__ import annotations

import pytest

_NEEDS = {"ray_session": "ray", "finished": "ray", "s3_server": "s3", "small_disk": "processes"}
"""Fixture to marker."""

_GROUPS = ("finished", "ray_session")
"""Fixtures that are slow to make and made once: each defines a group. All other tests are grouped by file."""

_LONG = (*_GROUPS, "tests/e2e/")
"""How the names of groups that take minutes begin, slowest first."""


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    groups = {item: _group(item) for item in items}
    items.sort(key=lambda item: _rank(groups[item]))
    for item, group in groups.items():
        for need in sorted(_needs(item)):
            item.add_marker(need)
        if getattr(config.option, "loadgroup", False):
            item._id = item._id.parse(f"{item.nodeid}@{group}")  # type: ignore[attr-defined]


def _needs(item: pytest.Item) -> set[str]:
    found = {need for fixture, need in _NEEDS.items() if fixture in _fixtures(item)}
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return found | ({"s3"} if parameters.get("store_url") == "s3" else set())


def _group(item: pytest.Item) -> str:
    return next((name for name in _GROUPS if name in _fixtures(item)), item.nodeid.partition("::")[0])


def _rank(group: str) -> int:
    return next((rank for rank, start in enumerate(_LONG) if group.startswith(start)), len(_LONG))


def _fixtures(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []
