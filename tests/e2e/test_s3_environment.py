"""Commands with `--store` and no configuration: what boto3's environment and shared files say about S3 is heard."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from cluster.cli import main
from tests.certificates import make_authority
from tests.dropping_proxy import DroppingProxy
from tests.golden import Golden
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server


@pytest.fixture
def proxy(s3_server: S3Server, tmp_path: Path) -> Iterator[DroppingProxy]:
    """The real server behind TLS, with a certificate by an authority that nobody knows."""
    with DroppingProxy(s3_server.port, tls=make_authority(tmp_path, "ours").server) as proxy:
        yield proxy


@pytest.fixture(params=["variables", "profile"])
def environment(
    request: pytest.FixtureRequest, proxy: DroppingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is needed, in one of the two ways, and nothing of the developer's own."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    credentials, config = tmp_path / "credentials", tmp_path / "config"
    credentials.write_text(f"[lab]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
    config.write_text("[profile lab]\n")
    values = {
        "CONDU_CACHE": str(tmp_path / "cache"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "AWS_CONFIG_FILE": str(config),
        "AWS_PROFILE": "lab",
    }
    if request.param == "variables":
        values |= {
            "AWS_ENDPOINT_URL_S3": proxy.endpoint_url,
            "AWS_REGION": "eu-west-3",
            "AWS_CA_BUNDLE": str(tmp_path / "ours.pem"),
        }
    else:
        config.write_text(
            f"[profile lab]\nregion = eu-west-3\nca_bundle = {tmp_path}/ours.pem\nendpoint_url = {proxy.endpoint_url}\n"
        )
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def condu(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> tuple[int, str, str]:
    """The real command in this process: exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "argv", ["condu", *map(str, arguments)])
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), out.getvalue(), " ".join(err.getvalue().split())


@pytest.mark.usefixtures("environment")
def test_fuse_versions_and_export_hear_what_the_environment_says(
    proxy: DroppingProxy, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, experts = Golden("iterative_t2").write(tmp_path)
    store = f"s3://{s3_server.bucket}/{tmp_path.name}-{os.urandom(4).hex()}"
    out = tmp_path / "out.safetensors"
    for arguments in (
        ("fuse", "--store", store, "--base", base, "--expert", f"a={experts[0]}", "--json"),
        ("versions", "list", "--store", store, "--json"),
        ("export", "--store", store, "--task", "a", out, "--json"),
    ):
        proxy.heads.clear()
        code, printed, error = condu(monkeypatch, *arguments)
        assert code == 0, error
        assert json.loads(printed)
        assert proxy.heads, "through this endpoint, over TLS"
        assert all("/eu-west-3/s3/aws4_request" in head for head in proxy.heads)
    assert out.is_file()


@pytest.mark.usefixtures("environment")
def test_a_certificate_that_is_not_trusted_is_told_by_the_command(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_authority(tmp_path, "ours")  # the bundle is another authority's now
    store = f"s3://{s3_server.bucket}/nothing"
    code, _, error = condu(monkeypatch, "predict", "--store", store, __file__)
    assert code == 1
    assert "does not trust the endpoint's certificate. Set `ca_bundle` (or AWS_CA_BUNDLE)" in error
