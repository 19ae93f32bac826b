"""How an endpoint is reached: clock, certificates, encryption, addressing, region, profile. With a real server."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore import auth

from fusion.errors import StoreAccessError, StoreError, StoreUrlError
from fusion.store import S3Options, Store, open_store, s3, s3_errors, s3_upload
from tests.certificates import make_authority
from tests.dropping_proxy import DroppingProxy
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

CALLS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("a"),
    "head": lambda store: store.head("a"),
    "put": lambda store: store.put_if_absent("a", b"x"),
    "list": lambda store: list(store.list("")),
    "delete": lambda store: store.delete("a"),
}


@pytest.mark.parametrize(("minutes", "says"), [(60, "60 minutes ahead of"), (-90, "90 minutes behind")])
@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_clock_is_reported_with_its_error(
    call: str, minutes: int, says: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is shifted for boto3 and condu; the server itself refuses. Its refusal of a HEAD names no cause."""

    def shifted(now: Callable[..., datetime]) -> Callable[..., datetime]:
        return lambda *args, **kwargs: now(*args, **kwargs) + timedelta(minutes=minutes)

    monkeypatch.setattr(auth, "get_current_datetime", shifted(auth.get_current_datetime))
    monkeypatch.setattr(s3_errors, "_now", shifted(s3_errors._now))
    with pytest.raises(StoreAccessError, match=rf"clock is {says} the endpoint's, and 15 are allowed: set it"):
        CALLS[call](open_store(s3_url))


def test_a_missing_permission_is_not_mistaken_for_a_wrong_clock(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreAccessError) as caught:
        open_store(s3_url).head("a")
    assert "clock" not in str(caught.value)


def test_a_custom_certificate_authority_is_trusted_if_it_is_named(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make_authority(tmp_path, "ours")
    with DroppingProxy(s3_server.port, tls=ours.server) as proxy:
        store = open_store(s3_url, S3Options(endpoint_url=proxy.endpoint_url, ca_bundle=str(ours.bundle)))
        assert store.put_if_absent("a", b"over TLS") is True
        monkeypatch.setenv("AWS_CA_BUNDLE", str(ours.bundle))
        assert open_store(s3_url, S3Options(endpoint_url=proxy.endpoint_url)).get("a") == b"over TLS"
        assert len(proxy.heads) >= 2
    assert open_store(s3_url).get("a") == b"over TLS", "the same server is behind it"


@pytest.mark.parametrize("trusted", ["another", None])
@pytest.mark.parametrize("call", CALLS)
def test_a_certificate_by_another_authority_is_refused(
    call: str, trusted: str | None, s3_server: S3Server, s3_url: str, tmp_path: Path
) -> None:
    ours, another = (make_authority(tmp_path, name) for name in ("ours", "another"))
    with DroppingProxy(s3_server.port, tls=ours.server) as proxy:
        options = S3Options(endpoint_url=proxy.endpoint_url, ca_bundle=str(another.bundle) if trusted else None)
        with pytest.raises(StoreAccessError, match=r"CERTIFICATE_VERIFY_FAILED.*Set `ca_bundle` \(or AWS_CA_BUNDLE\)"):
            CALLS[call](open_store(s3_url, options))
        assert proxy.heads == [], "nothing was sent to a server that is not trusted"


def test_a_bundle_that_is_not_a_file_is_named(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreUrlError, match=r"/nowhere\.pem.*is not a file: check `ca_bundle`"):
        open_store(s3_url, S3Options(ca_bundle="/nowhere.pem")).head("a")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere.pem")
    with pytest.raises(StoreUrlError, match=r"/nowhere\.pem.*is not a file: check AWS_CA_BUNDLE"):
        open_store(s3_url).head("a")


@pytest.mark.parametrize(
    ("options", "headers"),
    [
        ({"server_side_encryption": "AES256"}, {"x-amz-server-side-encryption": "AES256"}),
        (
            {"server_side_encryption": "aws:kms", "sse_kms_key_id": "a-key"},
            {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "a-key"},
        ),
        ({}, {}),
    ],
    ids=["AES256", "KMS", "none"],
)
@pytest.mark.parametrize("parts", [False, True], ids=["at once", "in parts"])
def test_every_write_requests_the_chosen_encryption(
    parts: bool,
    options: dict[str, Any],
    headers: dict[str, str],
    s3_server: S3Server,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What counts is what the server receives: this one has no keys, and refuses to encrypt."""
    monkeypatch.setattr(s3, "MULTIPART_ABOVE_BYTES", 5 << 20)
    monkeypatch.setattr(s3_upload, "PART_BYTES", 5 << 20)
    body = os.urandom((6 << 20) if parts else 10)
    with DroppingProxy(s3_server.port) as proxy:
        store = open_store(s3_url, S3Options(endpoint_url=proxy.endpoint_url, max_attempts=1, **options))
        try:
            store.put_if_absent("blobs/ab/secret", body)
        except StoreError:
            assert options, "a plain write succeeds"
        opening = "POST" if parts else "PUT"
        (sent,) = [head for head in proxy.heads if head.startswith(opening) and "uploadId" not in head]
    found = dict(re.findall(r"^(x-amz-server-side-encryption[a-z-]*): (.*)$", sent, re.MULTILINE | re.IGNORECASE))
    assert {name.lower(): value for name, value in found.items()} == headers


@pytest.mark.parametrize("place", ["option", "profile"])
@pytest.mark.parametrize("style", ["path", "virtual"])
def test_the_addressing_style_decides_where_the_bucket_is_named(
    style: Any, place: str, s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def with_subdomains(host: Any, *args: Any, **kwargs: Any) -> Any:
        return resolve("127.0.0.1" if str(host).endswith("localhost") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", with_subdomains)
    with DroppingProxy(s3_server.port) as proxy:
        endpoint = f"http://localhost:{proxy.port}"
        if place == "profile":
            (tmp_path / "config").write_text(f"[default]\ns3 =\n  addressing_style = {style}\n")
            monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        chosen = style if place == "option" else None
        store = open_store(s3_url, S3Options(endpoint_url=endpoint, addressing_style=chosen))
        assert store.put_if_absent("a", b"x") is True
        assert store.get("a") == b"x"
        assert [info.key for info in store.list("")] == ["a"]
        prefix = s3_url.partition(f"{s3_server.bucket}/")[2]
        path, host = {
            "path": (f" /{s3_server.bucket}/{prefix}/a ", f"Host: localhost:{proxy.port}"),
            "virtual": (f" /{prefix}/a ", f"Host: {s3_server.bucket}.localhost:{proxy.port}"),
        }[style]
        assert path in proxy.heads[0]
        assert all(host in head for head in proxy.heads)
    assert open_store(s3_url).get("a") == b"x"


@pytest.mark.parametrize(
    ("option", "environment", "wanted"),
    [
        ("eu-central-1", {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-north-1"}, "eu-central-1"),
        (None, {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-north-1"}, "eu-west-1"),
        (None, {"AWS_DEFAULT_REGION": "eu-north-1"}, "eu-north-1"),
    ],
)
def test_requests_are_signed_for_the_configured_region(
    option: str | None,
    environment: dict[str, str],
    wanted: str,
    s3_server: S3Server,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with DroppingProxy(s3_server.port) as proxy:
        store = open_store(s3_url, S3Options(region=option, endpoint_url=proxy.endpoint_url))
        assert store.put_if_absent("a", b"x") is True
        assert [f"/{wanted}/s3/aws4_request" in head for head in proxy.heads] == [True]


def test_a_profile_in_the_shared_files_is_enough(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make_authority(tmp_path, "ours")
    with DroppingProxy(s3_server.port, tls=ours.server) as proxy:
        (tmp_path / "credentials").write_text(
            f"[condu]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        )
        (tmp_path / "config").write_text(
            f"[profile condu]\nregion = eu-west-3\nca_bundle = {ours.bundle}\nendpoint_url = {proxy.endpoint_url}\n"
            "s3 =\n  addressing_style = path\n"
        )
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        with pytest.raises(StoreAccessError, match="no usable credentials"):
            open_store(s3_url, S3Options(endpoint_url=s3_server.endpoint_url)).head("a")
        monkeypatch.setenv("AWS_PROFILE", "condu")
        assert open_store(s3_url).put_if_absent("a", b"x") is True
        (head,) = proxy.heads
        assert f"Credential={ACCESS_KEY}/" in head
        assert "/eu-west-3/s3/aws4_request" in head
        assert f"PUT /{s3_server.bucket}/" in head
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(StoreAccessError, match=r"nobody.*no usable credentials"):
            open_store(s3_url).head("a")
