"""What the soak found, a row a scenario: kept in `soak-results/`, as JSON and as the tables of docs/deploying.md.

A scenario that is run again replaces its row, so the suite may be run in pieces; every row has its own date and commit.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.soak.machines import SOURCE

COLUMNS = {
    "training": {"scenario": "scenario", "died": "what died", "seconds": "start to end, s", "same": "same sha256"},
    "serving": {
        "scenario": "scenario",
        "asked": "requests",
        "failed": "failed without a retry",
        "lost": "failed with the client's retries",
        "slowest_first": "slowest success, s",
        "slowest": "slowest with retries, s",
        "how": "how they failed",
    },
    "scale": {"scenario": "run", "seconds": "start to end, s"},
    "image": {"scenario": "step", "seconds": "s", "how": "what it said"},
}


class Results:
    """The rows of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._json, self._tables = folder / "machines.json", folder / "machines.md"
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, dict[str, Any]] = json.loads(self._json.read_text()) if self._json.exists() else {}

    def begin(self, table: str, scenario: str) -> None:
        """Forget an earlier run of the scenario: one that fails leaves no row."""
        if self.rows.pop(f"{table}: {scenario}", None):
            self._write()

    def add(self, table: str, scenario: str, **found: Any) -> None:
        """Keep a row. `found` has the table's columns, and what else is worth keeping."""
        row = {"table": table, "scenario": scenario, **found, **_where()}
        self.rows[f"{table}: {scenario}"] = row
        print(_line(row, COLUMNS[table]))
        self._write()

    def find(self, table: str, scenario: str) -> Mapping[str, Any] | None:
        return self.rows.get(f"{table}: {scenario}")

    def _write(self) -> None:
        self._json.write_text(json.dumps(self.rows, indent=1))
        parts = []
        for table, columns in COLUMNS.items():
            rows = [row for row in self.rows.values() if row["table"] == table]
            if rows:
                days = sorted({row["date"][:10] for row in rows})
                commits = sorted({row["commit"] for row in rows})
                head = [f"| {' | '.join(columns.values())} |", "|---" * len(columns) + "|"]
                parts += [*head, *(_line(row, columns) for row in rows), ""]
                parts += [f"{', '.join(days)}, {rows[-1]['machine']}, commits {', '.join(commits)}", ""]
        self._tables.write_text("\n".join(parts))


def _line(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    return f"| {' | '.join(_cell(row.get(name, '')) for name in columns)} |"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
    return str(value).replace("|", "/")


def _where() -> dict[str, str]:
    command = ["git", "-C", str(SOURCE), "describe", "--always", "--dirty"]
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"})
    return {
        "date": datetime.now().isoformat(timespec="seconds"),
        "commit": told.stdout.strip() or "unknown",
        "machine": f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}",
    }
