"""Names of the Ray actors that work for one store: how who only knows the store finds them."""

from __future__ import annotations

import hashlib

NAMESPACE = "condu"


def actor_name(kind: str, store_url: str) -> str:
    """The name of a store's actor of a kind, such as `fusion-v4`; `store_url` as `Store.url` spells it."""
    return f"condu-{kind}-{hashlib.sha256(store_url.encode()).hexdigest()[:12]}"
