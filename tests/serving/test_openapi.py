"""The OpenAPI document against the service that it describes: asked as it allows, and as it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from fusion.store import open_store
from fusion.store.address import StoreAddress
from serving import embed_schemas, schemas
from serving.app import start, stop
from serving.options import ServiceOptions
from tests.serving.helpers import free_port, pictures, png, publish_tasks
from tests.serving.listening import listening
from tests.serving.plain import PlainService

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]

LABELS = [
    "POST /v1/predict",
    "POST /v1/embed",
    "GET /v1/tasks",
    "GET /v1/versions",
    "GET /v1/showcase",
    "GET /v1/showcase/{task}/{index}",
    "POST /v1/versions/rollback",
    "DELETE /v1/tasks/{name}",
    "GET /healthz",
    "GET /readyz",
]
EXAMPLES = 25
IMAGES = [png(image) for image in pictures("red", "circle")]
schemathesis.openapi.format("binary", st.sampled_from([*IMAGES, IMAGES[0][:40], b""]))
schemathesis.openapi.media_type("image/*", st.sampled_from(IMAGES))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store, evidence=True)
    with listening(PlainService(store, max_queued_requests=256)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.fixture(scope="module")
def served_api(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The same by Ray Serve, through its proxy."""
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store, evidence=True)
    options = ServiceOptions(address=StoreAddress(store.url), port=free_port(), num_cpus=0.5)
    start(options)
    try:
        yield schemathesis.openapi.from_url(f"http://{options.host}:{options.port}/openapi.json")
    finally:
        stop()


@pytest.mark.parametrize("label", LABELS)
def test_every_answer_is_one_that_the_document_names(api: Any, label: str) -> None:
    ask_one_operation(api, label, EXAMPLES)


@pytest.mark.soak
@pytest.mark.parametrize("label", LABELS)
def test_every_answer_of_ray_serve_is_one_that_the_document_names(served_api: Any, label: str) -> None:
    ask_one_operation(served_api, label, 8 * EXAMPLES)


def ask_one_operation(api: Any, label: str, examples: int) -> None:
    """Hypothesis asks one operation, with what the document allows and with what it does not."""
    (operation,) = (found.ok() for found in api.get_all_operations() if found.ok().label == label)
    cases = st.one_of(
        operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
        operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
    )

    @given(cases)
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()


def test_every_operation_is_asked(api: Any) -> None:
    assert sorted(found.ok().label for found in api.get_all_operations()) == sorted(LABELS)


def test_every_operation_has_an_example_that_is_true(api: Any) -> None:
    """What is sent as in the document is understood, and the answers are of the kind that the document describes."""
    for operation in (found.ok() for found in api.get_all_operations()):
        raw = operation.definition.raw
        for place in raw.get("parameters", []):
            if place.get("required"):
                assert "example" in place, (operation.label, place["name"])
        sent = raw.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        if operation.method.upper() == "POST":
            answer = httpx.post(f"{api.get_base_url()}{operation.path}", json=sent)
            assert answer.status_code in (200, 404), (operation.label, answer.text)  # there is no version 5
        said = raw["responses"]["200"]["content"]
        if "application/json" in said:
            kind = said["application/json"]["schema"].get("$ref", "").rpartition("/")[2]
            model = getattr(schemas, kind, None) or getattr(embed_schemas, kind, None)
            assert said["application/json"]["example"], operation.label
            if operation.label != "GET /healthz":
                assert model is not None, kind
                model.model_validate(said["application/json"]["example"], strict=True)
