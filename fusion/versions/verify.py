"""Verifying a store: every object that a kept version names, read and hashed once.

Each problem is reported with every version and task that it affects: all that it takes to restore objects from a
backup, or to roll back to an intact version.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from fusion.errors import BlobNotFoundError, ConduError, DamagedBlobError, FormatError, StoreError
from fusion.store import Store
from fusion.store.blobs import BlobRef, check_sha256
from fusion.versions.history import Versions, manifest_key, nothing_published
from fusion.versions.manifest import Manifest
from fusion.versions.references import read_manifests, read_records, refs_of
from fusion.versions.state import TaskRecord

DEFAULT_THREADS = 8


@dataclass(frozen=True)
class Finding:
    """One object that is missing or damaged, and the versions and tasks that it affects."""

    key: str
    problem: str
    versions: tuple[int, ...]
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """What was read, and what is wrong with it."""

    versions: tuple[int, ...]
    num_objects: int
    num_bytes: int
    findings: tuple[Finding, ...]


@dataclass
class _Uses:
    """References to objects, and the versions and tasks that lead to each."""

    versions: defaultdict[BlobRef, set[int]] = field(default_factory=lambda: defaultdict(set))
    tasks: defaultdict[BlobRef, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, refs: Iterable[BlobRef], versions: Iterable[int], tasks: Iterable[str] = ()) -> None:
        for ref in refs:
            self.versions[ref].update(versions)
            self.tasks[ref].update(tasks)

    def finding(self, ref: BlobRef, error: ConduError) -> Finding:
        problem = str(error)
        return Finding(ref.key, problem, tuple(sorted(self.versions[ref])), tuple(sorted(self.tasks[ref])))


def verify(versions: Versions, *, num_threads: int = DEFAULT_THREADS) -> Verification:
    """Hash every manifest that is kept and every object that one of them leads to, each once, streamed.

    Memory: a chunk of 8 MiB per thread, and the references. A version that gc deletes meanwhile is not a finding.

    Raises: UnknownVersionError when nothing was published; the store's errors when it does not answer.
    """
    store = versions.store
    objects, records = _Uses(), _Uses()
    kept = _kept(versions)
    findings, num_bytes = _read_manifests(versions, kept, objects, records)
    for ref, record in read_records(store, records.versions).items():
        if isinstance(record, TaskRecord):
            objects.add(refs_of(record), records.versions[ref], records.tasks[ref])
            num_bytes += ref.bytes
        else:
            findings.append(records.finding(ref, _bad(record)))
    with ThreadPoolExecutor(num_threads) as pool:
        for ref, error in zip(objects.versions, pool.map(partial(_hash, store), objects.versions), strict=True):
            if error is None:
                num_bytes += ref.bytes
            else:
                findings.append(objects.finding(ref, error))
    num_objects = len(kept) + len(records.versions) + len(objects.versions)
    return Verification(tuple(kept), num_objects, num_bytes, tuple(_still_kept(versions, findings)))


def _kept(versions: Versions) -> list[int]:
    """Numbers of the versions that should exist, ascending, according to the newest intact manifest."""
    newest = versions.newest_number()
    if newest == 0:
        raise nothing_published(versions.store)
    for _, found in read_manifests(versions, reversed(versions.all_numbers())):
        if isinstance(found, Manifest):
            return sorted({*found.pinned, *range(found.oldest_kept, newest + 1)})
        _bad(found)
    return versions.all_numbers()


def _read_manifests(
    versions: Versions, numbers: Sequence[int], objects: _Uses, records: _Uses
) -> tuple[list[Finding], int]:
    """What is wrong with manifests, and the bytes of the intact ones; records what they name."""
    findings: list[Finding] = []
    num_bytes = 0
    above: Manifest | None = None
    for number, found in read_manifests(versions, reversed(numbers)):
        if isinstance(found, ConduError):
            findings.append(Finding(manifest_key(number), str(_bad(found)), (number,)))
            continue
        if above and above.parent and above.parent.version == number and above.parent.sha256 != found.sha256:
            text = f"version {above.version} was built on a different manifest"
            findings.append(Finding(manifest_key(number), text, (number, above.version)))
        above = found
        num_bytes += len(found.to_bytes())
        objects.add((found.base.weights, *found.state.shared.values()), (number,))
        for task, entry in found.state.tasks.items():
            records.add((entry.record,), (number,), (task,))
    return findings, num_bytes


def _hash(store: Store, ref: BlobRef) -> ConduError | None:
    digest = hashlib.sha256()
    try:
        for chunk in store.stream(ref.key):
            digest.update(chunk)
        check_sha256(digest.hexdigest(), ref, store.url)
    except (BlobNotFoundError, DamagedBlobError) as error:
        return error
    return None


def _bad(error: ConduError) -> ConduError:
    """The error, if the object itself is bad. Raises any other: a store that does not answer is not a finding."""
    if isinstance(error, StoreError) and not isinstance(error, BlobNotFoundError | DamagedBlobError | FormatError):
        raise error
    return error


def _still_kept(versions: Versions, findings: Sequence[Finding]) -> list[Finding]:
    """Findings, without versions that gc has deleted meanwhile."""
    if not findings:
        return []
    kept = set(_kept(versions))
    return [f for f in findings if kept.intersection(f.versions)]
