"""How to reach an S3 endpoint. Apart from the store itself, so that options import no boto3 (0.2 s)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusion.errors import ConfigError


@dataclass(frozen=True)
class S3Options:
    """Everything is optional: what is None is left to boto3, which reads its environment and `~/.aws/config`.

    Credentials are never among them. They come from boto3's chain: environment, shared files, container or
    instance role. Raises `ConfigError` for a choice that does not exist or contradicts another.
    """

    region: str | None = None
    """Region of the bucket, such as `eu-central-1`."""
    endpoint_url: str | None = None
    """Another endpoint than Amazon's, such as `http://minio:9000`. None: `AWS_ENDPOINT_URL_S3`, then Amazon."""
    addressing_style: Literal["auto", "path", "virtual"] | None = None
    """Where the bucket's name goes: into the path (most own endpoints want `path`) or before the host."""
    server_side_encryption: str | None = None
    """`AES256`, `aws:kms` or `aws:kms:dsse` for every object written. None: the bucket's default."""
    sse_kms_key_id: str | None = None
    """The key for `aws:kms`. None: the account's own."""
    ca_bundle: str | None = None
    """PEM file with the certificate authority of the endpoint."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    """Longest silence on a connection, not the longest transfer."""
    max_attempts: int = 5
    """Attempts per request, the first one included."""
    checksum: Literal["when_supported", "when_required"] | None = None
    """CRCs that boto3 sends along. `when_required` for endpoints that refuse them; sha256 is checked anyway."""

    def __post_init__(self) -> None:
        problems = []
        if self.addressing_style not in (None, "auto", "path", "virtual"):
            problems.append(f"addressing_style is {self.addressing_style!r}, it can be 'auto', 'path' or 'virtual'")
        if self.checksum not in (None, "when_supported", "when_required"):
            problems.append(f"checksum is {self.checksum!r}, it can be 'when_supported' or 'when_required'")
        if self.sse_kms_key_id and not (self.server_side_encryption or "").startswith("aws:kms"):
            problems.append("sse_kms_key_id has no effect without server_side_encryption: 'aws:kms'")
        if self.connect_timeout_s <= 0 or self.read_timeout_s <= 0:
            problems.append("connect_timeout_s and read_timeout_s have to be above 0")
        if self.max_attempts < 1:
            problems.append(f"max_attempts is {self.max_attempts}, the first attempt counts: at least 1")
        if problems:
            raise ConfigError("S3 options: " + "; ".join(problems))
