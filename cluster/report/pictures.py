"""Pictures and files that a command leaves: matplotlib without a display, and files that are whole or not there."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into memory. Imported here: half a second that no other command should wait for."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")  # there may be no display
    return plt


def png(figure: Any) -> bytes:
    """The figure as PNG, and gone from matplotlib's memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    pyplot().close(figure)
    return buffer.getvalue()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step: readers see the old one or the new one. Raises OSError."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
