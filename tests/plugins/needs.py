"""What a test needs, as markers, and which tests stay in one process under `pytest -n`.

Markers follow from fixtures where they can; a test that starts processes by other means says so itself. `make check`
leaves out all that have one.

Tests that share what is costly to make run one after the other in one process: those of one group. Groups that take
minutes begin first, so that no process is left alone with one at the end.
"""

from __future__ import annotations

import pytest

_NEEDS = {"ray_session": "ray", "finished": "ray", "s3_server": "s3", "small_disk": "processes"}
"""Fixture to marker."""

_GROUPS = ("finished", "ray_session")
"""Fixtures that are slow to make and made once: each defines a group. All other tests are grouped by file."""

_LONG = (*_GROUPS, "tests/e2e/")
"""How the names of groups that take minutes begin, slowest first."""


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied, and before pytest-xdist reads groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        for need in sorted(_needs(item)):
            item.add_marker(need)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: _rank(groups[item]))


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
