"""How open_clip takes an architecture that is in memory: as a folder with a configuration file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def local_architecture(**parts: Any) -> Iterator[str]:
    """The name that open_clip knows it by during a block. `parts`: `model_cfg`, and `preprocess_cfg` for a model."""
    with tempfile.TemporaryDirectory(prefix="condu-arch-") as folder:
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(parts))
        yield f"local-dir:{folder}"
