"""Embeddings as a client gets them: arrays, and the model that they are of."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:  # numpy doubles the time that a client takes to start
    import numpy as np

    from serving.embed_schemas import EmbedResponse


class Words(TypedDict, total=False):
    """What is embedded beside images, and how; docs/http.md has the meaning of each field. None and absent are the
    same."""

    task: str | None
    texts: Sequence[str]
    labels: Sequence[str]
    templates: Sequence[str]
    normalize: bool
    version: int | None


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of one model: only those of one `model` may be compared.

    Attributes:
        images: float32 [number of images, D], in their order.
        texts: float32 [number of texts or labels, D], in their order.
        model: `base`, or the key of an expert.
        version: that embedded.
        warnings: what may be wrong with the question, such as a text that the model cuts.
    """

    images: np.ndarray
    texts: np.ndarray
    model: str
    version: int
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, answer: EmbedResponse) -> Embeddings:
        """Those of an answer in the encoding `float32`."""
        return cls(
            _rows([one.embedding for one in answer.images], answer.dimensions),
            _rows([one.embedding for one in answer.texts], answer.dimensions),
            answer.model,
            answer.version,
            tuple(answer.warnings),
        )


def _rows(encoded: Sequence[Any], dimensions: int) -> np.ndarray:
    import numpy as np

    rows = np.frombuffer(b"".join(base64.b64decode(row) for row in encoded), "<f4")
    return rows.astype(np.float32).reshape(len(encoded), dimensions)
