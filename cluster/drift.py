"""What is asked now against what was trained: a service's request log, and the evidence of a version's tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import torch

from fusion.answers.drift import FEWEST_IMAGES, Drift, Thresholds, measure_drift
from fusion.answers.router import Router
from fusion.answers.view import View, ViewLoader
from fusion.errors import ConfigError
from fusion.store import Store
from fusion.store.address import StoreAddress
from fusion.versions.history import Versions, nothing_published
from serving.request_log.reader import read_log


@dataclass(frozen=True)
class DriftReport:
    """What `condu drift` shows.

    Attributes:
        store: its URL.
        version: whose evidence the images are compared with.
        oldest: when the oldest image was answered.
        without_evidence: the version's tasks that can't be compared.
        warnings: what was left out, a sentence each.
    """

    store: str
    version: int
    oldest: datetime
    drift: Drift
    without_evidence: Sequence[str]
    warnings: Sequence[str]


def compare_with_training(
    address: StoreAddress, *, since: datetime, version: int | None, thresholds: Thresholds
) -> DriftReport:
    """Read a store's request log since then, and compare it with a version (None: the newest).

    Raises:
        ConfigError: there is no log, no evidence, or too little of either.
        The store's errors.
    """
    cache = address.open_cache()
    view = _view(ViewLoader(cache), Versions(cache.store), version)
    evidence = {name: task.evidence for name, task in view.tasks.items() if task.evidence is not None}
    if not evidence:
        raise ConfigError(
            f"version {view.version} of {cache.store.url} has no evidence of any task: its tasks were fused from plain "
            "weights, or trained before evidence was kept. `condu run --replace` or `condu import-task` makes it"
        )
    router = Router(evidence)
    found = read_log(cache.store, since, dimensions=router.dimensions)
    warnings = list(found.unreadable)
    if found.oldest is None:
        raise _no_log(cache.store, since, warnings)
    if found.left_out:
        warnings.append(f"only the newest {len(found.features)} images were read, since {found.oldest:%Y-%m-%d %H:%M}")
    features = torch.from_numpy(found.features)
    named = [name is not None for name in found.named]
    drift = measure_drift(router, features, found.among, named, thresholds)
    if all(one.p_value is None for one in drift.tasks):
        raise ConfigError(
            f"the log of {cache.store.url} has {drift.num_images} images since {since:%Y-%m-%d %H:%M}, and no task has "
            f"the {FEWEST_IMAGES} that it takes to judge it: wait, ask for more time with --since, or raise "
            "serve.log.sample"
        )
    without = [name for name, task in view.tasks.items() if task.evidence is None]
    return DriftReport(cache.store.url, view.version, found.oldest, drift, without, warnings)


def _view(loader: ViewLoader, versions: Versions, version: int | None) -> View:
    manifest = versions.newest() if version is None else versions.read(version)
    if manifest is None:
        raise nothing_published(versions.store)
    return loader.load(manifest)


def _no_log(store: Store, since: datetime, unreadable: Sequence[str]) -> ConfigError:
    if unreadable:
        return ConfigError(f"no file of the request log can be read. {unreadable[0]}")
    return ConfigError(
        f"{store.url} has no request log since {since:%Y-%m-%d %H:%M} UTC: set serve: {{log: {{sample: 0.01}}}} in the "
        "configuration, and start the service again; or ask for more time with --since"
    )
