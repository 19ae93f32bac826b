"""Names of objects, checked the same way by every store, so that what one store keeps any other can hold.

A key is relative, `/`-separated, at most 1024 bytes of UTF-8 with at most 255 a part (S3 has the first limit,
file systems the second). `tmp/` belongs to the stores themselves.
"""

from __future__ import annotations

from fusion.errors import BlobNotFoundError, StoreError

MAX_KEY_BYTES = 1024
MAX_PART_BYTES = 255


def check_key(url: str, key: str) -> str:
    """`key` itself. Raises `StoreError` for one that leaves the store, or that some store can't hold."""
    problem = _problem(key.split("/")) or ("it is too long" if len(_utf8(key)) > MAX_KEY_BYTES else None)
    if problem:
        raise StoreError(
            f"{key!r} is no key for an object of {url}: {problem}. Keys are relative, such as 'blobs/ab/abcd': "
            "parts between single slashes, none of them '.' or '..', no backslash and no control character"
        )
    return key


def is_key(key: str) -> bool:
    """Whether `key` could be an object of ours. False for folder markers and stray files of others."""
    return _problem(key.split("/")) is None and len(_utf8(key)) <= MAX_KEY_BYTES


def check_prefix(url: str, prefix: str) -> str:
    """`prefix` itself: the beginning of a key, so it may be empty, end in `/`, or break off inside a part."""
    *parts, beginning = prefix.split("/")
    problem = _problem(parts) or _problem(["x" + beginning])  # the x: a mere beginning may be '', '.' or 'tmp'
    if problem:
        raise StoreError(
            f"{prefix!r} begins no key of {url}: {problem}. A prefix is the beginning of a relative key, such as "
            "'versions/'"
        )
    return prefix


def check_range(url: str, key: str, start: int, stop: int | None) -> None:
    """Raises `StoreError` unless 0 <= start <= stop. A stop beyond the end is fine: the object ends first."""
    if start < 0 or (stop is not None and stop < start):
        raise StoreError(f"{url}/{key} has no bytes [{start}, {stop}): a range needs 0 <= start <= stop")


def not_found(url: str, key: str) -> BlobNotFoundError:
    """The error for an object that is not there."""
    return BlobNotFoundError(
        f"{url} has no object {key!r}. If a version names it, somebody deleted the "
        "object, or the version is gone: read the newest version again"
    )


def _problem(parts: list[str]) -> str | None:
    for number, part in enumerate(parts):
        if part == "":
            return "it is absolute" if number == 0 and len(parts) > 1 else "it has an empty part"
        if part in (".", ".."):
            return f"{part!r} is a part of it"
        if "\\" in part or any(ord(char) < 32 or ord(char) == 127 for char in part):
            return "it has a backslash or a control character"
        if any("\ud800" <= char <= "\udfff" for char in part):
            return "it is not text that UTF-8 can hold"
        if len(_utf8(part)) > MAX_PART_BYTES:
            return f"a part of it is longer than {MAX_PART_BYTES} bytes"
    if parts and parts[0] == "tmp":
        return "'tmp/' is kept for the store's own temporary files"
    return None


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")
