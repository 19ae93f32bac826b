"""One boto3 client per process, and the one place where requests are sent and botocore's errors become ours.

The first request creates the client, for the process that sends it: a fork shares no connection with its parent.
Retries within a request are boto3's (mode `standard`: connection errors, timeouts, 5xx, throttling, with back-off).
"""

from __future__ import annotations

import os
import threading
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from fusion.errors import StoreUrlError
from fusion.store.s3_errors import explain
from fusion.store.s3_options import S3Options


class S3Client:
    """Sends requests to one bucket. Safe to share between threads, and across a fork."""

    def __init__(self, url: str, bucket: str, options: S3Options) -> None:
        self._url = url
        self._bucket = bucket
        self._options = options
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._client: Any = None

    def call(self, operation: str, key: str, **arguments: Any) -> Any:
        """Send one request about `key` ('' for the bucket itself); `operation` is the name of boto3's method.

        Raises `StoreError` and its subclasses, with botocore's error as the cause.
        """
        try:
            return getattr(self._made(), operation)(Bucket=self._bucket, **arguments)
        except (ClientError, BotoCoreError) as error:
            raise explain(error, operation, self._url, key, self.endpoint) from error

    @property
    def endpoint(self) -> str:
        """Where requests are sent, for messages."""
        if self._client is not None:
            return str(self._client.meta.endpoint_url)
        return self._options.endpoint_url or "the default endpoint"

    def _made(self) -> Any:
        if self._pid != os.getpid():  # forked: the parent's connections, and a lock it may have held, are not ours
            self._lock, self._client, self._pid = threading.Lock(), None, os.getpid()
        with self._lock:
            if self._client is None:
                self._client = self._make()
            return self._client

    def _make(self) -> Any:
        options = self._options
        bundle = options.ca_bundle or os.environ.get("AWS_CA_BUNDLE")
        if bundle and not os.path.isfile(bundle):
            raise StoreUrlError(
                f"{self._url}: {bundle}, which should hold the endpoint's certificate authority, is not a file: check "
                f"{'`ca_bundle`' if options.ca_bundle else 'AWS_CA_BUNDLE'}, on every node"
            )
        config = Config(
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": options.max_attempts},
            max_pool_connections=32,
            tcp_keepalive=True,
            s3={"addressing_style": options.addressing_style} if options.addressing_style else None,
            request_checksum_calculation=options.checksum,
            response_checksum_validation="when_required",  # every object read is checked against its sha256
        )
        try:
            return boto3.session.Session().client(
                "s3",
                region_name=options.region or os.environ.get("AWS_REGION"),  # boto3 reads only AWS_DEFAULT_REGION
                endpoint_url=options.endpoint_url,
                verify=options.ca_bundle,
                config=config,
            )
        except ValueError as error:  # how botocore reports a malformed endpoint
            raise StoreUrlError(
                f"{self._url}: {error}. Write the endpoint as http://host:port or https://host:port"
            ) from error
