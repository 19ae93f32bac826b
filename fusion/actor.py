"""The fusion actor: the usual writer of versions on a Ray cluster, one named actor per store.

It keeps nothing that the store lacks, so it may die at any line: Ray restarts it, the caller's call runs again, and
fusing an expert that the newest version already names does nothing. Two incarnations that run at once (after a network
partition) race for one manifest key like any two publishers, so exactly-once comes from the store, never from here.

It executes one call at a time, and callers take turns (`fusion.turns`). The queue is not kept either: when the actor
dies, every waiting call is sent again. Callers then queue in the order in which their calls arrive, including the one
that was being served, and the calls of one caller keep their order: with each call a client sends the lowest of its
numbers that has no answer yet, and the actor waits for that one. Such a number is true only when it is sent, so the
client repeats a call itself: Ray would repeat what was true at first.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from fusion.actor_names import NAMESPACE, actor_name
from fusion.backoff import delays_s
from fusion.errors import StoreUnavailableError, own_cause
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store.address import StoreAddress
from fusion.turns import Turns, Waiting
from fusion.versions.bases import Base

_KIND = "fusion-v4"
"""Part of the actor's name, so that an actor of an older release, which still runs its old code, is never called."""

_MAX_ATTEMPTS = 5
_GROUPS = {"fuse": 1000, "watch": 16}
"""Calls that Ray admits at once. Those to `fuse` wait inside for their turn; those that watch wait for none of them."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fusing:
    """The fuse that is running now.

    Attributes:
        caller, tasks: who requested it, and for which tasks.
        stage: `verify`, `fuse` or `publish`.
        seconds, stage_seconds: time since it began, and since its stage began.
    """

    caller: str
    tasks: tuple[str, ...]
    stage: str
    seconds: float = 0.0
    stage_seconds: float = 0.0


@dataclass(frozen=True)
class FusionProgress:
    """What a fusion actor is doing. `asdict` turns it into JSON.

    Attributes:
        pid: its process.
        now: the running fuse, or None.
        waiting: calls that have not begun, the next one first.
        num_fused: experts that it has fused since its process started.
        version: the version that the last successful call returned; None if there was none.
        error: the error of the last failed call, or None.
    """

    pid: int
    now: Fusing | None = None
    waiting: tuple[Waiting, ...] = ()
    num_fused: int = 0
    version: int | None = None
    error: str | None = None


class FusionActor:
    """Fuses experts into one store, one call at a time."""

    def __init__(self, address: StoreAddress) -> None:
        self._cache = address.open_cache()
        self._turns = Turns()
        self._progress = FusionProgress(os.getpid())
        self._started = self._stage_started = 0.0

    @ray.method(concurrency_group="fuse", max_task_retries=0)
    async def fuse(
        self,
        caller: str,
        number: int,
        first: int,
        base: Base,
        experts: Sequence[ExpertToFuse],
        options: Mapping[str, Any],
    ) -> int:
        """Fuse experts (references into the store) and return the version that holds them. May run twice.

        Args:
            caller, number, first: see `Turns.submit`.
            options: those of `fuse_experts`.
        """
        tasks = tuple(expert.task for expert in experts)
        work = partial(self._fuse, caller, tasks, base, experts, options)
        return int(await asyncio.wrap_future(self._turns.submit(caller, number, tasks, work, first=first)))

    @ray.method(concurrency_group="watch")
    async def settle(self, caller: str, first: int) -> None:
        """See `Turns.settle`."""
        self._turns.settle(caller, first)

    @ray.method(concurrency_group="watch")
    async def progress(self) -> FusionProgress:
        """What the actor is doing. Answers even while a fuse is running."""
        progress = replace(self._progress, waiting=tuple(self._turns.waiting()))
        if progress.now is None:
            return progress
        clock = time.monotonic()
        seconds, stage_seconds = round(clock - self._started, 2), round(clock - self._stage_started, 2)
        return replace(progress, now=replace(progress.now, seconds=seconds, stage_seconds=stage_seconds))

    @ray.method(concurrency_group="watch")
    async def pid(self) -> int:
        """The actor's process id, for a start-up check and for tests that kill it."""
        return os.getpid()

    def _fuse(
        self,
        caller: str,
        tasks: tuple[str, ...],
        base: Base,
        experts: Sequence[ExpertToFuse],
        options: Mapping[str, Any],
    ) -> int:
        start = self._started = time.monotonic()

        def on_stage(stage: str) -> None:
            self._stage_started = time.monotonic()
            self._progress = replace(self._progress, now=Fusing(caller, tasks, stage))

        try:
            result = fuse_experts(self._cache, base, experts, **{**options, "on_stage": on_stage})
        except BaseException as error:
            told = f"{', '.join(tasks)}: {type(error).__name__}: {error}"
            self._progress = replace(self._progress, now=None, error=told)
            raise
        version = result.manifest.version
        num_fused = self._progress.num_fused + len(result.fused)
        self._progress = replace(self._progress, now=None, num_fused=num_fused, version=version)
        for task in result.fused:
            _logger.info("fused task=%s version=%d s=%.1f", task, version, time.monotonic() - start)
        return version


class FusionClient:
    """The caller's side of the fusion actor: finds or starts it, and repeats a call during which the actor died.

    Args:
        address: the store that the actor writes to.
        num_cpus: cores that Ray reserves for the actor; its kernels use as many threads, and one if it is below 2.
        num_gpus: GPUs, or a fraction of one, that Ray reserves for the actor; use them with `device="cuda"` of `fuse`.
    """

    def __init__(
        self,
        address: StoreAddress,
        *,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
    ) -> None:
        self._address = address.resolved()
        self.name = actor_name(_KIND, self._address.url)
        self.caller = f"{socket.gethostname()}:{os.getpid()}-{secrets.token_hex(2)}"
        self._resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        self._numbers = itertools.count()
        self._unanswered: set[int] = set()
        self._lock = threading.RLock()
        self._held: Any = None

    def start(self, *, timeout_s: float) -> None:
        """Start the actor unless it is running, and wait until it has the resources that it reserves.

        Raises `StoreUnavailableError` if it does not have them after `timeout_s`.
        """
        try:
            self._call(lambda actor: actor.pid.remote(), timeout_s=timeout_s)
        except GetTimeoutError:
            needs = ", ".join(f"{name} {value:g}" for name, value in self._resources.items() if value)
            raise StoreUnavailableError(
                f"the fusion actor did not start within {timeout_s:.0f} s: it reserves {needs or 'nothing'}, and other "
                "jobs occupy the cluster. Stop them, or set fusion.num_cpus to 0: the actor then runs alongside them"
            ) from None

    def fuse(self, base: Base, experts: Sequence[ExpertToFuse], **options: Any) -> int:
        """As `fuse_experts`, even if the actor dies in the meantime. Raises what fusing raises.

        Raises `StoreUnavailableError` when the actor died five times during this one call.
        """
        with self._lock:
            number = next(self._numbers)
            self._unanswered.add(number)

        def send(actor: Any) -> Any:
            return actor.fuse.remote(self.caller, number, min(self._unanswered), base, list(experts), options)

        try:
            return int(self._call(send))
        finally:
            self._settle(number)

    def pid(self) -> int:
        """Process id of the living actor."""
        return int(self._call(lambda actor: actor.pid.remote()))

    def progress(self) -> FusionProgress:
        """What the actor is doing."""
        progress: FusionProgress = self._call(lambda actor: actor.progress.remote())
        return progress

    def _settle(self, number: int) -> None:
        """A call has its answer: tell the actor, where later calls may be waiting for that number after a restart."""
        with self._lock:
            self._unanswered.discard(number)
            if self._unanswered and number < min(self._unanswered):
                self._handle().settle.remote(self.caller, min(self._unanswered))

    def _call(self, send: Callable[[Any], Any], *, timeout_s: float | None = None) -> Any:
        for attempt, pause_s in zip(range(1, _MAX_ATTEMPTS + 1), delays_s(0.2), strict=False):
            handle = None
            try:
                with self._lock:  # so that numbers are sent in the order in which they were true
                    handle = self._handle()
                    answer = send(handle)
                return ray.get(answer, timeout=timeout_s)
            except RayTaskError as error:
                if own := own_cause(error):
                    raise own from None
                raise
            except (ActorUnavailableError, RayActorError) as error:
                _logger.warning("the fusion actor died (attempt %d of %d): %s", attempt, _MAX_ATTEMPTS, error)
                with self._lock:
                    self._held = None if self._held is handle else self._held
                time.sleep(pause_s)
        raise StoreUnavailableError(
            f"the fusion actor died {_MAX_ATTEMPTS} times during one call. The usual reason is a lack of memory: see "
            "`ray memory` and the node's log. What was published is intact, and the same command continues from there"
        )

    def _handle(self) -> Any:
        # one handle for all threads, and kept: Ray ends a named actor when its last handle is gone
        with self._lock:
            if self._held is None:
                self._held = self._actor()
            return self._held

    def _actor(self) -> Any:
        # Ray derives the threads from num_cpus only if the environment of the node's processes does not set them
        threads = str(max(1, int(self._resources["num_cpus"])))
        # get_if_exists can lose a race against an actor that is just ending (ray#48856): the caller tries again
        options: dict[str, Any] = {
            "name": self.name,
            "namespace": NAMESPACE,
            "get_if_exists": True,
            "max_restarts": -1,
            "max_task_retries": _MAX_ATTEMPTS,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}},
            **self._resources,
        }
        remote: Any = ray.remote
        return remote(concurrency_groups=_GROUPS)(FusionActor).options(**options).remote(self._address)


def find_progress(store_url: str, *, timeout_s: float) -> FusionProgress | None:
    """What the fusion actor of a store (`Store.url`) is doing, without starting one. None if there is none.

    Raises `GetTimeoutError` when it does not answer: it is being restarted, or is waiting for its resources.
    """
    try:
        handle: Any = ray.get_actor(actor_name(_KIND, store_url), namespace=NAMESPACE)
        answer: Any = ray.get(handle.progress.remote(), timeout=timeout_s)
    except (ValueError, RayActorError):
        return None
    progress: FusionProgress = answer
    return progress
