"""Measuring on the cluster: one Ray task per test set, each with its own base and one expert at a time."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cluster.nodes import living_nodes
from fusion.answers.clip import Clip, build_clip
from fusion.answers.options import PredictOptions
from fusion.answers.view import ViewLoader
from fusion.errors import ConduError, VersionGoneError
from fusion.store import open_store
from fusion.store.address import StoreAddress
from fusion.store.blobs import BlobRef
from fusion.store.node_cache import NodeCache
from fusion.versions.bases import Base
from fusion.versions.history import Versions
from fusion.versions.manifest import Manifest
from training.answer_measure import AnswerMeasure, every_way
from training.data.task_data import Reading, load_test_data
from training.evaluate import (
    LoadedSet,
    SetMeasure,
    expert_logits,
    load_set,
    measure_together,
    over_sessions,
    plain_logits,
    right_in,
)
from training.finetune import image_features
from training.frozen import FROZEN, frozen_right
from training.kept import Kept, kept
from training.lanes.task_queue import TaskJob
from training.malloc import MALLOC_ENVIRONMENT


@dataclass(frozen=True)
class MeasureJob:
    """One test set and what to measure on it.

    Attributes:
        sessions: versions, session by session; the last one is the one that serves.
        task: whose test set to measure; as configured for training, or just a name and a source.
        expert: weights of the task's own expert, as trained; None where they are gone or the task is never trained.
        trained: whether the task is one of the configuration's trained ones; else it is a test set alone.
        modes: other stores that hold the same experts in another mode: (mode, store URL).
        unseen: the never-trained sets, whose labels are asked together with the learned ones.
    """

    address: StoreAddress
    base: Base
    sessions: tuple[int, ...]
    task: TaskJob
    expert: BlobRef | None
    kinds: tuple[str, ...]
    predict: PredictOptions
    trained: bool = True
    modes: tuple[tuple[str, str], ...] = ()
    unseen: tuple[TaskJob, ...] = ()


@dataclass(frozen=True)
class MeasuredSet:
    """What was measured on one test set; right answers are bool [N].

    Attributes:
        sessions: session by session.
        answers: of the last version, in every way of asking.
        expert: right answers of the task's own expert by its texts alone; None where its weights are gone, it has none,
            or the task is never trained.
        modes: likewise of the last version in each other mode, by the mode's name.
        frozen: likewise of the frozen base with each of `FROZEN` on top; empty for a task that is never trained.
        kept: what the decoupled expert keeps of the task's own, by mode, this one's and `modes`; empty where `expert`
            is None.
    """

    sessions: SetMeasure
    answers: AnswerMeasure
    expert: np.ndarray | None
    modes: dict[str, np.ndarray]
    frozen: dict[str, np.ndarray]
    kept: dict[str, Kept] = field(default_factory=dict)


def measure(job: MeasureJob) -> MeasuredSet:
    """Measure one test set in this process."""
    cache, reading = job.address.open_cache(), Reading(job.address, verify=False)
    name, source = job.task.name, job.task.source
    test = job.task.load(reading) if job.trained else load_test_data(name, source, reading)
    loaded = load_set(_base_model(cache, job.base), test)
    versions, views = Versions(cache.store), ViewLoader(cache)
    sessions = [views.load(versions.read(number)) for number in job.sessions]
    foreign = [name for one in job.unseen for name in load_test_data(one.name, one.source, reading).classes]
    over_time, answers = measure_together(
        cache,
        loaded,
        [
            over_sessions(loaded, sessions, kinds=job.kinds, predict=job.predict),
            every_way(loaded, sessions[-1], job.predict, foreign=foreign),
        ],
    )
    own = expert_logits(cache, loaded, job.expert) if job.expert else None
    decoupled = {mode: _other_mode(url, loaded) for mode, url in job.modes}
    modes = {mode: right_in(logits, test) for mode, logits in decoupled.items()}
    if answers.plain is not None:
        decoupled[sessions[-1].manifest.mode["name"]] = answers.plain
    return MeasuredSet(
        sessions=over_time,
        answers=answers,
        expert=right_in(own, test) if own is not None else None,
        modes=modes,
        frozen=_measure_frozen(loaded) if job.trained else {},
        kept={mode: kept(own, logits) for mode, logits in decoupled.items()} if own is not None else {},
    )


@dataclass(frozen=True)
class NotMeasured:
    """Why a node could not measure a set: what it lacks, another node may have."""

    node: str
    host: str
    error: ConduError


class MeasureError(ConduError):
    """A test set that no node could measure."""


def measure_all(
    ray: Any, jobs: Sequence[MeasureJob], on_measured: Callable[[str], None] = lambda _: None
) -> list[MeasuredSet]:
    """Measure every job as a Ray task on one core, all at once, in order.

    A job that fails on one node (without the data, without room for it) is tried on each of the others.

    Raises: MeasureError that names the nodes and what each lacks, once the other jobs are measured; Ray's own error for
        what is not a `ConduError`.
    """
    remote = ray.remote(num_cpus=1, max_retries=2, runtime_env={"env_vars": MALLOC_ENVIRONMENT})(_measure_on_node)
    running = {remote.remote(job): number for number, job in enumerate(jobs)}
    measured: dict[int, MeasuredSet] = {}
    failures: dict[int, list[NotMeasured]] = {}
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        number, answer = running.pop(ready), ray.get(ready)
        if isinstance(answer, MeasuredSet):
            measured[number] = answer
            on_measured(jobs[number].task.name)
            continue
        tried = failures.setdefault(number, [])
        tried.append(answer)
        if other := _untried(ray, tried):
            running[remote.options(scheduling_strategy=other).remote(jobs[number])] = number
    lines = [
        f"  {jobs[number].task.name}: " + "; ".join(f"on {one.host}: {one.error}" for one in tried)
        for number, tried in failures.items()
        if number not in measured
    ]
    if lines:
        raise MeasureError(
            "everything is published, but no node could measure\n" + "\n".join(lines) + "\n"
            "Put the data where a node with a free core sees it and run the same command again, or use --no-evaluate"
        )
    return [measured[number] for number in range(len(jobs))]


def _measure_on_node(job: MeasureJob) -> MeasuredSet | NotMeasured:
    import ray

    try:
        return measure(job)
    except ConduError as error:
        return NotMeasured(ray.get_runtime_context().get_node_id(), socket.gethostname(), error)


def _untried(ray: Any, tried: Sequence[NotMeasured]) -> Any:
    """A strategy that takes a job to a node that has not tried it; None where none is left."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ids = {one.node for one in tried}
    left = [node.id for node in living_nodes(ray) if node.id not in ids and node.resources.get("CPU", 0) >= 1]
    return NodeAffinitySchedulingStrategy(left[0], soft=False) if left else None


def session_history(versions: Versions, manifest: Manifest, tasks: Sequence[str]) -> list[int]:
    """For t = 1..T, the first version that holds exactly the first t tasks, with the experts of `manifest`.

    Shorter than T where such a version is missing: gc removed it, or several experts were fused in one call.
    """
    wanted = [{name: manifest.state.tasks[name].expert_sha256 for name in tasks[: t + 1]} for t in range(len(tasks))]
    found: dict[int, int] = {}
    for number in versions.all_numbers():
        if number > manifest.version:
            break
        try:
            tasks_then = versions.read(number).state.tasks
        except VersionGoneError:
            continue  # gc removed it between the listing and the reading
        held = {name: entry.expert_sha256 for name, entry in tasks_then.items()}
        if held in wanted:
            found.setdefault(wanted.index(held), number)
    return [found[t] for t in sorted(found)]


def _measure_frozen(loaded: LoadedSet) -> dict[str, np.ndarray]:
    """Right answers of the frozen base with each of `FROZEN`, from the task's training images."""
    data, clip = loaded.test, loaded.base.clip
    train, tests = (torch.from_numpy(images.labels) for images in (data.look, data.test))
    features = image_features(clip, data)
    return {name: frozen_right(name, features, train, loaded.features, tests, len(data.classes)) for name in FROZEN}


def _other_mode(url: str, loaded: LoadedSet) -> torch.Tensor:
    """Logits, [N, C], of the expert that another store decouples."""
    cache = NodeCache(open_store(url))
    manifest = Versions(cache.store).newest()
    assert manifest is not None
    return plain_logits(cache, loaded, ViewLoader(cache).load(manifest))


_loaded: dict[str, Clip] = {}


def _base_model(cache: NodeCache, base: Base) -> Clip:
    """The base's model, built once per Ray worker, which measures one test set after another."""
    if base.sha256 not in _loaded:
        _loaded.clear()
        _loaded[base.sha256] = build_clip(base, cache.tensors(base.weights))
    return _loaded[base.sha256]
