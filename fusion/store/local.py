"""A folder as the object store: the embedded default, on a local disk or a shared file system.

An object appears through one `os.link`, which is atomic: it is completely there or not at all, and of two writers one
wins. It is durable when `put_if_absent` returns: the file is fsynced before the link, and every folder from it up to
the root after it. That is 3-4 fsyncs per object, the price of a commit point without a server.

Objects are read-only files, readable by everyone who may read the root. A killed writer leaves a file in `<root>/tmp/`,
which no call ever shows; empty folders remain after a delete. Needs a file system with hard links.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from fusion.disk import FULL
from fusion.errors import StoreAccessError, StoreError, StoreUnavailableError, StoreUrlError
from fusion.store.keys import check_key, check_prefix, check_range, is_key, not_found
from fusion.store.protocol import ObjectInfo

SCRATCH = "tmp"

_ADVICE = {
    errno.EACCES: "give this user read and write permission on the folder, or use another store",
    errno.EPERM: "the file system forbids it: use one that has hard links, and on which this user may write",
    errno.EXDEV: "the whole store, including tmp/, must be on one file system",
    errno.EROFS: "it is mounted read-only: mount it for writing, or use another store",
    **FULL,
    errno.ENOENT: "a folder on this path does not exist and can't be created: check the store's URL",
    errno.ENOTDIR: "a part of this path is a file where a folder is needed: check the store's URL",
    errno.EEXIST: "a part of this path is a file where a folder is needed: check the store's URL",
    errno.ELOOP: "its symbolic links form a loop: repair them",
}
_NO_ANSWER = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN}


class LocalStore:
    """A `Store` in the folder that a `file:///…` URL names (percent-decoded).

    Nothing is created before the first write, so a store that does not exist yet reads as empty.
    """

    needs_probe = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.root = _folder_of(url)

    def __reduce__(self) -> tuple[type[LocalStore], tuple[str]]:
        return LocalStore, (self.url,)

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    @property
    def scratch(self) -> Path:
        """`<root>/tmp`, created on first use. Objects are linked from it, not copied."""
        folder = self.root / SCRATCH
        with self._explained("write", SCRATCH):
            self._make_folders(folder)
        return folder

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object, or all. A range beyond the end is cut short. See `Store.get`."""
        check_range(self.url, key, start, stop)
        with self._explained("read", key), open(self._file(key), "rb", buffering=0) as file:
            file.seek(start)
            size = os.fstat(file.fileno()).st_size if stop is None else stop
            return b"".join(_chunks(file, size - start, 1 << 30))

    def stream(self, key: str, *, chunk_bytes: int = 8 << 20) -> Iterator[bytes]:
        """An object in chunks. `BlobNotFoundError` is raised when the first chunk is read."""
        with self._explained("read", key), open(self._file(key), "rb", buffering=0) as file:
            yield from _chunks(file, os.fstat(file.fileno()).st_size, chunk_bytes)

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time of an object, or None."""
        path = self._file(key)
        try:
            with self._explained("read", key):
                found = path.stat()
                return _info(key, found) if stat.S_ISREG(found.st_mode) else None
        except StoreError as error:
            if _is_missing(error.__cause__) and self._may_lack():
                return None
            raise

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        """Write an object unless the key is taken. True: it is durable. See `Store.put_if_absent`.

        A file in `scratch` becomes the object itself, read-only, without a copy. Any other file is copied: it belongs
        to the user, who may overwrite it in place tomorrow, and the object must not change with it.
        On NFS, as on S3, a call may return False after its own success: the reply to a link can be lost there too.
        """
        target = self._file(key)
        if isinstance(body, Path) and not body.is_file():
            raise StoreError(f"{body} can't be stored as {self.url}/{key}: there is no such file")
        with self._explained("write", key):
            won = not os.path.lexists(target) and self._link(target, body)
            if not won and target.is_dir():
                raise StoreError(f"{self.url}/{key} can't be written: {key + '/'!r} is a prefix of other objects")
            self._sync_folders(target.parent)  # the loser syncs too: what it builds on must survive a power cut
        return won

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects under `prefix` in the byte order of their keys. Memory: the names of one folder per level."""
        check_prefix(self.url, prefix)
        folder = prefix.rpartition("/")[0]
        return self._walk(folder + "/" if folder else "", prefix, start_after)

    def delete(self, key: str) -> None:
        """Remove an object. Does nothing if there is none."""
        path = self._file(key)
        try:
            with self._explained("delete", key):
                path.unlink()
        except StoreError as error:
            if not (_is_missing(error.__cause__) and self._may_lack()):
                raise

    def local_path(self, key: str) -> Path | None:
        """The object's own file, or None if there is no such object."""
        path = self._file(key)
        return path if path.is_file() else None

    def stale_scratch(self, untouched_s: float) -> Sequence[Path]:
        """Files in `scratch` that have not been written to for this long: their writers were killed.

        A writer works on its file without a pause, so after hours of silence it is dead, on whichever node it was.
        """
        folder = self.root / SCRATCH
        if not folder.is_dir():
            return []
        limit = time.time() - untouched_s
        with os.scandir(folder) as entries:
            return sorted(Path(e.path) for e in entries if e.is_file(follow_symlinks=False) and _touched(e) < limit)

    def _file(self, key: str) -> Path:
        return self.root / check_key(self.url, key)

    def _link(self, target: Path, body: bytes | Path) -> bool:
        self._make_folders(target.parent)
        with self._ready_file(body) as source:
            try:
                os.link(source, target)
            except FileExistsError:
                return False
            self._sync_folders(target.parent)
        return True

    @contextmanager
    def _ready_file(self, body: bytes | Path) -> Iterator[Path]:
        """A file on the store's file system that holds the body, fsynced and read-only."""
        scratch = self.scratch
        mode = 0o400 | (0o444 & self.root.stat().st_mode)
        if isinstance(body, Path) and body.resolve().is_relative_to(scratch.resolve()) and not body.is_symlink():
            body.chmod(mode)  # with mkstemp's 0600 no other user could read the object
            _sync(body)
            yield body
            return
        temporary = scratch / f"put-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            if isinstance(body, Path):
                shutil.copyfile(body, temporary)
            else:
                temporary.write_bytes(body)
            temporary.chmod(mode)
            _sync(temporary)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _make_folders(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            _sync(new.parent)

    def _sync_folders(self, folder: Path) -> None:
        while True:
            _sync(folder)
            if folder == self.root:
                return
            folder = folder.parent

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """Objects below `folder` ('' or ending in '/'). Folders sort as `name/`: the order of full keys."""
        for name, entry in self._names(folder):
            key = folder + name
            if name.endswith("/"):
                overlaps = key.startswith(prefix) or prefix.startswith(key)
                if overlaps and (key > start_after or start_after.startswith(key)):
                    yield from self._walk(key, prefix, start_after)
            elif key.startswith(prefix) and key > start_after:
                try:
                    yield _info(key, entry.stat())
                except FileNotFoundError:
                    continue  # deleted during the listing

    def _names(self, folder: str) -> Sequence[tuple[str, os.DirEntry[str]]]:
        try:
            with self._explained("list", folder), os.scandir(self.root / folder) as entries:
                names = [(entry.name + "/" if entry.is_dir() else entry.name, entry) for entry in entries]
        except StoreError as error:
            if _is_missing(error.__cause__) and self._may_lack():
                return []
            raise
        return sorted((pair for pair in names if is_key(folder + pair[0].removesuffix("/"))), key=lambda pair: pair[0])

    def _may_lack(self) -> bool:
        """Whether 'no such file' means a missing object, and not a root below something that is not a folder."""
        nearest = self.root
        while not os.path.lexists(nearest):
            nearest = nearest.parent
        return nearest.is_dir()

    @contextmanager
    def _explained(self, doing: str, key: str) -> Iterator[None]:
        """Turns an `OSError` into one of our errors, with the URL, the key and the next step."""
        try:
            yield
        except OSError as error:
            if doing == "read" and _is_missing(error) and self._may_lack():
                raise not_found(self.url, key) from error
            what = f"can't {doing} {self.url}/{key} ({error.strerror or error})"
            if error.errno in _NO_ANSWER:
                raise StoreUnavailableError(
                    f"{what}: the file system does not answer. Check the disk or mount"
                ) from error
            if error.errno in _ADVICE:
                raise StoreAccessError(f"{what}: {_ADVICE[error.errno]}") from error
            raise StoreError(f"{what}: check the folder {self.root}") from error


def _folder_of(url: str) -> Path:
    path = unquote(url.removeprefix("file://"))
    if not url.startswith("file:///") or "\0" in path or not path.strip("/"):
        raise StoreUrlError(
            f"{url!r} does not name a folder on this machine: write file:/// and an absolute path below '/', such as "
            "file:///data/condu (a space as %20)"
        )
    return Path(os.path.normpath("/" + path.strip("/")))


def _touched(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return float("inf")  # its writer has just finished


def _is_missing(error: BaseException | None) -> bool:
    return isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, found.st_mtime)


def _chunks(file: IO[bytes], num_bytes: int, chunk_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0 and (chunk := file.read(min(num_bytes, chunk_bytes))):
        num_bytes -= len(chunk)
        yield chunk


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems can't sync a folder
            raise
    finally:
        os.close(handle)
