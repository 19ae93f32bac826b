"""The fields of `POST /v1/embed`, and its answer."""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from fusion.errors import LabelSpaceError
from serving.schemas import Fields, Text, checked_templates

_AS_IT_IS = ("{}",)

Embedding = list[float] | str


class EmbedFields(Fields):
    """The fields of a request for embeddings."""

    task: Text | None = None
    """The task whose expert embeds. Absent: the base. A task without an expert is embedded by the base."""
    texts: tuple[Text, ...] = ()
    """Texts to embed as they are; repeat the field, or give one JSON array."""
    labels: tuple[Text, ...] = ()
    """Class names to embed in `templates`, in place of `texts`; repeated like them."""
    templates: tuple[Text, ...] = ()
    """Prompts with one `{}` each, for `labels`: a label is the mean over them. Default: `a photo of a {}.`"""
    normalize: bool = True
    """Give embeddings of length 1, whose products are cosines; else as the encoder gives them."""
    encoding: Literal["list", "float32", "float16"] = "list"
    """How numbers are written: a JSON list, or base64 of little-endian float32 or float16."""
    version: int | None = Field(default=None, ge=1)
    """The version that answers. Absent: the newest that this replica has loaded."""

    def prompts(self, max_texts: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is embedded, and in which templates. Raises `LabelSpaceError` for fields that contradict each other."""
        if self.texts and self.labels:
            raise LabelSpaceError("texts and labels contradict each other: only labels are put into templates")
        if self.templates and not self.labels:
            raise LabelSpaceError("templates are for labels: drop them, or give labels in place of texts")
        templates = checked_templates(self.templates) if self.labels else _AS_IT_IS
        texts = self.labels or self.texts
        if any(not text.strip() for text in texts):
            raise LabelSpaceError(f"one of the {'labels' if self.labels else 'texts'} is empty")
        if (num_texts := len(texts) * len(templates)) > max_texts:
            raise LabelSpaceError(f"these are {num_texts} texts, the limit per request is {max_texts}")
        return texts, templates


class ImageEmbedding(BaseModel):
    image: str = Field(description="The file's name as uploaded")
    embedding: Embedding


class TextEmbedding(BaseModel):
    text: str = Field(description="The text, or the label")
    embedding: Embedding


class EmbedResponse(BaseModel):
    version: int = Field(description="The one version that the whole answer comes from")
    model: str = Field(description="`base`, or the key of the expert, `task@hash`: embeddings of one key go together")
    dimensions: int
    encoding: str
    normalized: bool
    images: list[ImageEmbedding] = Field(description="One per image, in their order")
    texts: list[TextEmbedding] = Field(description="One per text or label, in their order")
    warnings: list[str] = Field(description="What may be wrong with the question, such as a text that the model cuts")
    seconds: float


def encoded(rows: np.ndarray, encoding: str) -> list[Embedding]:
    """Embeddings float32 [N, D] as they are written."""
    if encoding == "list":
        return [[float(value) for value in row] for row in rows]
    kind = {"float32": "<f4", "float16": "<f2"}[encoding]
    return [base64.b64encode(row.astype(kind).tobytes()).decode() for row in rows]
