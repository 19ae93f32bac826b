"""Request logs in a store: names that say when they may go, gc that deletes them, and nothing else that minds them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.store import Store
from fusion.store.blobs import new_nonce
from fusion.versions.gc import collect, in_words
from fusion.versions.history import Versions
from fusion.versions.log_files import LogFile, files_since, log_file, log_key
from fusion.versions.verify import verify
from tests.fusion.vectors import publish_each

NOW = datetime.now(UTC).replace(microsecond=0)


def put(store: Store, *, days_ago: float, keep_days: int | None) -> str:
    key = log_key(LogFile(NOW - timedelta(days=days_ago), keep_days), new_nonce())
    assert store.put_if_absent(key, b"rows")
    return key


@given(st.datetimes(datetime(2000, 1, 1), datetime(2999, 1, 1)), st.none() | st.integers(1, 999_999))
def test_a_key_says_what_went_into_it(written: datetime, keep_days: int | None) -> None:
    file = LogFile(written.replace(microsecond=0, tzinfo=UTC), keep_days)
    assert log_file(log_key(file, new_nonce())) == file


@pytest.mark.parametrize(
    "key", ["log/notes.txt", "log/2026-13-01/101010-0123456789abcdef.parquet", "log/2026-12-01/1-30d-abc.parquet"]
)
def test_other_objects_are_no_files_of_a_log(key: str) -> None:
    assert log_file(key) is None


def test_gc_deletes_files_whose_days_are_over_and_publishes_nothing_for_that(any_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, any_store, ["a"])
    over = put(any_store, days_ago=31, keep_days=30)
    stay = {
        put(any_store, days_ago=29, keep_days=30),
        put(any_store, days_ago=400, keep_days=None),
        put(any_store, days_ago=31, keep_days=60),
    }
    any_store.put_if_absent("log/notes.txt", b"somebody's own")
    versions = Versions(any_store)
    assert [info.key for info in collect(versions, dry_run=True).log] == [over]
    found = collect(versions)
    assert (found.version, [info.key for info in found.log]) == (None, [over])
    assert in_words(found) == "1 log file"
    assert {info.key for info in any_store.list("log/")} == stay | {"log/notes.txt"}
    assert verify(versions).findings == ()


def test_the_files_since_a_time_are_listed_newest_first(any_store: Store) -> None:
    old, new, middle = (put(any_store, days_ago=days, keep_days=30) for days in (9, 0.001, 3))
    assert [info.key for info in files_since(any_store, NOW - timedelta(days=20))] == [new, middle, old]
    assert [info.key for info in files_since(any_store, NOW - timedelta(days=3))] == [new, middle]
    assert [info.key for info in files_since(any_store, NOW - timedelta(days=1))] == [new]
