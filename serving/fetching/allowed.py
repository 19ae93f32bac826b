"""The allow-list `serve.fetch`: which URLs the service fetches images from."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from fusion.errors import ConfigError

PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", re.ASCII)


@dataclass(frozen=True)
class Place:
    """One entry: everything below a URL.

    Attributes:
        host: of HTTP in lower case; it may begin with `*.`, for every host below the rest. Of S3 the bucket.
        port: of HTTP; 0 for S3.
        path: begins with a slash and ends with one.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, entry: str) -> Place:
        """Raises `ConfigError` for what is no such URL."""
        problem = f"serve.fetch: {entry!r} is not a place to fetch from: "
        try:
            parts = urlsplit(entry)
            target = Target.of(parts)
        except ValueError as error:
            raise ConfigError(f"{problem}{error}") from None
        if parts.query or parts.fragment:
            raise ConfigError(f"{problem}it has a query or a fragment")
        if not target.literal and not _HOST.fullmatch(target.host):
            raise ConfigError(f"{problem}{target.host!r} is not a host (`*.example.com` stands for all below it)")
        return cls(target.scheme, target.host, target.port, target.path.rstrip("/") + "/")

    @property
    def literal(self) -> bool:
        """Whether the host is spelled out as an address. Only then may it be a private one."""
        return _is_address(self.host)

    def has(self, target: Target) -> bool:
        if (self.scheme, self.port) != (target.scheme, target.port) or not target.path.startswith(self.path):
            return False
        if self.host.startswith("*."):
            return target.host.endswith(self.host[1:]) and target.host != self.host[1:]
        return target.host == self.host


@dataclass(frozen=True)
class Target:
    """What a URL names. `path` begins with a slash; `query` has no question mark."""

    scheme: str
    host: str
    port: int
    path: str
    query: str

    @classmethod
    def of(cls, url: str | SplitResult) -> Target:
        """Raises `ValueError` with the reason for what is not fetched from anywhere."""
        parts = urlsplit(url) if isinstance(url, str) else url
        if parts.scheme not in (*PORTS, "s3"):
            raise ValueError("only http://, https:// and s3:// are fetched")
        if parts.username is not None or parts.password is not None:
            raise ValueError("it holds a user or a password")
        try:
            port = parts.port or PORTS.get(parts.scheme, 0)
        except ValueError:
            raise ValueError("its port is not a number from 1 to 65535") from None
        if not parts.hostname:
            raise ValueError("it names no host")
        try:
            host = _ascii(parts.hostname) if parts.scheme != "s3" else parts.netloc
        except UnicodeError:
            raise ValueError(f"{parts.hostname!r} is not a host's name") from None
        # a `..` would lead out of what is allowed, and servers read it in many spellings
        if any(part in ("..", ".") for part in re.split(r"[/\\]", unquote(unquote(parts.path)))):
            raise ValueError("its path has a `.` or `..` in it")
        path, query = parts.path or "/", parts.query
        if parts.scheme == "s3":  # a key may hold what other URLs end at
            path, query = urlunsplit(("", "", path, query, parts.fragment)), ""
        if re.search(r"[\x00-\x1f\x7f]", path + query):
            raise ValueError("it has control characters in it")
        return cls(parts.scheme, host, port, path, query)

    @property
    def literal(self) -> bool:
        """Whether the host is spelled out as an address."""
        return _is_address(self.host)


def places(entries: Sequence[str]) -> tuple[Place, ...]:
    """The allow-list. Raises `ConfigError` for an entry that is none."""
    return tuple(Place.of(entry) for entry in entries)


def _ascii(host: str) -> str:
    """As it is asked for: in lower case, international names in their ASCII form. An address stays one."""
    if _is_address(host):
        return str(ipaddress.ip_address(host))
    return host.lower().rstrip(".") if host.isascii() else host.encode("idna").decode().lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
