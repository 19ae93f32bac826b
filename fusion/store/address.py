"""A store's address: everything that a process needs to reach the store. It travels to workers, replicas and actors."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from fusion.store import S3Options, Store, open_store
from fusion.store.node_cache import NodeCache


@dataclass(frozen=True)
class StoreAddress:
    """Where a store is, and how this user's processes reach it.

    Picklable and comparable. It holds no credentials, and `str` hides any that the endpoint's URL contains.

    Attributes:
        url: as `open_store` takes it.
        options: how to reach S3; None: what boto3 finds by itself.
        cache_folder: where every node keeps its cache; None: the default of `NodeCache`.
        cache_limit_bytes: what the cache may take on each node; None: the default of `NodeCache`.
    """

    url: str
    options: S3Options | None = None
    cache_folder: Path | None = None
    cache_limit_bytes: int | None = None

    def open(self) -> Store:
        """The store. Raises `StoreUrlError`."""
        return open_store(self.url, self.options)

    def open_cache(self) -> NodeCache:
        """The store behind this node's cache. Raises `StoreUrlError`."""
        return NodeCache(self.open(), self.cache_folder, limit_bytes=self.cache_limit_bytes)

    def resolved(self) -> StoreAddress:
        """The same store for a process with another working directory. Raises `StoreUrlError`."""
        return replace(self, url=self.open().url)

    def __str__(self) -> str:
        endpoint = self.options.endpoint_url if self.options else None
        return self.url + (f" at {without_credentials(endpoint)}" if endpoint else "")

    def __repr__(self) -> str:
        return f"StoreAddress({str(self)!r})"


def without_credentials(url: str) -> str:
    """A URL without the `user:password@` that it may contain."""
    return re.sub(r"(?<=//)[^/@]*@", "", url)
