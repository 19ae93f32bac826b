"""Which URLs name which store, and how all others are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fusion.errors import ConfigError, StoreUrlError
from fusion.store import S3Options, open_store
from fusion.store.local import LocalStore


def test_a_plain_path_becomes_an_absolute_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("my store", "./my store", "x/../my store/", str(tmp_path / "my store")):
        assert open_store(path).url == f"file://{tmp_path}/my%20store"
    open_store("my store").put_if_absent("k", b"x")
    assert (tmp_path / "my store" / "k").read_bytes() == b"x"


def test_a_file_url_is_percent_decoded(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/a%20b%23c/")
    assert store.url == f"file://{tmp_path}/a%20b%23c"
    store.put_if_absent("k", b"x")
    assert (tmp_path / "a b#c" / "k").read_bytes() == b"x"


@pytest.mark.parametrize("url", ["", " ", "gs://bucket/x", "http://host/x", "memory:///", "FILE://x", "s4://bucket"])
def test_an_unknown_scheme_is_refused_with_what_is_accepted(url: str) -> None:
    with pytest.raises(StoreUrlError, match=r"file:///folder.*s3://bucket/prefix"):
        open_store(url)


@pytest.mark.parametrize("url", ["file:///", "file://host/folder", "file://", "file:///a%00b"])
def test_a_file_url_without_a_folder_of_this_machine_is_refused(url: str) -> None:
    with pytest.raises(StoreUrlError, match="does not name a folder"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "s3://x",
        "s3://buck et/x",
        "s3://bucket/a//b",
        "s3://bucket/../x",
        "s3://bucket/x?region=eu",
    ],
)
def test_an_s3_url_without_a_valid_place_is_refused(url: str) -> None:
    with pytest.raises(StoreUrlError, match="write s3://bucket/prefix"):
        open_store(url)


def test_an_s3_prefix_may_have_any_name() -> None:
    assert open_store("s3://bucket/tmp/condu/").url == "s3://bucket/tmp/condu"
    assert open_store("s3://bucket").url == "s3://bucket"


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(StoreUrlError, match="credentials don't belong") as caught:
        open_store("s3://AKIAEXAMPLE:topsecret@bucket/prefix")
    assert "topsecret" not in str(caught.value)


def test_contradicting_options_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError, match=r"addressing_style.*max_attempts.*sse_kms_key_id"):
        S3Options(addressing_style="host", sse_kms_key_id="key", max_attempts=0)  # type: ignore[arg-type]


@pytest.mark.processes
def test_a_local_store_needs_no_boto3() -> None:
    code = "import sys, fusion.store as s; s.open_store('/x'); sys.exit(bool({'boto3', 'botocore'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_opening_creates_nothing(tmp_path: Path) -> None:
    store = open_store(f"{tmp_path}/store")
    assert isinstance(store, LocalStore)
    assert list(store.list("")) == []
    assert store.head("a/b") is None
    assert store.local_path("a/b") is None
    assert not (tmp_path / "store").exists()
