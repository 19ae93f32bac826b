"""Probes a store before it is trusted: the calls that condu depends on, made on objects under `probe/`.

`condu doctor` makes all of them; the first publish into a bucket makes the one that versions depend on.

What matters most is the second put of a key. An endpoint that ignores `If-None-Match` answers 200 and overwrites. One
that checks before it locks does the same when two writers arrive at once (SeaweedFS did, seaweedfs#8800). Either way,
two publishers can each believe that they published the same version. So threads also race for keys.

Takes a second or two, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from fusion.errors import ConduError, StoreError
from fusion.store.protocol import Store

FIRST = b"condu probe: the first body of this key, which must stay"
SECOND = b"condu probe: the second body, which must never be read"
NUM_RACES = 3
NUM_RACERS = 4


def check_store(store: Store) -> list[str]:
    """Write, read, list and delete a probe object.

    Returns:
        One sentence per problem, including the store's own errors; empty when all is well.
    """
    key = f"probe/{secrets.token_hex(16)}"
    raced = [f"{key}-race-{number}" for number in range(NUM_RACES)]
    problems: list[str] = []
    try:
        _write(store, key, problems)
        _read(store, key, problems)
        _list(store, key, problems)
        _delete(store, key, problems)
        if not problems:
            _race(store, raced, problems)
    except ConduError as error:
        problems.append(str(error))
    with contextlib.suppress(ConduError):  # a probe that could not be written need not be removed
        for probe in (key, *raced):
            store.delete(probe)
    return problems


def prove_conditional_writes(store: Store) -> None:
    """Write one probe object twice. Raises `StoreError` unless the second write is refused."""
    key = f"probe/{secrets.token_hex(16)}"
    problems: list[str] = []
    try:
        _write(store, key, problems)
    finally:
        with contextlib.suppress(ConduError):
            store.delete(key)
    if problems:
        raise StoreError(f"{problems[0]} Nothing was published. `condu doctor` makes further checks")


def _write(store: Store, key: str, problems: list[str]) -> None:
    if not store.put_if_absent(key, FIRST) and store.get(key) != FIRST:  # False with our body: the reply was lost
        problems.append(f"{store.url} says that {key}, a new random name, was taken: do not use this store.")
    if store.put_if_absent(key, SECOND):
        problems.append(
            f"{store.url} accepted a second write of the same key: it ignores If-None-Match, so two publishers could "
            "overwrite each other's version. Use a release or a provider that honours conditional writes."
        )


def _read(store: Store, key: str, problems: list[str]) -> None:
    whole = store.get(key)
    if whole == SECOND:
        problems.append(f"{store.url} kept the second body of a key, not the first: versions would be overwritten.")
    elif whole != FIRST:
        problems.append(f"{store.url} returned other bytes than were written ({len(whole)} instead of {len(FIRST)}).")
    if store.get(key, start=6, stop=11) != whole[6:11]:
        problems.append(f"{store.url} does not honour ranges: a request for 5 bytes returned other bytes.")
    if b"".join(store.stream(key, chunk_bytes=16)) != whole:
        problems.append(f"{store.url} streams other bytes than it returns in one piece.")
    found = store.head(key)
    if found is None or found.bytes != len(whole):
        problems.append(f"{store.url} reports {found.bytes if found else 'no'} bytes for an object of {len(whole)}.")


def _list(store: Store, key: str, problems: list[str]) -> None:
    if [info.key for info in store.list(key)] != [key]:
        problems.append(
            f"{store.url} does not list an object that it holds ({key}): finding the newest version depends on that."
        )
    if any(info.key <= key for info in store.list("probe/", start_after=key)):
        problems.append(f"{store.url} ignores where a listing starts: old versions would be mistaken for new ones.")


def _delete(store: Store, key: str, problems: list[str]) -> None:
    store.delete(key)
    store.delete(key)  # repeating a delete must not fail
    if store.head(key) is not None:
        problems.append(f"{store.url} still has an object after reporting that it was deleted ({key}).")


def _race(store: Store, raced: list[str], problems: list[str]) -> None:
    def put(key: str, number: int, start: threading.Barrier) -> bool:
        start.wait()
        return store.put_if_absent(key, b"%d" % number)

    for key in raced:
        start = threading.Barrier(NUM_RACERS)
        with ThreadPoolExecutor(NUM_RACERS) as pool:
            won = [pool.submit(put, key, number, start) for number in range(NUM_RACERS)]
        if sum(future.result() for future in won) > 1:
            problems.append(
                f"{store.url} let several writers of one key succeed at once: it checks before it locks, so two "
                "publishers could overwrite each other's version. Use a newer release or another provider."
            )
            return
