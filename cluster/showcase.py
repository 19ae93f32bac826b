"""Puts a run's figures, and sample images if the configuration asks for them, where the service's page finds them."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from cluster.output import errors
from cluster.report.records import RunReport
from cluster.run import Run, jobs
from fusion.errors import DataError
from fusion.versions.showcase import Sample, Showcase, Shown, show_in
from training.data.images import ImageSet
from training.data.task_data import Reading, TaskData

_SHOWN_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
"""What every browser shows."""
_AS_IT_IS_BYTES = 32_000
_THUMBNAIL_PIXELS = 256


def publish_showcase(run: Run, report: RunReport) -> None:
    """Write the figures of the report's tasks, with `showcase.samples` test images each, into the run's store."""
    newest, count = run.newest(), run.config.showcase.samples
    data = {job.name: job for job in jobs(run.config)} if count else {}
    tasks = {}
    for figures in report.tasks:
        samples: tuple[Sample, ...] = ()
        try:
            if figures.name in data:
                job = data[figures.name]
                samples = _samples(job.load(Reading(run.config.address, verify=False)), count)
        except DataError as error:  # it is on the nodes that trained, and need not be here
            errors.print(f"no samples of {figures.name} for the service's page: {error}", markup=False)
        tasks[figures.name] = Shown(
            newest.state.tasks[figures.name].expert_sha256, figures.n_test, figures.zero_shot, figures.answered, samples
        )
    show_in(run.store, Showcase(newest.version, tasks))


def spread(total: int, count: int) -> list[int]:
    """`count` indices spread over a test set, the same every time."""
    count = min(count, total)
    return [
        ((2 * k + 1) * total + count) // (2 * count) % total for k in range(count)
    ]  # halves go up: none comes twice


def _samples(data: TaskData, count: int) -> tuple[Sample, ...]:
    return tuple(
        Sample(data.classes[int(data.test.labels[index])], *_for_browsers(data.test, index))
        for index in spread(len(data.test), count)
    )


def _for_browsers(images: ImageSet, index: int) -> tuple[str, bytes]:
    """Media type and file: the image's own where it is small and of a common kind, else a thumbnail."""
    encoded = images.encoded(index)
    if len(encoded) <= _AS_IT_IS_BYTES:
        try:
            with Image.open(io.BytesIO(encoded), formats=list(_SHOWN_AS_THEY_ARE)) as opened:
                return _SHOWN_AS_THEY_ARE[str(opened.format)], encoded
        except UnidentifiedImageError:
            pass  # of another kind
    thumbnail, body = images.image(index), io.BytesIO()
    thumbnail.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    thumbnail.save(body, "WEBP", quality=90)
    return "image/webp", body.getvalue()
