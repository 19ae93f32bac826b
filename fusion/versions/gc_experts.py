"""What finished trainings left under `experts/` and nobody needs any more.

Records stay, because they are small, and with them `condu run` trains nothing twice. For every record these objects are
deleted: resumable states, counts of attempts, weights that the training wrote and the record does not name, and the
record's own weights once the newest version holds that expert. Files that a kept version names as its archive stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

from fusion.store import ObjectInfo, Store
from fusion.store.blobs import get_plain_json
from fusion.versions.experts import ExpertRecord, record_key
from fusion.versions.manifest import Manifest

_READ_THREADS = 16


def spent_experts(store: Store, newest: Manifest, named: Collection[str]) -> Iterator[ObjectInfo]:
    """Objects under `experts/` that are no longer needed.

    Args:
        newest: the newest version, which tells whose weights are fused.
        named: keys that kept versions name.
    Raises: FormatError, DamagedBlobError when a record can't be read.
    """
    records: list[str] = []
    files: defaultdict[str, list[ObjectInfo]] = defaultdict(list)
    for info in store.list("experts/"):
        identity, _, rest = info.key.removeprefix("experts/").partition("/")
        if rest:
            files[identity].append(info)
        elif identity.endswith(".json"):
            records.append(identity.removesuffix(".json"))
    finished = [identity for identity in records if identity in files]
    held = {entry.expert_sha256 for entry in newest.state.tasks.values()}

    def spent(identity: str) -> list[ObjectInfo]:
        record = ExpertRecord.from_json(get_plain_json(store, record_key(identity)))
        stays = {ref.key for ref in (record.prototypes, record.evidence) if ref}
        if record.expert and record.expert.sha256 not in held:
            stays.add(record.expert.key)
        return [info for info in files[identity] if info.key not in stays and info.key not in named]

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for found in pool.map(spent, finished):
            yield from found
