"""Names of the Ray actors that work for a store, so that the store's URL is enough to find them."""

from __future__ import annotations

import hashlib

NAMESPACE = "condu"


def actor_name(kind: str, store_url: str) -> str:
    """The name of a store's actor of one kind, such as `fusion-v4`; `store_url` is spelled as in `Store.url`."""
    return f"condu-{kind}-{hashlib.sha256(store_url.encode()).hexdigest()[:12]}"
