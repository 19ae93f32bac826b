"""The showcase: what a run leaves for people to look at."""

from __future__ import annotations

import pytest

from fusion.errors import FormatError
from fusion.store import Store
from fusion.versions.showcase import Sample, Showcase, Shown, read_showcase, show_in


def _shown(accuracy: float, *samples: Sample) -> Shown:
    return Shown("0" * 64, 40, 25.0, accuracy, samples)


def test_what_is_shown_comes_back(any_store: Store) -> None:
    assert read_showcase(any_store) is None
    wanted = Showcase(3, {"pets": _shown(92.5, Sample("cat", "image/png", b"\x89PNG"))})
    assert show_in(any_store, wanted) == wanted
    assert read_showcase(any_store) == wanted


def test_a_later_run_keeps_the_other_tasks_and_leaves_one_object(any_store: Store) -> None:
    show_in(any_store, Showcase(3, {"pets": _shown(90.0), "birds": _shown(80.0)}))
    show_in(any_store, Showcase(4, {"birds": _shown(85.0)}))
    show_in(any_store, Showcase(4, {"cars": _shown(70.0)}))
    found = read_showcase(any_store)
    assert found == Showcase(4, {"pets": _shown(90.0), "birds": _shown(85.0), "cars": _shown(70.0)})
    assert len(list(any_store.list("showcase/"))) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"format": "condu-showcase/9", "version": 1, "tasks": {}}',
        b'{"format": "condu-showcase/1", "version": 1, "tasks": {"pets": {"images": 3}}}',
        b"[]",
    ],
    ids=["newer", "incomplete", "a list"],
)
def test_what_is_no_showcase_is_named(local_store: Store, body: bytes) -> None:
    local_store.put_if_absent("showcase/00000001-a.json", body)
    with pytest.raises(FormatError, match="showcase/00000001-a"):
        read_showcase(local_store)
    show_in(local_store, Showcase(1, {"pets": _shown(90.0)}))
    assert read_showcase(local_store) == Showcase(1, {"pets": _shown(90.0)})
