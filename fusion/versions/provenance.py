"""Who published a version, when, on which machine, with which packages. For people only: no code depends on it."""

from __future__ import annotations

import getpass
import os
import socket
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Any

_PACKAGES = ("condu", "torch", "open_clip_torch", "ray", "numpy", "safetensors")


def provenance() -> dict[str, Any]:
    """`at` (ISO 8601, UTC), `by` (user@host) and `packages` (name to version) of this process."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = package_version(name)
        except PackageNotFoundError:
            continue
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": f"{user}@{socket.gethostname()}",
        "packages": packages,
    }
