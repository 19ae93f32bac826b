"""The node-local cache: blobs as verified local files, shared through mmap by all processes of a node.

If the store is a local folder, the object's own file is used and nothing is copied. Copies of remote blobs stay below a
limit: what was asked for longest ago goes first (`fusion.store.eviction`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from fusion.disk import replacing, writing
from fusion.store import Store
from fusion.store.blobs import BlobRef, check_sha256
from fusion.store.eviction import evict, touch
from fusion.tensors import TensorFile, sha256_file


class NodeCache:
    """Blobs of one store on this node's disk.

    Args:
        store: where blobs come from.
        folder: where copies of remote blobs go; created when first needed. Default: `$CONDU_CACHE`, else
            `$XDG_CACHE_HOME/condu` or `~/.cache/condu`.
        limit_bytes: what all copies of the node together may take; None: half of the disk they are on. What was asked
            for within the last minutes stays even above it: it is in use.
    """

    def __init__(self, store: Store, folder: Path | None = None, *, limit_bytes: int | None = None) -> None:
        self.store = store
        self._folder = folder or default_cache_folder()
        self._limit_bytes = limit_bytes
        self._verified: set[str] = set()
        self._lock = threading.Lock()

    def path(self, ref: BlobRef) -> Path:
        """A local, verified file with the blob's bytes. Don't write to it, and open it soon: in some minutes, another
        process of the node may delete it to make room. An open or mapped file stays readable.

        Raises `DamagedBlobError` when the bytes don't match the hash in `ref`, `BlobNotFoundError` when `gc` deleted
        the blob, `DiskError` when the node's disk has no room for it.
        """
        own = self.store.local_path(ref.key)
        path = own or self._folder / ref.sha256[:2] / ref.sha256
        here = path.is_file() if own else touch(self._folder, path)
        if ref.key in self._verified and here:
            return path
        if own is not None:
            check_sha256(self._hash_own(ref, own), ref, self.store.url)
        elif not _is_whole(path, ref):
            self._download(ref, path)
            evict(self._folder, self._limit_bytes)
        with self._lock:
            self._verified.add(ref.key)
        return path

    def tensors(self, ref: BlobRef) -> TensorFile:
        """A safetensors blob, verified and memory-mapped."""
        return TensorFile(self.path(ref), label=f"{self.store.url}/{ref.key}")

    def _hash_own(self, ref: BlobRef, own: Path) -> str:
        try:
            return sha256_file(own)
        except OSError:
            self.store.get(ref.key, stop=1)  # raises the store's own error: gc deleted the object, or it is unreadable
            raise

    def _download(self, ref: BlobRef, path: Path) -> None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, private=True) as temporary:
                digest = hashlib.sha256()
                with temporary.open("wb") as file:
                    for chunk in self.store.stream(ref.key):
                        digest.update(chunk)
                        file.write(chunk)
                check_sha256(digest.hexdigest(), ref, self.store.url)


def _is_whole(path: Path, ref: BlobRef) -> bool:
    """Whether there is a copy with the right bytes. A damaged copy is fetched again: the store's may be intact."""
    try:
        return path.stat().st_size == ref.bytes and sha256_file(path) == ref.sha256
    except OSError:
        return False


def default_cache_folder() -> Path:
    """`$CONDU_CACHE`, else the user's cache folder."""
    if folder := os.environ.get("CONDU_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "condu"
