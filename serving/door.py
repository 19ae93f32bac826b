"""Lets callers in: by their tokens, or whoever comes where the service is configured so."""

from __future__ import annotations

import logging

from fusion.errors import ConfigError
from serving.callers import Allowances, Caller, Scope
from serving.errors import UnauthorizedError
from serving.options import ServiceOptions
from serving.tokens.keeper import TokenKeeper
from serving.tokens.registry import read_tokens
from serving.tokens.token import Token

logger = logging.getLogger(__name__)

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


def check_tokens(options: ServiceOptions) -> None:
    """Raises `ConfigError` where tokens are asked for and there is none: nobody could use the service."""
    if not options.asks_for_tokens:
        if not options.on_loopback:
            where = f"{options.host}:{options.port}" if options.host_is_told else "where Serve listens"
            logger.warning("serve.auth is none: whoever reaches %s can use the service", where)
        return
    tokens = [found for found in read_tokens(options.address.open()) if isinstance(found, Token)]
    if all(token.is_expired() for token in tokens):
        raise ConfigError(
            f"serve.auth: this service asks for tokens, and {options.address.url} has no valid one. "
            "`condu token create CONFIG NAME --scope predict` makes one; `serve.auth: none` lets in whoever reaches "
            "the port; on loopback (serve.host: 127.0.0.1) no token is asked for"
        )
