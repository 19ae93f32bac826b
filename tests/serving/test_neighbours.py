"""Several services on one cluster: names, routes and the port are shared out, and nothing takes another one's place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve

from fusion.errors import ConfigError
from fusion.store import open_store
from fusion.store.address import StoreAddress
from serving.app import start, stop
from serving.client import Client
from serving.neighbours import Neighbour, refuse_conflicts
from serving.options import ServiceOptions
from serving.status import find_service
from tests.serving.helpers import free_port, pictures, png, publish_tasks

_HERE = "file:///here"
_CONDU = Neighbour("/", frozenset({_HERE}))


def options_for(folder: Path, **options: Any) -> ServiceOptions:
    store = open_store(str(folder))
    if not list(store.list("versions/")):
        publish_tasks(store)
    return ServiceOptions(address=StoreAddress(store.url), num_cpus=0.5, poll_s=0.2, **options)


@pytest.mark.parametrize(
    ("options", "neighbours"),
    [
        ({}, {}),
        ({}, {"condu": _CONDU}),
        ({}, {"condu": Neighbour("/", frozenset())}),
        ({"name": "flowers", "route": "/flowers"}, {"condu": Neighbour("/", frozenset({"file:///there"}))}),
        ({}, {"other": Neighbour("/other", None)}),
    ],
    ids=["alone", "an update", "one that is broken", "beside another store's", "beside something else"],
)
def test_what_takes_nobody_s_place_is_let_in(options: dict[str, str], neighbours: dict[str, Neighbour]) -> None:
    refuse_conflicts(ServiceOptions(address=StoreAddress(_HERE), **options), _HERE, neighbours)


@pytest.mark.parametrize(
    ("neighbours", "says"),
    [
        ({"condu": Neighbour("/", frozenset({"file:///there"}))}, r"serves file:///there under the name 'condu'"),
        ({"condu": Neighbour("/", None)}, r"'condu' is not a condu service"),
        ({"old": Neighbour("/old", frozenset({_HERE}))}, r"served .* already, by the service 'old' at /old"),
        ({"other": Neighbour("/", None)}, r"serve.route: / is the route of .*'other'"),
    ],
)
def test_what_would_take_another_one_s_place_is_refused_by_name(neighbours: dict[str, Neighbour], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        refuse_conflicts(ServiceOptions(address=StoreAddress(_HERE)), _HERE, neighbours)


@pytest.mark.parametrize("route", ["flowers", "/flowers/", "/-/healthz", "//", "/a b", ""])
def test_a_route_that_is_none_is_refused(route: str) -> None:
    with pytest.raises(ConfigError, match="is not a route"):
        ServiceOptions(address=StoreAddress(_HERE), route=route)


@pytest.mark.usefixtures("ray_session")
def test_two_services_answer_side_by_side_and_each_stops_alone(tmp_path: Path) -> None:
    port = free_port()
    first = options_for(tmp_path / "first", port=port)
    second = options_for(tmp_path / "second", port=port, name="flowers", route="/flowers")
    server = f"http://127.0.0.1:{port}"
    try:
        assert start(first) == [server]
        for change, says in (
            ({"name": "condu", "route": "/"}, r"already serves .*first under the name 'condu'"),
            ({"route": "/"}, r"serve\.route: / is the route of this cluster's application 'condu'"),
            ({"port": free_port()}, rf"listens on port {port} for all its services"),
        ):
            with pytest.raises(ConfigError, match=says):
                start(dataclasses.replace(second, **change))
            assert httpx.get(f"{server}/readyz", timeout=30).status_code == 200, "what is refused changes nothing"
        assert start(second) == [f"{server}/flowers"]
        with pytest.raises(ConfigError, match="by the service 'flowers' at /flowers"):
            start(dataclasses.replace(second, name="roses", route="/roses"))
        assert start(first) == [server], "the same name and store: an update"

        for options, url in ((first, server), (second, f"{server}/flowers")):
            with Client(url) as client:
                assert client.predict([png(pictures("red")[0])], task="colours").predictions[0].task == "colours"
            found = find_service(options.address.open().url, timeout_s=20)
            assert found is not None
            assert (found["name"], found["route"], found["urls"]) == (options.name, options.route, [url])
            page = httpx.get(url, timeout=30, follow_redirects=True)
            assert httpx.get(f"{str(page.url).rstrip('/')}/pages/index.js", timeout=30).status_code == 200
            assert page.url.path.endswith("/"), "what the page names is relative to it"

        stop()
        assert httpx.get(f"{server}/flowers/readyz", timeout=30).status_code == 200
        assert find_service(first.address.open().url, timeout_s=20) is None
    finally:
        stop()
        stop("flowers")
    assert serve.status().applications == {}
