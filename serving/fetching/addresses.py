"""Which addresses a name stands for, and which of them a request must not make the service talk to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

_EMBEDDING = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]
"""IPv6 that stands for IPv4: what a gateway makes of it may be inside. NAT64 (RFC 6052, 8215), 6to4, Teredo."""


def is_public(address: str) -> bool:
    """Whether an address is one of the internet at large: not loopback, private, link-local, multicast, reserved."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif any(found in net for net in _EMBEDDING):
            return False
    return found.is_global and not found.is_multicast


async def addresses_of(host: str, port: int) -> list[str]:
    """All addresses of a host, as the resolver orders them. Raises `OSError` where there is none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found))
