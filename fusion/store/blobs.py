"""Blobs: immutable objects named by the sha256 of their bytes and by the nonce of the publisher that wrote them.

The hash makes every read verifiable. The nonce gives every act of writing its own object, even for equal bytes, so that
one publisher or `gc` never deletes what another has written: the commit rule depends on it (`fusion.versions.publish`).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.errors import DamagedBlobError, FormatError
from fusion.store import Store
from fusion.tensors import TensorSpec, TensorWriter, sha256_file


@dataclass(frozen=True)
class BlobRef:
    """A reference to an object in the store. Processes pass references to each other, never weights."""

    key: str
    sha256: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "sha256": self.sha256, "bytes": self.bytes}

    @classmethod
    def from_json(cls, value: Any) -> BlobRef:
        try:
            return cls(key=str(value["key"]), sha256=str(value["sha256"]), bytes=int(value["bytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"not a blob reference (key, sha256, bytes): {value!r}") from error


def new_nonce() -> str:
    """A name for one attempt of one writer: 64 random bits in hex."""
    return secrets.token_hex(8)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and without spaces, in UTF-8; NaN is refused. Equal values have equal bytes everywhere."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def blob_key(sha256: str, nonce: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}-{nonce}"


def put_json(store: Store, value: Any, *, nonce: str) -> BlobRef:
    """Write a JSON blob."""
    body = canonical_json(value)
    sha256 = hashlib.sha256(body).hexdigest()
    key = blob_key(sha256, nonce)
    store.put_if_absent(key, body)  # False: this writer wrote it before, under the same nonce
    return BlobRef(key, sha256, len(body))


def put_file(store: Store, path: Path, *, nonce: str, key: str | None = None) -> BlobRef:
    """Write a file as a blob, or under another key (in which `{sha256}` stands for the hash)."""
    sha256 = sha256_file(path)
    key = key.format(sha256=sha256) if key else blob_key(sha256, nonce)
    num_bytes = path.stat().st_size
    store.put_if_absent(key, path)
    return BlobRef(key, sha256, num_bytes)


def get_json(store: Store, ref: BlobRef) -> Any:
    """Read a JSON blob, verified. Raises `DamagedBlobError`, `BlobNotFoundError`."""
    body = store.get(ref.key)
    check_sha256(hashlib.sha256(body).hexdigest(), ref, store.url)
    return json.loads(body)


def get_plain_json(store: Store, key: str) -> Any:
    """Read a JSON object whose hash is not known. Raises `DamagedBlobError`, `BlobNotFoundError`."""
    body = store.get(key)
    try:
        return json.loads(body)
    except ValueError as error:
        raise DamagedBlobError(f"{store.url}/{key} is damaged: not JSON ({error}). Restore it from a backup") from error


def check_sha256(actual: str, ref: BlobRef, url: str) -> None:
    if actual != ref.sha256:
        raise DamagedBlobError(
            f"{url}/{ref.key} is damaged: its bytes hash to {actual[:12]}…, and its reference says {ref.sha256[:12]}…. "
            "Restore the object from a backup"
        )


@contextmanager
def scratch_file(store: Store, suffix: str = ".safetensors") -> Iterator[Path]:
    """A temporary file in the store's scratch folder, removed at the end (an object linked from it stays)."""
    path = _new_scratch_file(store, suffix)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


class BlobWriter:
    """A safetensors blob that is written piece by piece, then stored or discarded."""

    def __init__(self, store: Store, nonce: str, specs: Mapping[str, TensorSpec]) -> None:
        self._store = store
        self._nonce = nonce
        self._path = _new_scratch_file(store, ".safetensors")
        self._writer = TensorWriter(self._path, specs)
        self.write = self._writer.write
        self._ref: BlobRef | None = None

    @property
    def ref(self) -> BlobRef:
        """The blob's reference, once it is stored."""
        assert self._ref is not None, "the blob is not stored yet"
        return self._ref

    def store(self) -> BlobRef:
        """Hash what was written, and put it into the store. Raises the store's errors."""
        self._writer.finish()
        self._ref = put_file(self._store, self._path, nonce=self._nonce)
        return self._ref

    def discard(self) -> None:
        """Remove the temporary file. A blob that was stored stays."""
        self._writer.close()
        self._path.unlink(missing_ok=True)


def _new_scratch_file(store: Store, suffix: str) -> Path:
    handle, name = tempfile.mkstemp(prefix="write-", suffix=suffix, dir=store.scratch)
    os.close(handle)
    return Path(name)
