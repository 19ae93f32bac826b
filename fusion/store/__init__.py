"""Where everything that outlives a process is kept: a local folder or S3, behind one protocol.

Stores are opened with `open_store`, which imports boto3 only for an S3 store.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fusion.errors import StoreUrlError
from fusion.store.local import LocalStore
from fusion.store.protocol import ObjectInfo, Store
from fusion.store.s3_options import S3Options

__all__ = ["ObjectInfo", "S3Options", "Store", "open_store"]


def open_store(url: str, options: S3Options | None = None) -> Store:
    """The store that `url` names. Reads and writes nothing yet, so the store need not exist.

    Args:
        url: `file:///folder` (percent-encoded), `s3://bucket/prefix`, or a plain path (made absolute).
        options: how to reach S3; ignored for a folder.
    Raises:
        StoreUrlError: any other URL.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(?=/)", url)
    if scheme is None and url.strip():
        return LocalStore(Path(os.path.abspath(os.path.expanduser(url))).as_uri())
    if scheme and scheme[1] == "file":
        return LocalStore(url)
    if scheme and scheme[1] == "s3":
        from fusion.store.s3 import S3Store

        return S3Store(url, options=options)
    raise StoreUrlError(
        f"{url!r} does not name a store: write file:///folder, a path such as ./store, or s3://bucket/prefix (for any "
        "endpoint: an address other than Amazon's goes into the option `endpoint_url`)"
    )
