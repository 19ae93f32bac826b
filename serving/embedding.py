"""A request for embeddings, from images and texts to answer: one model does all of it, the base or a task's expert."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import torch

from fusion.answers.tokens import check_texts
from fusion.answers.view import View
from fusion.versions.manifest import unknown_task
from serving.embed_schemas import EmbedFields, EmbedResponse, ImageEmbedding, TextEmbedding, encoded
from serving.errors import RequestError
from serving.images import Upload
from serving.models import BASE
from serving.service import Service

_NOTHING = torch.empty(0, 0)


async def embed(service: Service, uploads: Sequence[Upload], fields: EmbedFields) -> EmbedResponse:
    """Embeddings of the images and of the texts, each in their order, all from one version.

    Raises the errors of a bad request, `OverloadedError`, `RequestTimeoutError`, and the store's errors.
    """
    started = time.perf_counter()
    texts, templates = fields.prompts(service.options.max_texts)
    if not uploads and not texts:
        raise RequestError("there is nothing to embed: give images, texts, or labels")
    async with service.in_time():
        view = await service.watcher.view(fields.version)
        if fields.task is not None and fields.task not in view.tasks:
            raise unknown_task(fields.task, view.version, view.tasks)
        images, words, warning = await asyncio.gather(
            _images(service, view, uploads, fields),
            _texts(service, view, texts, templates, fields),
            asyncio.to_thread(_warning, view, texts, templates),
        )
    pictures, sentences = (encoded(rows.numpy(), fields.encoding) for rows in (images, words))
    named = view.tasks[fields.task] if fields.task is not None else None
    return EmbedResponse(
        version=view.version,
        model=named.expert if named and named.has_expert else BASE,
        dimensions=max(images.shape[1], words.shape[1]),
        encoding=fields.encoding,
        normalized=fields.normalize,
        images=[ImageEmbedding(image=one.name, embedding=row) for one, row in zip(uploads, pictures, strict=True)],
        texts=[TextEmbedding(text=text, embedding=row) for text, row in zip(texts, sentences, strict=True)],
        warnings=[warning] if warning else [],
        seconds=round(time.perf_counter() - started, 4),
    )


async def _images(service: Service, view: View, uploads: Sequence[Upload], fields: EmbedFields) -> torch.Tensor:
    if not uploads:
        return _NOTHING
    crops = await service.crops(uploads, view, view.background(fields.task))
    return await service.models.embed_images(view, fields.task, crops, unit=fields.normalize)


async def _texts(
    service: Service, view: View, texts: tuple[str, ...], templates: tuple[str, ...], fields: EmbedFields
) -> torch.Tensor:
    if not texts:
        return _NOTHING
    return await service.models.embed_texts(view, fields.task, texts, templates, unit=fields.normalize)


def _warning(view: View, texts: tuple[str, ...], templates: tuple[str, ...]) -> str | None:
    model_cfg = view.manifest.base.model_cfg
    return check_texts(model_cfg, texts, templates).warning() if model_cfg is not None and texts else None
