"""Damaged images and bodies: an answer or a refusal, never a fault of the service."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from fusion.store import Store, open_store
from tests.serving.helpers import TASKS, error_of, form_of, pictures, publish_tasks
from tests.serving.mutations import mutants
from tests.serving.plain import PlainService


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store, evidence=True)
    return store


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_body_is_answered_or_refused_with_a_reason(store: Store, seed: int, tmp_path: Path) -> None:
    statuses: Counter[int] = Counter()

    async def story() -> None:
        async with PlainService(store) as client:
            for number, (path, headers, body) in enumerate(mutants(random.Random(seed), 150, tuple(TASKS))):
                answer = await client.post(path, content=body, headers=headers)
                (tmp_path / "body").write_bytes(body)  # kept where it fails
                assert answer.status_code < 500, (number, path, headers, answer.text)
                if answer.status_code != 200:
                    assert error_of(answer)
                statuses[answer.status_code] += 1
            assert (await client.post("/v1/predict", files=form_of(pictures("red")))).status_code == 200

    asyncio.run(story())
    assert statuses[200] > 20
    assert statuses[422] > 20
