"""What versions name: from many manifests to their records, and from these to every object that they need.

Manifests and records are small and many, so they are read with several threads: a store with a thousand of either is
read in seconds although each costs a round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from fusion.errors import ConduError, FormatError
from fusion.store import Store
from fusion.store.blobs import BlobRef, get_json
from fusion.versions.history import Versions
from fusion.versions.manifest import Manifest
from fusion.versions.state import TaskRecord

READ_THREADS = 16


def read_manifests(versions: Versions, numbers: Iterable[int]) -> Iterator[tuple[int, Manifest | ConduError]]:
    """Versions in the order of `numbers`; for one that can't be read, its error. Memory: a few manifests."""

    def read(number: int) -> Manifest | ConduError:
        try:
            return versions.read(number)
        except ConduError as error:
            return error

    rest = iter(numbers)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        while some := list(islice(rest, READ_THREADS)):
            yield from zip(some, pool.map(read, some), strict=True)


def read_records(store: Store, refs: Iterable[BlobRef]) -> dict[BlobRef, TaskRecord | ConduError]:
    """Records, verified; for one that can't be read, its error."""

    def read(ref: BlobRef) -> TaskRecord | ConduError:
        try:
            return TaskRecord.from_json(get_json(store, ref))
        except FormatError as error:
            return FormatError(f"{store.url}/{ref.key}: {error}")
        except ConduError as error:
            return error

    distinct = list(dict.fromkeys(refs))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return dict(zip(distinct, pool.map(read, distinct), strict=True))


def whole_records(store: Store, refs: Iterable[BlobRef]) -> dict[BlobRef, TaskRecord]:
    """Records, verified. Raises the error of the first that can't be read."""
    whole = {}
    for ref, record in read_records(store, refs).items():
        if isinstance(record, ConduError):
            raise record
        whole[ref] = record
    return whole


def record_refs(manifest: Manifest) -> list[BlobRef]:
    return [entry.record for entry in manifest.state.tasks.values()]


def refs_of(record: TaskRecord) -> list[BlobRef]:
    """The objects that a record names."""
    return [ref for ref in (record.trigger, record.prototypes, record.archive, record.evidence) if ref]


def named_by(manifest: Manifest, records: Mapping[BlobRef, TaskRecord]) -> set[BlobRef]:
    """Every object that a version needs: the base, what tasks share, records, and what the records name."""
    own = {manifest.base.weights, *manifest.state.blobs()}
    return own.union(*(refs_of(records[ref]) for ref in record_refs(manifest)))
