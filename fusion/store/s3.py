"""S3 as the object store: Amazon's, or any endpoint that honours `If-None-Match` (`condu doctor` checks that).

Every write carries `If-None-Match: *`: `put_object` up to 64 MiB, above that our own multipart upload. Peak memory:
one piece of 1 MiB for a stream, 4 parts of 16 MiB for an upload.

**`put_if_absent` may return False after its own success**: when the reply to a write is lost, the client tries again
and finds its own object. A caller that needs to know reads the object back.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from fusion.backoff import delays_s
from fusion.disk import scratch_folder, writing
from fusion.errors import (
    BlobNotFoundError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
    StoreUrlError,
)
from fusion.store.keys import check_key, check_prefix, check_range, is_key, not_found
from fusion.store.protocol import ObjectInfo
from fusion.store.s3_client import S3Client
from fusion.store.s3_errors import BROKEN_STREAM, KeyTakenError, WriteConflictError, code_of, explain
from fusion.store.s3_options import S3Options
from fusion.store.s3_upload import upload_parts

logger = logging.getLogger(__name__)

MULTIPART_ABOVE_BYTES = 64 << 20
PIECE_BYTES = 1 << 20
NUM_RETRIES = 5
"""For a write that met another one, and for a stream that broke before a new byte arrived. On top of boto3's own."""


class S3Store:
    """A `Store` under `s3://bucket/prefix`. Sends no request before its first call.

    It may be created before a fork, and is pickled as its URL and options.
    """

    needs_probe = True

    def __init__(self, url: str, *, options: S3Options | None = None) -> None:
        bucket, self._prefix = _bucket_and_prefix(url)
        self.url = url.rstrip("/")
        self.options = options or S3Options()
        self._client = S3Client(self.url, bucket, self.options)
        self._bucket_seen = False

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return partial(S3Store, options=self.options), (self.url,)

    def __repr__(self) -> str:
        return f"S3Store({self.url!r}, options={self.options!r})"

    @property
    def scratch(self) -> Path:
        """A temporary folder of this process, created on first use and removed when the process ends."""
        return _scratch_of_process(os.getpid())

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object, or all. A range beyond the end is cut short.

        Peak memory: twice the result; use `stream` for large objects.
        """
        check_range(self.url, key, start, stop)
        return b"".join(self._pieces(check_key(self.url, key), start, stop, PIECE_BYTES))

    def stream(self, key: str, *, chunk_bytes: int = 8 << 20) -> Iterator[bytes]:
        """An object in chunks of at most 1 MiB, so that little is fetched twice when a connection breaks.

        A broken stream resumes where it stopped. `BlobNotFoundError` is raised when the first chunk is read.
        """
        return self._pieces(check_key(self.url, key), 0, None, min(chunk_bytes, PIECE_BYTES))

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time of an object, or None."""
        try:
            found = self._client.call("head_object", key, Key=self._name(key))
        except BlobNotFoundError:
            self._check_bucket()  # a HEAD response has no body that would tell a missing bucket from a missing key
            return None
        return _info(key, found, found["ContentLength"])

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        """Write an object unless the key is taken. False may hide this call's own success: see the module."""
        self._name(key)
        if isinstance(body, Path) and not body.is_file():
            raise StoreError(f"{body} can't be stored as {self.url}/{key}: there is no such file")
        num_bytes = body.stat().st_size if isinstance(body, Path) else len(body)
        if num_bytes > MULTIPART_ABOVE_BYTES and self.head(key) is not None:
            return False  # saves an upload that would be refused
        for delay_s in islice(delays_s(0.1, jitter=0.5), NUM_RETRIES):
            try:
                return self._put(key, body, num_bytes)
            except WriteConflictError as error:
                logger.info("write conflict url=%s key=%s error=%s", self.url, key, error)
                time.sleep(delay_s)
        try:
            return self._put(key, body, num_bytes)
        except WriteConflictError as error:
            raise StoreUnavailableError(f"{error}: other writers keep writing this key. Try again later") from error

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects under `prefix` in the byte order of their keys, 1000 per request; 0.5 KB of memory each.

        The whole listing is read before the first object is yielded, and `StartAfter` is not sent: an endpoint that
        is built on folders (SeaweedFS) lists `a/1` before `a-b`, and omits keys when it is told where to start.
        """
        check_prefix(self.url, prefix)
        return self._listed(prefix, start_after)

    def delete(self, key: str) -> None:
        """Remove an object. Does nothing if there is none."""
        try:
            self._client.call("delete_object", key, Key=self._name(key))
        except BlobNotFoundError:  # Amazon answers 204 here, some endpoints 404
            self._check_bucket()

    def local_path(self, key: str) -> Path | None:
        """None: an object on S3 is not a local file."""
        check_key(self.url, key)
        return None

    def stale_scratch(self, untouched_s: float) -> Sequence[Path]:
        """None: the scratch folder belongs to one process, which removes it."""
        return ()

    def _shows(self, key: str) -> bool:
        return is_key(key)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(self.url, key)

    def _put(self, key: str, body: bytes | Path, num_bytes: int) -> bool:
        chosen = {
            "ServerSideEncryption": self.options.server_side_encryption,
            "SSEKMSKeyId": self.options.sse_kms_key_id,
        }
        encryption = {name: value for name, value in chosen.items() if value}
        call = partial(self._client.call, key=key, Key=self._name(key))
        try:
            if num_bytes > MULTIPART_ABOVE_BYTES:
                is_taken = partial(self._is_taken, key)
                upload_parts(call, body, num_bytes, is_taken=is_taken, encryption=encryption)
            elif isinstance(body, Path):
                with open(body, "rb") as file:
                    call("put_object", Body=file, IfNoneMatch="*", **encryption)
            else:
                call("put_object", Body=body, IfNoneMatch="*", **encryption)
        except KeyTakenError:
            return False
        return True

    def _is_taken(self, key: str) -> bool:
        return self.head(key) is not None

    def _listed(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        found = []
        position: dict[str, str] = {}
        while True:
            page = self._client.call("list_objects_v2", prefix, Prefix=self._prefix + prefix, **position)
            for entry in page.get("Contents", []):
                key = entry["Key"].removeprefix(self._prefix)
                if self._shows(key) and key > start_after:
                    found.append(_info(key, entry, entry["Size"]))
            if not page.get("IsTruncated"):
                break
            position = {"ContinuationToken": page["NextContinuationToken"]}
        yield from sorted(found, key=lambda info: info.key)

    def _pieces(self, key: str, start: int, stop: int | None, piece_bytes: int) -> Iterator[bytes]:
        """The bytes [start, stop), requested again from where the connection broke."""
        if start == stop:
            if self.head(key) is None:
                raise not_found(self.url, key)
            return
        position, retries = start, _stream_retries()
        while True:
            try:
                response = self._ranged(key, position, stop)
                if response is None:
                    return
                end = position + response["ContentLength"]
                with closing(response["Body"]) as body:
                    while piece := body.read(piece_bytes):
                        position, retries = position + len(piece), _stream_retries()
                        yield piece
                if position >= end:
                    return
                raise ConnectionError(f"the response ended {end - position} bytes early")
            except BROKEN_STREAM as error:
                delay_s = next(retries, None)
                if delay_s is None:
                    raise explain(error, "get_object", self.url, key, self._client.endpoint) from error
                logger.info("stream broke url=%s key=%s at=%d error=%s", self.url, key, position, error)
                time.sleep(delay_s)

    def _ranged(self, key: str, start: int, stop: int | None) -> Any:
        """The response to a get of [start, stop), or None if the object ends before `start`."""
        if start == 0 and stop is None:
            return self._client.call("get_object", key, Key=self._name(key))
        wanted = f"bytes={start}-{'' if stop is None else stop - 1}"
        try:
            response = self._client.call("get_object", key, Key=self._name(key), Range=wanted)
        except StoreError as error:
            if code_of(error) in ("InvalidRange", "416"):
                return None
            raise
        if not response.get("ContentRange", "").startswith(f"bytes {start}-"):
            raise StoreAccessError(
                f"{self._client.endpoint} answered a request for {wanted} of {self.url}/{key} with other bytes: "
                "it ignores the Range header, which condu depends on. Use another endpoint"
            )
        return response

    def _check_bucket(self) -> None:
        if self._bucket_seen:
            return
        try:
            self._client.call("head_bucket", "")
        except StoreAccessError as error:
            if code_of(error) not in ("403", "AccessDenied"):  # not allowed to look: then the key is what is missing
                raise
        self._bucket_seen = True


def _bucket_and_prefix(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.rstrip("/").removeprefix("s3://").partition("/")
    if "@" in bucket:
        raise StoreUrlError(
            "the store's URL has an '@' before its first slash: credentials don't belong in a URL. Write "
            "s3://bucket/prefix, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not url.startswith("s3://") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise StoreUrlError(f"{url!r} does not name a bucket: write s3://bucket/prefix, such as s3://models/condu")
    if "?" in prefix or "#" in prefix or not is_key(f"x/{prefix or 'x'}"):
        raise StoreUrlError(
            f"{url!r} has a prefix that no key can start with: write s3://bucket/prefix, with single slashes and "
            "without '?' and '#'. Endpoint and region are options, not parts of the URL"
        )
    return bucket, prefix + "/" if prefix else ""


def _info(key: str, found: Any, num_bytes: int) -> ObjectInfo:
    return ObjectInfo(key, num_bytes, found["LastModified"].timestamp(), found.get("ETag", "").strip('"'))


def _stream_retries() -> Iterator[float]:
    return islice(delays_s(0.2, jitter=0.5), NUM_RETRIES)


_scratch: dict[int, Path] = {}
_scratch_lock = threading.Lock()


def _scratch_of_process(pid: int) -> Path:
    with _scratch_lock:
        if pid not in _scratch:
            with writing(Path(tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp")):
                _scratch[pid] = scratch_folder("condu-scratch-")
        return _scratch[pid]
