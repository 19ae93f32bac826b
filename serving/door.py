"""Lets callers in: by their tokens, or whoever comes where the service is configured so."""

from __future__ import annotations

from serving.callers import Allowances, Caller, Scope
from serving.errors import UnauthorizedError
from serving.options import ServiceOptions
from serving.tokens.keeper import TokenKeeper

_WITHOUT_TOKENS = frozenset({Scope.PREDICT, Scope.READ})


class Door:
    """Tells who sent a request.

    Args:
        options: whether tokens are asked for (`ServiceOptions.asks_for_tokens`).
        keeper: knows the tokens.
    """

    def __init__(self, options: ServiceOptions, keeper: TokenKeeper) -> None:
        self.options = options
        self.keeper = keeper
        # without tokens nothing is published for whoever comes over a network; on loopback it is this machine's users
        scopes = frozenset(Scope) if options.on_loopback else _WITHOUT_TOKENS
        limits = options.limits
        self._anyone = Caller("anonymous", scopes, Allowances.of(limits.requests_per_s, limits.images_per_s))

    async def caller(self, token: str | None) -> Caller:
        """Who comes with this token. Raises `UnauthorizedError`, `NotReadyError`."""
        if not self.options.asks_for_tokens:
            return self._anyone
        if not token:
            raise UnauthorizedError("this service asks for a token: send it as `Authorization: Bearer TOKEN`")
        return await self.keeper.caller(token)
