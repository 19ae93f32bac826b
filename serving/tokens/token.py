"""A token and its record: `condu_<id>_<secret>`, 32 random bytes that are shown once and kept as a hash.

The hash is scrypt (n 2^14, r 8: 16 MiB and some 40 ms), from Python's own hashlib: no package more, and enough memory
that a stolen store is of no use for guessing even if somebody, one day, puts a weaker secret into a record. 256 random
bits would not need it; so that it costs nobody anything, a token carries the public id of its record. A made-up token
meets no record and is refused without a hash, and a replica hashes a true one once (`serving.tokens.keeper`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fusion.errors import ConfigError, FormatError
from serving.callers import Scope

FORMAT = "condu-token/1"
SCOPES: Mapping[str, frozenset[Scope]] = {
    "predict": frozenset({Scope.PREDICT, Scope.READ}),
    "admin": frozenset(Scope),
}
"""What a token is made for, and what it may do."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TOKEN = re.compile(r"condu_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_SCRYPT: Mapping[str, int] = {"n": 1 << 14, "r": 8, "p": 1, "dklen": 32, "maxmem": 64 << 20}


@dataclass(frozen=True)
class Token:
    """The record of a token: everything but the token.

    Attributes:
        name: for people, the key by which it is revoked.
        id: public, part of the token.
        scope: a key of `SCOPES`.
        salt, hash: hex; the hash is scrypt of the secret.
        created, expires: ISO 8601, UTC; `expires` None: never.
        requests_per_s, images_per_s: in each replica. None: what `serve.limits` says.
    """

    name: str
    id: str
    scope: str
    salt: str
    hash: str
    created: str
    expires: str | None = None
    requests_per_s: float | None = None
    images_per_s: float | None = None

    def is_expired(self) -> bool:
        return self.expires is not None and datetime.now(UTC) >= datetime.fromisoformat(self.expires)

    def matches(self, token: str) -> bool:
        """Whether a token is the one of this record. Takes some 40 ms, however the answer is."""
        found = _TOKEN.fullmatch(token)
        return found is not None and hmac.compare_digest(_hashed(found[2], self.salt), self.hash)

    def to_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, body: bytes, where: str) -> Token:
        """Raises `FormatError` that names the object."""
        try:
            values: Any = json.loads(body)
            if values.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            token = cls(**values)
            bytes.fromhex(token.salt)
            if token.scope not in SCOPES or not _NAME.fullmatch(token.name) or len(bytes.fromhex(token.hash)) != 32:
                raise ValueError("its scope, name or hash is none")
            token.is_expired()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FormatError(f"{where} is not the record of a token ({error}): revoke it") from error
        return token


def new_token(
    name: str,
    scope: str,
    *,
    lifetime: timedelta | None = None,
    requests_per_s: float | None = None,
    images_per_s: float | None = None,
) -> tuple[str, Token]:
    """A new token, and its record. Raises `ConfigError` for a name, scope or limit that is none."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"token name {name!r} is ill-formed: it matches {_NAME.pattern}")
    if scope not in SCOPES:
        raise ConfigError(f"scope {scope!r} does not exist: use {' or '.join(SCOPES)}")
    for what, per_s in (("requests", requests_per_s), ("images", images_per_s)):
        if per_s is not None and not per_s > 0:
            raise ConfigError(f"{per_s:g} {what} a second: a limit is above 0")
    number, secret, salt = secrets.token_hex(8), secrets.token_urlsafe(32), secrets.token_hex(16)
    now = datetime.now(UTC)
    record = Token(
        name=name,
        id=number,
        scope=scope,
        salt=salt,
        hash=_hashed(secret, salt),
        created=now.isoformat(timespec="seconds"),
        expires=(now + lifetime).isoformat(timespec="seconds") if lifetime is not None else None,
        requests_per_s=requests_per_s,
        images_per_s=images_per_s,
    )
    return f"condu_{number}_{secret}", record


def id_of(token: str) -> str | None:
    """The id of the record that a token claims to be of; None where it is no token."""
    found = _TOKEN.fullmatch(token)
    return found[1] if found else None


def _hashed(secret: str, salt: str) -> str:
    return hashlib.scrypt(secret.encode(), salt=bytes.fromhex(salt), **_SCRYPT).hex()
