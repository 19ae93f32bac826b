"""The node-local cache: blobs as verified local files, shared by every process of a node through mmap.

Where the store is a local folder the object's own file is used and nothing is copied.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from pathlib import Path

from fusion.disk import writing
from fusion.store import Store
from fusion.store.blobs import BlobRef, check_sha256
from fusion.tensors import TensorFile, sha256_file


class NodeCache:
    """Blobs of one store on this node's disk.

    Args:
        store: where blobs come from.
        folder: where copies of remote blobs go; made when first needed. Default: `$CONDU_CACHE`, else
            `$XDG_CACHE_HOME/condu` or `~/.cache/condu`.
    """

    def __init__(self, store: Store, folder: Path | None = None) -> None:
        self.store = store
        self._folder = folder or default_cache_folder()
        self._verified: set[str] = set()
        self._lock = threading.Lock()

    def path(self, ref: BlobRef) -> Path:
        """A local, verified, read-only file with the blob's bytes.

        Raises `DamagedBlobError` when the bytes are not those that `ref` names, `BlobNotFoundError` when `gc` took it,
        `DiskError` when the node's disk can't hold it.
        """
        own = self.store.local_path(ref.key)
        path = own or self._folder / ref.sha256[:2] / ref.sha256
        if ref.key in self._verified and path.is_file():
            return path
        if own is not None:
            check_sha256(self._hash_own(ref, own), ref, self.store.url)
        elif not _is_whole(path, ref):
            self._download(ref, path)
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
            self.store.get(ref.key, stop=1)  # the store's own words for it: gc took the object, or it can't be read
            raise

    def _download(self, ref: BlobRef, path: Path) -> None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix="get-", dir=path.parent)
            temporary = Path(name)
            try:
                digest = hashlib.sha256()
                with os.fdopen(handle, "wb") as file:
                    for chunk in self.store.stream(ref.key):
                        digest.update(chunk)
                        file.write(chunk)
                check_sha256(digest.hexdigest(), ref, self.store.url)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)


def _is_whole(path: Path, ref: BlobRef) -> bool:
    """Whether a copy is there and good. One that went bad is fetched again: the store's need not have."""
    try:
        return path.stat().st_size == ref.bytes and sha256_file(path) == ref.sha256
    except OSError:
        return False


def default_cache_folder() -> Path:
    """`$CONDU_CACHE`, else the user's cache folder."""
    if folder := os.environ.get("CONDU_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "condu"
