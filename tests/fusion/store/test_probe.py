"""`condu doctor`'s check of a store: good ones pass, bad ones are described plainly."""

from __future__ import annotations

import time
from pathlib import Path

from fusion.store import ObjectInfo, S3Options, Store, open_store
from fusion.store.local import LocalStore
from fusion.store.probe import check_store


class IgnoresConditions(LocalStore):
    """Overwrites, like an endpoint that ignores If-None-Match."""

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        self.delete(key)
        super().put_if_absent(key, body)
        return True


class ChecksBeforeItLocks(LocalStore):
    """Honours the condition unless two writers arrive at once."""

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        if self.head(key) is not None:
            return False
        time.sleep(0.05)
        self.delete(key)
        super().put_if_absent(key, body)
        return True


class LosesTheFirstReply(LocalStore):
    """Returns False for a first put that succeeded, like S3 when the reply is lost."""

    replies_lost = 0

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        won = super().put_if_absent(key, body)
        if won and not self.replies_lost:
            self.replies_lost += 1
            return False
        return won


class Forgets(LocalStore):
    """Lists nothing and deletes nothing."""

    def list(self, prefix: str, *, start_after: str = ""):  # type: ignore[no-untyped-def]
        return iter(())

    def delete(self, key: str) -> None:
        pass


class IgnoresRanges(LocalStore):
    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytes:
        return super().get(key)

    def head(self, key: str) -> ObjectInfo | None:
        found = super().head(key)
        return ObjectInfo(found.key, found.bytes + 1, found.modified) if found else None


def test_a_good_store_passes_and_keeps_nothing(any_store: Store) -> None:
    assert check_store(any_store) == []
    assert list(any_store.list("")) == []


def test_a_store_that_overwrites_is_caught(tmp_path: Path) -> None:
    problems = check_store(IgnoresConditions(f"file://{tmp_path}"))
    assert any("ignores If-None-Match" in problem for problem in problems)
    assert any("kept the second body" in problem for problem in problems)


def test_a_store_that_overwrites_only_in_a_race_is_caught(tmp_path: Path) -> None:
    (problem,) = check_store(ChecksBeforeItLocks(f"file://{tmp_path}"))
    assert "several writers of one key succeed at once" in problem


def test_ones_own_lost_success_is_no_problem(tmp_path: Path) -> None:
    store = LosesTheFirstReply(f"file://{tmp_path}")
    assert check_store(store) == []
    assert store.replies_lost == 1


def test_a_store_that_lists_and_deletes_nothing_is_caught(tmp_path: Path) -> None:
    problems = check_store(Forgets(f"file://{tmp_path}"))
    assert any("does not list" in problem for problem in problems)
    assert any("was deleted" in problem for problem in problems)


def test_wrong_ranges_and_sizes_are_caught(tmp_path: Path) -> None:
    problems = check_store(IgnoresRanges(f"file://{tmp_path}"))
    assert any("ranges" in problem for problem in problems)
    assert any("reports" in problem for problem in problems)


def test_a_store_that_refuses_becomes_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (problem,) = check_store(open_store(f"file://{tmp_path}/file/store"))
    assert "a file where a folder is needed" in problem


def test_a_store_that_does_not_answer_becomes_a_sentence(s3_url: str) -> None:
    options = S3Options(endpoint_url="http://127.0.0.1:9", max_attempts=1, connect_timeout_s=1)
    (problem,) = check_store(open_store(s3_url, options))
    assert "check `endpoint_url`" in problem


def test_a_missing_bucket_becomes_a_sentence(s3_url: str) -> None:
    (problem,) = check_store(open_store("s3://no-such-bucket/condu"))
    assert "create the bucket" in problem
