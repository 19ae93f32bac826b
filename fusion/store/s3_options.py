"""How to reach an S3 endpoint. Apart from the store itself, so that options import no boto3 (0.2 s)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from fusion.options import Options


@dataclass(frozen=True)
class S3Options(Options):
    """Everything is optional: what is None is left to boto3, which reads its environment and `~/.aws/config`.

    Credentials are never among them. They come from boto3's chain: environment, shared files, container or
    instance role. Raises `ConfigError` for a choice that does not exist or contradicts another.
    """

    region: str | None = None
    """Region of the bucket, such as `eu-central-1`. Null: boto3's environment and `~/.aws/config`."""
    endpoint_url: str | None = None
    """Another endpoint than Amazon's, such as `http://minio:9000`. Null: `AWS_ENDPOINT_URL_S3` and the like, then
    Amazon's."""
    addressing_style: Literal["auto", "path", "virtual"] | None = None
    """Where the bucket's name goes: into the `path` (most self-hosted endpoints), before the host (`virtual`), or as
    boto3 decides (`auto`). Null: the profile's."""
    server_side_encryption: str | None = None
    """`AES256`, `aws:kms` or `aws:kms:dsse` for every object written. Null: the bucket's default."""
    sse_kms_key_id: str | None = None
    """The key for `aws:kms`. Null: the account's own."""
    ca_bundle: str | None = None
    """PEM file with the certificate authority of the endpoint, on every node."""
    connect_timeout_s: Annotated[float, Gt(0)] = 5.0
    """How long one attempt to connect may take."""
    read_timeout_s: Annotated[float, Gt(0)] = 60.0
    """Longest silence on a connection, not the longest transfer."""
    max_attempts: Annotated[int, Ge(1)] = 5
    """Attempts per request, the first one included."""
    checksum: Literal["when_supported", "when_required"] | None = None
    """CRCs that boto3 sends along: `when_supported` or `when_required`. The second is for endpoints that refuse them;
    sha256 is checked anyway. Null: boto3's default."""

    def contradictions(self) -> list[str]:
        if self.sse_kms_key_id and not (self.server_side_encryption or "").startswith("aws:kms"):
            return ["sse_kms_key_id has no effect without server_side_encryption: 'aws:kms'"]
        return []
