"""The figures and sample images that a run left in the store for the page, as far as they are of the version served."""

from __future__ import annotations

import logging
import time

from fusion.answers.view import View
from fusion.errors import ConduError, StoreError
from fusion.store import Store
from fusion.versions.showcase import Sample, Showcase, read_showcase
from serving.errors import NoSampleError
from serving.schemas import SampleInfo, ShowcaseResponse, ShownTask

logger = logging.getLogger(__name__)

_FRESH_S = 15.0
_MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/webp"})


class Exhibits:
    """Reads the newest showcase, at most every fifteen seconds. Blocks: call it in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._showcase: Showcase | None = None
        self._read_at = float("-inf")

    def shown(self, view: View) -> ShowcaseResponse:
        """What there is of the tasks of a version. Empty where nothing was measured, or what is there can't be read."""
        showcase = self._newest()
        found = {}
        for name, shown in showcase.tasks.items() if showcase else ():
            entry = view.manifest.state.tasks.get(name)
            if entry is None or entry.expert_sha256 != shown.expert_sha256:
                continue  # removed, or replaced by an expert that was not measured
            samples = [
                SampleInfo(label=one.label, media_type=one.media_type, path=f"v1/showcase/{name}/{index}")
                for index, one in enumerate(shown.samples)
                if one.media_type in _MEDIA_TYPES
            ]
            found[name] = ShownTask(images=shown.images, base=shown.base, answered=shown.answered, samples=samples)
        return ShowcaseResponse(measured=showcase.version if showcase else None, tasks=found)

    def sample(self, task: str, index: int) -> Sample:
        """One image. Raises `NoSampleError`."""
        showcase = self._newest()
        samples = showcase.tasks[task].samples if showcase and task in showcase.tasks else ()
        if index >= len(samples) or samples[index].media_type not in _MEDIA_TYPES:
            raise NoSampleError(f"task {task!r} has no sample {index}: /v1/showcase lists those there are")
        return samples[index]

    def _newest(self) -> Showcase | None:
        if time.monotonic() - self._read_at > _FRESH_S:
            try:
                self._showcase = read_showcase(self._store)
            except StoreError as error:  # the service answers without it
                logger.warning("the showcase is not there: %s", error)
            except ConduError as error:
                self._showcase = None
                logger.warning("the showcase can't be shown: %s", error)
            self._read_at = time.monotonic()
        return self._showcase
