"""The fusion actor: the usual writer of versions on a Ray cluster, one named actor a store.

It keeps nothing that the store lacks, so any line of it may be its last: Ray starts it again, the caller's call runs
again, and fusing an expert that the newest version names already is a no-op. Two incarnations that run at once (a
partition) race for one manifest key like any two publishers, so exactly-once comes from the store, never from here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from fusion.bases import Base
from fusion.cache import NodeCache
from fusion.errors import ConduError, StoreUnavailableError
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import S3Options, open_store

NAMESPACE = "condu"
_PROTOCOL = 1
"""Part of the actor's name: an actor of an older release, which still runs the older code, is never asked."""

_MAX_ATTEMPTS = 5
_logger = logging.getLogger(__name__)


class FusionActor:
    """Fuses experts into one store, one call after the other (Ray queues callers in the order of their arrival)."""

    def __init__(self, store_url: str, store_options: S3Options | None, cache_folder: Path | None) -> None:
        self._cache = NodeCache(open_store(store_url, store_options), cache_folder)

    def fuse(
        self,
        base: Base,
        experts: Sequence[ExpertToFuse],
        *,
        mode: Mapping[str, Any],
        **options: Any,
    ) -> int:
        """Fuse experts (references into the store) and return the version that holds them. May run twice.

        `options` are those of `fuse_experts`.
        """
        start = time.perf_counter()
        result = fuse_experts(self._cache, base, experts, mode=mode, **options)
        version = result.manifest.version
        for task in result.fused:
            _logger.info("fused task=%s version=%d s=%.1f", task, version, time.perf_counter() - start)
        return version

    def pid(self) -> int:
        """The process that answers: how a probe, and a test that kills it, finds it."""
        return os.getpid()


class FusionClient:
    """A caller's side of the fusion actor: finds or starts it, and asks again when it died on the way.

    Args:
        store_url, store_options: the store that the actor writes to.
        num_cpus: cores that Ray reserves for it; its kernels use as many threads.
        cache_folder: of the node cache; None for the default.
    """

    def __init__(
        self,
        store_url: str,
        store_options: S3Options | None = None,
        *,
        num_cpus: float = 1.0,
        cache_folder: Path | None = None,
    ) -> None:
        self._arguments = (store_url, store_options, cache_folder)
        self._num_cpus = num_cpus
        self.name = actor_name(store_url)
        self._handle: Any = None  # held: Ray ends a named actor when the last handle to it goes

    def fuse(self, base: Base, experts: Sequence[ExpertToFuse], **options: Any) -> int:
        """As `FusionActor.fuse`, whatever happens to the actor meanwhile. Raises what fusing raises.

        Raises `StoreUnavailableError` when the actor died five times over this one call.
        """
        return int(self._call("fuse", base, list(experts), **options))

    def pid(self) -> int:
        """Process id of the actor that is alive now."""
        return int(self._call("pid"))

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        for attempt in range(_MAX_ATTEMPTS):
            try:
                self._handle = self._handle or self._actor()
                return ray.get(getattr(self._handle, method).remote(*args, **kwargs))
            except RayTaskError as error:
                if isinstance(error.cause, ConduError):
                    raise error.cause from None
                raise
            except (ActorUnavailableError, RayActorError) as error:
                _logger.warning("the fusion actor died (attempt %d of %d): %s", attempt + 1, _MAX_ATTEMPTS, error)
                self._handle = None
                time.sleep(0.2 * 2**attempt)
        raise StoreUnavailableError(
            f"the fusion actor died {_MAX_ATTEMPTS} times over one call. Usually it ran out of memory: `ray memory` "
            "and the node's log tell. What was published is untouched, and the same command goes on from there"
        )

    def _actor(self) -> Any:
        # get_if_exists can lose a race against an actor that is just going (ray#48856): the caller asks again
        return (
            ray.remote(FusionActor)
            .options(
                name=self.name,
                namespace=NAMESPACE,
                get_if_exists=True,
                max_restarts=-1,
                max_task_retries=_MAX_ATTEMPTS,
                num_cpus=self._num_cpus,
            )
            .remote(*self._arguments)
        )


def actor_name(store_url: str) -> str:
    """One name a store, and a protocol number."""
    return f"condu-fusion-v{_PROTOCOL}-{hashlib.sha256(store_url.encode()).hexdigest()[:12]}"
