"""The fusion actor: the usual writer of versions on a Ray cluster, one named actor a store.

It keeps nothing that the store lacks, so any line of it may be its last: Ray starts it again, the caller's call runs
again, and fusing an expert that the newest version names already is a no-op. Two incarnations that run at once (a
partition) race for one manifest key like any two publishers, so exactly-once comes from the store, never from here.

It fuses one call at a time, and callers take turns (`fusion.turns`). The line is not kept either: when the actor dies,
every call that waited comes again by itself, callers line up anew in the order in which they come, the one that was
being served among them, and each caller's own calls keep their order: with each, a client tells the lowest number of
its own that has no answer, and the actor waits for that one. What it tells is of now, so it is the client that sends a
call again, not Ray, which would repeat what was true at first.
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

from fusion.errors import StoreUnavailableError, own_cause
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.names import NAMESPACE, actor_name
from fusion.store.address import StoreAddress
from fusion.turns import Turns, Waiting
from fusion.versions.bases import Base

_KIND = "fusion-v4"
"""Part of the actor's name: an actor of an older release, which still runs the older code, is never asked."""

_MAX_ATTEMPTS = 5
_GROUPS = {"fuse": 1000, "watch": 16}
"""Calls that Ray lets in at once. Those to `fuse` wait inside for their turn; who watches waits for none of them."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fusing:
    """The fuse that runs now.

    Attributes:
        caller, tasks: who asked for it, and for what.
        stage: `verify`, `fuse` or `publish`.
        seconds, stage_seconds: since it began, and since the stage did.
    """

    caller: str
    tasks: tuple[str, ...]
    stage: str
    seconds: float = 0.0
    stage_seconds: float = 0.0


@dataclass(frozen=True)
class FusionProgress:
    """What a fusion actor does. `asdict` of it is JSON.

    Attributes:
        pid: its process.
        now: None: nothing.
        waiting: calls that have not begun, the next one first.
        num_fused: experts that it fused since its process started.
        version: of the last call that succeeded; None: there was none.
        error: of the last call that failed.
    """

    pid: int
    now: Fusing | None = None
    waiting: tuple[Waiting, ...] = ()
    num_fused: int = 0
    version: int | None = None
    error: str | None = None


class FusionActor:
    """Fuses experts into one store, one call after the other."""

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
        """What it does now. Answered while a fuse runs."""
        progress = replace(self._progress, waiting=tuple(self._turns.waiting()))
        if progress.now is None:
            return progress
        clock = time.monotonic()
        seconds, stage_seconds = round(clock - self._started, 2), round(clock - self._stage_started, 2)
        return replace(progress, now=replace(progress.now, seconds=seconds, stage_seconds=stage_seconds))

    @ray.method(concurrency_group="watch")
    async def pid(self) -> int:
        """The process that answers: how a probe, and a test that kills it, finds it."""
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
    """A caller's side of the fusion actor: finds or starts it, and asks again when it died on the way.

    Args:
        address: of the store that the actor writes to.
        num_cpus: cores that Ray reserves for it; its kernels use as many threads, and one where it is below 2.
        num_gpus: GPUs, or a fraction of one, that Ray reserves for it; to be used with `device="cuda"` of `fuse`.
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
        """Start the actor, unless it runs, and wait until it has what it reserves.

        Raises `StoreUnavailableError` when it hasn't after `timeout_s`: others hold the resources.
        """
        try:
            self._call(lambda actor: actor.pid.remote(), timeout_s=timeout_s)
        except GetTimeoutError:
            needs = ", ".join(f"{name} {value:g}" for name, value in self._resources.items() if value)
            raise StoreUnavailableError(
                f"the fusion actor did not start in {timeout_s:.0f} s: it reserves {needs or 'nothing'}, and others "
                "hold the cluster. Stop them, or set fusion.num_cpus to 0: it then fuses beside them"
            ) from None

    def fuse(self, base: Base, experts: Sequence[ExpertToFuse], **options: Any) -> int:
        """As `fuse_experts`, whatever happens to the actor meanwhile. Raises what fusing raises.

        Raises `StoreUnavailableError` when the actor died five times over this one call.
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
        """Process id of the actor that is alive now."""
        return int(self._call(lambda actor: actor.pid.remote()))

    def progress(self) -> FusionProgress:
        """What the actor does now."""
        progress: FusionProgress = self._call(lambda actor: actor.progress.remote())
        return progress

    def _settle(self, number: int) -> None:
        """A call has its answer. One that was sent before that is known, and after the actor's death, waits for it."""
        with self._lock:
            self._unanswered.discard(number)
            if self._unanswered and number < min(self._unanswered):
                self._handle().settle.remote(self.caller, min(self._unanswered))

    def _call(self, send: Callable[[Any], Any], *, timeout_s: float | None = None) -> Any:
        for attempt in range(_MAX_ATTEMPTS):
            handle = None
            try:
                with self._lock:  # what is sent first was true first
                    handle = self._handle()
                    answer = send(handle)
                return ray.get(answer, timeout=timeout_s)
            except RayTaskError as error:
                if own := own_cause(error):
                    raise own from None
                raise
            except (ActorUnavailableError, RayActorError) as error:
                _logger.warning("the fusion actor died (attempt %d of %d): %s", attempt + 1, _MAX_ATTEMPTS, error)
                with self._lock:
                    self._held = None if self._held is handle else self._held
                time.sleep(0.2 * 2**attempt)
        raise StoreUnavailableError(
            f"the fusion actor died {_MAX_ATTEMPTS} times over one call. Usually it ran out of memory: `ray memory` "
            "and the node's log tell. What was published is untouched, and the same command goes on from there"
        )

    def _handle(self) -> Any:
        # one for all threads, and held: Ray ends a named actor when the last handle to it goes
        with self._lock:
            if self._held is None:
                self._held = self._actor()
            return self._held

    def _actor(self) -> Any:
        # Ray sets the threads from num_cpus only where the environment that the node was started in does not
        threads = str(max(1, int(self._resources["num_cpus"])))
        # get_if_exists can lose a race against an actor that is just going (ray#48856): the caller asks again
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
    """What the fusion actor of a store (`Store.url`) does, without starting one. None: there is none.

    Raises `GetTimeoutError` when it does not answer: it is being restarted, or waits for its resources.
    """
    try:
        handle: Any = ray.get_actor(actor_name(_KIND, store_url), namespace=NAMESPACE)
        answer: Any = ray.get(handle.progress.remote(), timeout=timeout_s)
    except (ValueError, RayActorError):
        return None
    progress: FusionProgress = answer
    return progress
