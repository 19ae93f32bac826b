"""Names of objects, checked in the same way by every store, so that an object of one store fits into any other.

A key is relative, `/`-separated, and at most 1024 bytes of UTF-8, with at most 255 per part (S3 has the first limit,
file systems have the second). `tmp/` is reserved for the stores themselves.
"""

from __future__ import annotations

from fusion.errors import BlobNotFoundError, StoreError

MAX_KEY_BYTES = 1024
MAX_PART_BYTES = 255


def check_key(url: str, key: str) -> str:
    """Returns `key`. Raises `StoreError` for a key that leads out of the store, or that some store can't hold."""
    problem = _problem(key.split("/")) or ("it is too long" if len(_utf8(key)) > MAX_KEY_BYTES else None)
    if problem:
        raise StoreError(
            f"{key!r} is not a valid key in {url}: {problem}. Keys are relative, such as 'blobs/ab/abcd': parts "
            "between single slashes, none of them '.' or '..', without backslashes and control characters"
        )
    return key


def is_key(key: str) -> bool:
    """Whether `key` could be one of our objects. False for folder markers and stray files."""
    return _problem(key.split("/")) is None and len(_utf8(key)) <= MAX_KEY_BYTES


def check_prefix(url: str, prefix: str) -> str:
    """Returns `prefix`, the beginning of a key: it may be empty, end in `/`, or break off inside a part."""
    *parts, beginning = prefix.split("/")
    problem = _problem(parts) or _problem(["x" + beginning])  # x: the beginning of a part may be '', '.' or 'tmp'
    if problem:
        raise StoreError(
            f"no key in {url} can start with {prefix!r}: {problem}. A prefix is the beginning of a relative key, such "
            "as 'versions/'"
        )
    return prefix


def check_range(url: str, key: str, start: int, stop: int | None) -> None:
    """Raises `StoreError` unless 0 <= start <= stop. `stop` may lie beyond the object's end."""
    if start < 0 or (stop is not None and stop < start):
        raise StoreError(f"{url}/{key} has no bytes [{start}, {stop}): a range needs 0 <= start <= stop")


def not_found(url: str, key: str) -> BlobNotFoundError:
    """The error for a missing object."""
    return BlobNotFoundError(
        f"{url} has no object {key!r}. If a version names it, the object was deleted, or the version is gone: read the "
        "newest version again"
    )


def _problem(parts: list[str]) -> str | None:
    for number, part in enumerate(parts):
        if part == "":
            return "it is absolute" if number == 0 and len(parts) > 1 else "it has an empty part"
        if part in (".", ".."):
            return f"one of its parts is {part!r}"
        if "\\" in part or any(ord(char) < 32 or ord(char) == 127 for char in part):
            return "it contains a backslash or a control character"
        if any("\ud800" <= char <= "\udfff" for char in part):
            return "it can't be encoded as UTF-8"
        if len(_utf8(part)) > MAX_PART_BYTES:
            return f"one of its parts is longer than {MAX_PART_BYTES} bytes"
    if parts and parts[0] == "tmp":
        return "'tmp/' is reserved for the store's own temporary files"
    return None


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")
