"""What one replica knows of the tokens: re-read from the store with every poll, each verified once.

A poll is one listing; a new token costs one read more. When the store does not answer, the tokens known so far stay: a
revocation then waits for the store, an expiry does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets

from fusion.store import Store
from serving.callers import Allowances, Caller
from serving.errors import NotReadyError, UnauthorizedError
from serving.options import LimitOptions
from serving.tokens.registry import read_token, token_keys
from serving.tokens.token import SCOPES, Token, id_of

logger = logging.getLogger(__name__)

_INVALID = "the token is not valid: it is unknown, revoked or expired. `condu token create` makes one"


class TokenKeeper:
    """Knows the callers by their tokens.

    Args:
        store: where the tokens are.
        poll_s: seconds between two polls, on average.
        limits: of tokens that have none of their own.
    """

    def __init__(self, store: Store, *, poll_s: float, limits: LimitOptions) -> None:
        self._store = store
        self._poll_s = poll_s
        self._limits = (limits.requests_per_s, limits.images_per_s)
        self._read: dict[str, Token | None] | None = None
        """By key; None in place of a damaged record, and in place of all before the first poll."""
        self._callers: dict[str, tuple[Token, Caller]] = {}
        """By the token's id."""
        self._verified: dict[bytes, str] = {}
        """Keyed hash of a token that was verified, to its id. The key lives as long as this process."""
        self._key = secrets.token_bytes(32)
        self._one_hash = asyncio.Lock()
        self._problem = ""

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.poll()
            await asyncio.sleep(self._poll_s * random.uniform(0.75, 1.25))

    async def poll(self) -> None:
        """Read what is new, forget what was revoked. Never raises."""
        try:
            read = await asyncio.to_thread(self._look)
        except Exception as error:
            self._report(f"{type(error).__name__}: {error}")
            return
        self._report("")
        tokens = {token.id: token for token in read.values() if token is not None}
        self._callers = {
            number: self._callers.get(number) or (token, self._caller(token)) for number, token in tokens.items()
        }
        self._verified = {digest: number for digest, number in self._verified.items() if number in tokens}
        self._read = read

    async def caller(self, token: str) -> Caller:
        """Whose token this is. Raises `UnauthorizedError`, `NotReadyError`."""
        if self._read is None:
            raise NotReadyError("the tokens are not read yet: retry in a moment")
        digest = hashlib.blake2b(token.encode(errors="replace"), key=self._key).digest()
        number = self._verified.get(digest)
        found = self._callers.get(number or id_of(token) or "")
        if found is None:
            raise UnauthorizedError(_INVALID, given=True)
        record, caller = found
        if number is None:
            async with self._one_hash:  # whoever knows an id can make us hash, but one thread at most
                if not await asyncio.to_thread(record.matches, token):
                    raise UnauthorizedError(_INVALID, given=True)
            if record.id in self._callers:  # not revoked meanwhile
                self._verified[digest] = record.id
        if record.is_expired():
            raise UnauthorizedError(_INVALID, given=True)
        return caller

    def _look(self) -> dict[str, Token | None]:
        known = self._read or {}
        read: dict[str, Token | None] = {}
        for key in token_keys(self._store):
            if key in known:
                read[key] = known[key]
                continue
            found = read_token(self._store, key)
            if isinstance(found, Token):
                read[key] = found
            elif found is not None:
                logger.warning("a token is refused: %s", found)
                read[key] = None
        return read

    def _caller(self, token: Token) -> Caller:
        own = (token.requests_per_s, token.images_per_s)
        limits = [mine if mine is not None else general for mine, general in zip(own, self._limits, strict=True)]
        return Caller(token.name, SCOPES[token.scope], Allowances.of(*limits))

    def _report(self, problem: str) -> None:
        if problem and problem != self._problem:
            logger.warning("reading the tokens of %s: %s (those known stay)", self._store.url, problem)
        self._problem = problem
