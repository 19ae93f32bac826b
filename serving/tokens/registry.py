"""The tokens of a store: one immutable object each, `tokens/<name>@<id>.json`, outside all versions.

A token that is revoked is deleted. So no object ever changes, a reader that has read one needs it never again, and
versions, their roll-back and gc know nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

from fusion.errors import BlobNotFoundError, ConfigError, FormatError
from fusion.store import Store
from serving.tokens.token import Token

_PREFIX = "tokens/"


def add_token(store: Store, token: Token) -> None:
    """Store a token's record. Raises `ConfigError` when the name is taken."""
    if any(_keys(store, token.name)):
        raise ConfigError(f"{store.url} has a token {token.name!r} already: revoke it first, or take another name")
    key = f"{_PREFIX}{token.name}@{token.id}.json"
    store.put_if_absent(key, token.to_bytes())
    if list(_keys(store, token.name)) != [key]:  # two at once: neither stays, so that a name is one token
        store.delete(key)
        raise ConfigError(f"another token {token.name!r} was made in the same moment: look at the list, and try again")


def remove_token(store: Store, name: str) -> None:
    """Delete a token's record. Raises `ConfigError` when there is none."""
    keys = list(_keys(store, name))
    if not keys:
        known = sorted({key.removeprefix(_PREFIX).partition("@")[0] for key in token_keys(store)})
        raise ConfigError(f"{store.url} has no token {name!r}: it has {', '.join(known) or 'none'}")
    for key in keys:
        store.delete(key)


def token_keys(store: Store) -> list[str]:
    """The keys of all records."""
    return [info.key for info in store.list(_PREFIX) if info.key.endswith(".json")]


def read_token(store: Store, key: str) -> Token | FormatError | None:
    """A record; the error of one that is damaged; None for one that was revoked after the listing."""
    try:
        return Token.from_bytes(store.get(key), f"{store.url}/{key}")
    except BlobNotFoundError:
        return None
    except FormatError as error:
        return error


def read_tokens(store: Store) -> list[Token | FormatError]:
    """All records, by name."""
    return [found for key in token_keys(store) if (found := read_token(store, key)) is not None]


def _keys(store: Store, name: str) -> Iterator[str]:
    return (info.key for info in store.list(f"{_PREFIX}{name}@"))
