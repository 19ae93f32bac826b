"""The predictor: answers from a version in one process, without Ray.

It does in a plain loop what the service does on many replicas, by the same plan and the same rules. Evaluation and
`condu predict --store` use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from PIL import Image

from fusion.answers.class_sums import Discriminant
from fusion.answers.clip import LOGIT_SCALE, Clip, TextEncoder, build_clip
from fusion.answers.evidence import joined_logits
from fusion.answers.expert_cache import ExpertCache
from fusion.answers.folding import Folding
from fusion.answers.label_spaces import Job, Plan, Prediction, Query, needs_base
from fusion.answers.live import LiveSide, image_side, live_images, live_texts, moved_tensors, noise_side
from fusion.answers.options import DEFAULT_EXPERT_MEMORY
from fusion.answers.rules import answer, plan
from fusion.answers.rules.views import pooled
from fusion.answers.view import TaskView, View, ViewLoader
from fusion.checkpoints.names import of_images
from fusion.decouple import DecoupledExpert, decoupled_tensors
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions, nothing_published
from fusion.versions.manifest import Manifest

_TEXT_SIDES = 8
"""One part in so many of the memory for experts is for the sides that encode texts."""
_ALSO_BUILT = 8
"""One part in so many of it is for models of experts that are in memory without them too."""
_TYPICAL_COMPONENTS = 32
"""Of an expert's matrix."""


class ExpertModel:
    """A model with its text features cached by (classes, templates).

    Args:
        clip: encodes images, and texts where `text` is None.
        task: whose expert it is, so that jobs may be joined with its evidence; None for a base.
        text: gives the model that encodes texts; called when a text is to be encoded.
        live: how its image side differs from that of `clip`, the base, where it was not rebuilt.
        build: builds its image side all the same, and keeps it as `ModelShelf.built`.
    """

    def __init__(
        self,
        clip: Clip,
        task: TaskView | None = None,
        text: Callable[[], TextEncoder] | None = None,
        live: LiveSide | None = None,
        build: Callable[[], Clip] | None = None,
    ) -> None:
        self.clip = clip
        self.live = live
        self.build = build
        self.text: Callable[[], TextEncoder] = text or (lambda: clip)
        self.class_features = lru_cache(maxsize=256)(self._class_features)
        evidence = task.evidence if task else None
        self._discriminant = Discriminant(evidence.expert) if evidence and evidence.expert else None
        self._temperature = task.temperature if task else 1.0
        self._places = {name: i for i, name in enumerate(task.classes)} if task else {}

    def _class_features(self, classes: tuple[str, ...], templates: tuple[str, ...]) -> torch.Tensor:
        return self.text().class_features(classes, templates)

    def feature_logits(
        self, features: torch.Tensor, classes: tuple[str, ...], templates: tuple[str, ...]
    ) -> torch.Tensor:
        """100 x cosine, float32 [B, C], of this model's unit image features [B, D]."""
        return LOGIT_SCALE * features @ self.class_features(classes, templates).T

    def job_logits(self, features: torch.Tensor, job: Job, texts: torch.Tensor | None = None) -> torch.Tensor:
        """A job's logits, float32 [B, len(job.classes)], of this model's unit image features of its images, [B, D].

        Joined, they are (100 x cosine + 2 x the discriminant's scores in the expert's space) / temperature.

        Args:
            texts: `class_features` of the job, where the caller keeps them.
        """
        if texts is None:
            texts = self.class_features(job.classes, job.templates)
        logits = LOGIT_SCALE * features @ texts.T
        if not job.joined:
            return logits
        if self._discriminant:
            places = [self._places[name] for name in job.classes]
            logits = joined_logits(logits, self._discriminant.scores(features)[:, places]).float()
        return logits / self._temperature


class ModelShelf:
    """The base and its experts, rebuilt on demand. Shared by all versions of one store; thread-safe.

    The two sides of an expert are rebuilt apart: images are seen all the time, while texts are encoded once and their
    features kept, so most of the memory is for image sides.

    Args:
        live: do not rebuild what can be applied to the base as it is; `tower` does it for images.
    """

    def __init__(
        self,
        cache: NodeCache,
        base: Manifest,
        *,
        expert_memory: int = DEFAULT_EXPERT_MEMORY,
        device: str = "cpu",
        live: bool = False,
    ) -> None:
        self._cache = cache
        self._base_sha256 = base.base.sha256
        self._plain = build_clip(base.base, cache.tensors(base.base.weights), device=device)
        self._folding = Folding(self._plain)
        self.base = ExpertModel(self._folding.folded(self._plain))
        self._live = live
        self.tower = live_images(self._plain, self._folding) if live else None
        self.experts: ExpertCache[ExpertModel] = ExpertCache(expert_memory, self.image_bytes)
        self.built: ExpertCache[Clip] = ExpertCache(max(1, expert_memory // _ALSO_BUILT), self.own_bytes)
        """Image sides of experts that `experts` has as live ones."""
        self._text_sides: ExpertCache[Clip] = ExpertCache(max(1, expert_memory // _TEXT_SIDES), self.own_bytes)

    def image_bytes(self, expert: ExpertModel) -> int:
        """Bytes of an expert's image side."""
        return expert.live.num_bytes if expert.live else self.own_bytes(expert.clip)

    @property
    def may_build(self) -> bool:
        """Whether `built` has room for an expert."""
        parameters = dict(self._plain.model.named_parameters())
        return sum(one.nbytes for name, one in parameters.items() if of_images(name)) <= self.built.budget_bytes

    def noise_sides(self, num: int) -> list[LiveSide]:
        """So many image sides of noise, not prepared, to time `tower` and `build_noise` with."""
        return [noise_side(self._plain, num_components=_TYPICAL_COMPONENTS, seed=seed) for seed in range(num)]

    def build_noise(self, side: LiveSide) -> Clip:
        """The model of a side of noise, which takes what building an expert's takes, but for reading its trigger."""
        return self._folding.folded(self._plain.copy_with(moved_tensors(self._plain, side)))

    def own_bytes(self, clip: Clip) -> int:
        """Bytes of the weights that a model has beside the base's."""
        return clip.own_bytes(self._plain)

    def expert(self, view: View, task: str) -> ExpertModel:
        """The decoupled expert of a task in a version."""
        manifest = view.manifest
        assert manifest.base.sha256 == self._base_sha256, "all versions of a store share one base"
        task_view, rebuilt = view.tasks[task], partial(decoupled_tensors, self._cache, manifest, task)

        def texts() -> TextEncoder:
            live = live_texts(self._plain, DecoupledExpert(self._cache, manifest, task)) if self._live else None
            if live is not None:
                return live
            own = partial(rebuilt, lambda name: not of_images(name))
            return self._text_sides.get(task_view.expert, lambda: self._plain.copy_with(own()))

        def built() -> Clip:
            return self._folding.folded(self._plain.copy_with(rebuilt(of_images)))

        def images() -> ExpertModel:
            side = image_side(DecoupledExpert(self._cache, manifest, task)) if self.tower else None
            if self.tower is None or side is None:
                return ExpertModel(built(), task_view, texts)
            build = partial(self.built.get, task_view.expert, built)
            return ExpertModel(self.base.clip, task_view, texts, self.tower.prepared(side), build)

        return self.experts.get(task_view.expert, images)


class Predictor:
    """Answers from one store.

    Args:
        cache: the node's cache of the store.
        expert_memory: bytes of rebuilt experts that stay in memory.
        device: torch device of all models.
    Raises:
        UnknownVersionError: nothing was published yet.
    """

    def __init__(self, cache: NodeCache, *, expert_memory: int = DEFAULT_EXPERT_MEMORY, device: str = "cpu") -> None:
        self.versions = Versions(cache.store)
        self._views = ViewLoader(cache)
        newest = self.versions.newest()
        if newest is None:
            raise nothing_published(cache.store)
        self.shelf = ModelShelf(cache, newest, expert_memory=expert_memory, device=device)
        self._newest = self._views.load(newest)

    def view(self, version: int | None = None) -> View:
        """A version; None: the newest at the time when the predictor was created."""
        if version is None or version == self._newest.version:
            return self._newest
        return self._views.load(self.versions.read(version))

    def predict(self, images: Sequence[Image.Image], query: Query, *, view: View | None = None) -> list[Prediction]:
        """Answers for opened or decoded images, in their order; one answer where they are views of one object.

        Raises `LabelSpaceError`, `UnknownTaskError` before any model runs.
        """
        view = view or self._newest
        query.check(view)
        if not images:
            return []
        pixels = self.shelf.base.clip.pixels(images, background=view.background(query.task))
        features = self.shelf.base.clip.image_features(pixels) if needs_base(query, view) else None
        if query.pools and features is not None:
            features = pooled(features)
        steps = plan(query, view, features, num_images=len(images))
        return answer(steps, [self._run(job, steps, view, pixels, features) for job in steps.jobs])

    def _run(
        self, job: Job, steps: Plan, view: View, pixels: torch.Tensor, features: torch.Tensor | None
    ) -> torch.Tensor:
        images = list(job.images)
        if job.task is None:
            assert features is not None
            return self.shelf.base.job_logits(features[images], job)
        expert = self.shelf.expert(view, job.task)
        if steps.query.pools:
            return expert.job_logits(pooled(expert.clip.image_features(pixels)), job)
        return expert.job_logits(expert.clip.image_features(pixels[images]), job)
