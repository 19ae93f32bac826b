"""Rows that wait to be written, and the thread that writes them: by number, by time, or when the service stops.

Bounded: what does not fit into `memory` is left out, and so is what the store does not take. Both are counted, and
logged once per while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from fusion.store import Store
from fusion.store.blobs import new_nonce
from fusion.versions.log_files import LogFile, log_key
from serving.metrics import Metrics, Outcome
from serving.options import LogOptions
from serving.request_log.rows import Row, to_parquet

logger = logging.getLogger(__name__)

_WARN_EVERY_S = 600.0


class LogWriter:
    """Writes the rows that it is given. Safe to share between threads; nothing that it does raises.

    Args:
        store: of the service. Every file has a name of its own under `log/`.
    """

    def __init__(self, store: Store, options: LogOptions, metrics: Metrics) -> None:
        self._store = store
        self._options = options
        self._metrics = metrics
        self._changed = threading.Condition()
        self._rows: list[Row] = []
        self._bytes = 0  # of rows that wait, and of those that are being written
        self._since = 0.0  # when the first of the rows that wait came
        self._writing = self._hurry = self._closed = False
        self._warned: float | None = None
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def add(self, rows: Sequence[Row]) -> None:
        """Take rows. Those that do not fit are left out."""
        with self._changed:
            num_lost = 0
            for row in rows:
                if self._closed or self._bytes + row.num_bytes > self._options.memory:
                    num_lost += 1
                    continue
                if not self._rows:
                    self._since = time.monotonic()
                self._rows.append(row)
                self._bytes += row.num_bytes
            self._changed.notify_all()
        if num_lost:
            self.lost(num_lost, "no_room", "more is asked than can be written: lower serve.log.sample, or raise memory")

    def lost(self, num_rows: int, why: Outcome, details: object) -> None:
        """Count rows that will not be written, and say so unless that was said a moment ago.

        Args:
            why: what they are counted as.
        """
        self._metrics.logged(why, num_rows)
        now = time.monotonic()
        if self._warned is None or now - self._warned > _WARN_EVERY_S:
            self._warned = now
            logger.warning("request log: rows lost=%d (%s): %s", num_rows, why, details)

    def flush(self, timeout_s: float) -> bool:
        """Write what waits now. False: the store took longer than that."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._rows and not self._writing, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Write what waits, then end. What takes longer than that is lost."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._changed:
                rows, self._rows = self._rows, []
            self.lost(len(rows), "failed", f"the store took longer than {timeout_s:g} s while the service was stopping")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due():
                    left = self._since + self._options.flush_s - time.monotonic() if self._rows else None
                    self._changed.wait(left)
                rows, self._rows = self._rows, []
                if not rows:
                    return
                self._hurry, self._writing = False, True
            self._write(rows)
            with self._changed:
                self._bytes -= sum(row.num_bytes for row in rows)
                self._writing = False
                self._changed.notify_all()

    def _due(self) -> bool:
        if self._closed or not self._rows:
            return self._closed
        if self._hurry or len(self._rows) >= self._options.flush_rows:
            return True
        return time.monotonic() - self._since >= self._options.flush_s

    def _write(self, rows: Sequence[Row]) -> None:
        try:
            body = to_parquet(rows)
            file = LogFile(datetime.now(UTC), self._options.keep_days)
            self._store.put_if_absent(log_key(file, new_nonce()), body)  # False: a lost reply to our own write
        except Exception as error:  # whatever it is, the service goes on
            self.lost(len(rows), "failed", error)
        else:
            self._metrics.logged("written", len(rows))
