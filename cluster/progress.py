"""Live progress: one line per task on a terminal, one line per event elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from cluster.output import console
from training.lanes.task_queue import TaskStatus


class TaskProgress:
    """Shows the state of every task, from waiting to fused. Use it as a context manager."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._statuses: list[TaskStatus] = []
        self._versions: dict[str, int] = {}
        self._told: dict[str, str] = {}
        self._introduced: set[str] = set()
        self._live = Live(console=console, refresh_per_second=4) if enabled and console.is_terminal else None

    def __enter__(self) -> TaskProgress:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def update(self, statuses: Sequence[TaskStatus]) -> None:
        """Show these statuses in place of the earlier ones."""
        self._statuses = list(statuses)
        self._draw()

    def fused(self, task: str, version: int) -> None:
        """Show that a version holds a task."""
        self._versions[task] = version
        self._draw()

    def _draw(self) -> None:
        if not self._enabled:
            return
        for status in self._statuses:
            if status.understood and status.name not in self._introduced:
                self._introduced.add(status.name)
                console.print(f"{status.name:<16} {status.understood}", markup=False, soft_wrap=True)
        if self._live:
            self._live.update(self._table())
            return
        for status in self._statuses:
            said = self._event(status)
            if said and self._told.get(status.name) != said:
                self._told[status.name] = said
                console.print(f"{status.name:<16} {said}", markup=False)

    def _event(self, status: TaskStatus) -> str | None:
        if status.name in self._versions:
            return f"fused, version {self._versions[status.name]}"
        if status.state == "training":
            return f"training (attempt {status.attempts})" if status.attempts > 1 else "training"
        if status.state == "done":
            stopped = f", stopped after {status.step} of {status.steps} steps" if status.step < status.steps else ""
            return (f"trained in {status.seconds:.0f} s" if status.seconds else "trained before") + stopped
        return f"failed: {status.reason}" if status.state == "failed" else None

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for status in self._statuses:
            bar = ProgressBar(total=max(status.steps, 1), completed=status.step, width=30)
            loss = f"loss {status.loss:.2f}" if status.loss is not None else ""
            seconds = f"{status.seconds:.0f} s" if status.seconds else ""
            said = self._event(status) or "waiting"
            table.add_row(status.name, bar, f"{status.step}/{status.steps}", loss, seconds, escape(said))
        return table
