"""Pictures and files that a command leaves: matplotlib without a display, and files written in one step."""

from __future__ import annotations

import io
from typing import Any


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into memory. Imported here: half a second that other commands need not wait for."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")  # there may be no display
    return plt


def png(figure: Any) -> bytes:
    """The figure as PNG; closes it, so that matplotlib lets go of its memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    pyplot().close(figure)
    return buffer.getvalue()
