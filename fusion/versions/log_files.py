"""Names of the files of request logs in a store: when each was written, and how long it is kept.

A service writes `log/<day>/<time>-<days>d-<nonce>.parquet` (`serving.request_log`), and gc deletes those whose days are
over. The name says so, because gc reads no configuration. No version depends on them: they may vanish at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fusion.store import ObjectInfo, Store

_FOLDER = "log/"
_KEY = re.compile(r"log/(\d{4}-\d\d-\d\d/\d{6})(?:-(\d{1,6})d)?-[0-9a-f]{16}\.parquet")
_TIME = "%Y-%m-%d/%H%M%S"


@dataclass(frozen=True)
class LogFile:
    """What a name says. `written`: when, in UTC, to the second; `keep_days`: how long it stays, None: for ever."""

    written: datetime
    keep_days: int | None

    def is_over(self, now: datetime) -> bool:
        """Whether its days are over."""
        return self.keep_days is not None and now - self.written > timedelta(days=self.keep_days)


def log_key(file: LogFile, nonce: str) -> str:
    """The key of a new file. `nonce`: 16 hex digits, of this file alone."""
    kept = f"-{file.keep_days}d" if file.keep_days is not None else ""
    return f"{_FOLDER}{file.written.astimezone(UTC):{_TIME}}{kept}-{nonce}.parquet"


def log_file(key: str) -> LogFile | None:
    """What a key says; None for one that is no request log's."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    try:
        written = datetime.strptime(found[1], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return LogFile(written, int(found[2]) if found[2] else None)


def files_over(store: Store, now: datetime) -> Iterator[ObjectInfo]:
    """The files whose days are over."""
    for info in store.list(_FOLDER):
        if (file := log_file(info.key)) is not None and file.is_over(now):
            yield info


def files_since(store: Store, since: datetime) -> list[ObjectInfo]:
    """The files that were written since then, newest first."""
    found = []
    for info in store.list(_FOLDER, start_after=f"{_FOLDER}{since.astimezone(UTC):%Y-%m-%d}"):
        if (file := log_file(info.key)) is not None and file.written >= since:
            found.append((file.written, info))
    return [info for _, info in sorted(found, key=lambda one: one[0], reverse=True)]
