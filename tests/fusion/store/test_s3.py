"""What only S3 can do wrong: lose a reply, break a download, refuse, not answer, fail halfway through an upload."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from fusion.errors import StoreAccessError, StoreUnavailableError, StoreUrlError
from fusion.store import S3Options, open_store, s3, s3_upload
from fusion.store.s3 import S3Store
from tests.dropping_proxy import DroppingProxy
from tests.s3_server import S3Server

FIVE_MIB = 5 << 20  # S3's minimum for every part but the last


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MULTIPART_ABOVE_BYTES", FIVE_MIB)
    monkeypatch.setattr(s3_upload, "PART_BYTES", FIVE_MIB)


@pytest.fixture
def store(s3_url: str) -> S3Store:
    return S3Store(s3_url)


def uploads_under_way(server: S3Server, store: S3Store) -> list[str]:
    found = server.client().list_multipart_uploads(Bucket=server.bucket).get("Uploads", [])
    prefix = store.url.partition(f"{server.bucket}/")[2]
    return [upload["Key"] for upload in found if upload["Key"].startswith(prefix)]


def refuse(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, operation: str, code: str, status: int, times: int
) -> list[str]:
    """Let the next `times` calls of `operation` fail as if the endpoint had refused; returns the calls seen."""
    client = store._client._made()
    real, seen = getattr(client, operation), []

    def refusing(**arguments: Any) -> Any:
        seen.append(operation)
        if len(seen) <= times:
            answer = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(answer, operation)  # type: ignore[arg-type]
        return real(**arguments)

    monkeypatch.setattr(client, operation, refusing)
    return seen


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_a_large_body_goes_up_in_parts_and_only_once(
    store: S3Store, s3_server: S3Server, small_parts: None, tmp_path: Path, kind: str
) -> None:
    body = os.urandom(2 * FIVE_MIB + 12345)
    (tmp_path / "body").write_bytes(body)
    given = body if kind == "bytes" else tmp_path / "body"
    assert store.put_if_absent("blobs/ab/large", given) is True
    assert store.get("blobs/ab/large") == body
    tag = s3_server.client().head_object(Bucket=s3_server.bucket, Key=f"{store._prefix}blobs/ab/large")["ETag"]
    assert tag.strip('"').endswith("-3"), "three parts"
    assert store.put_if_absent("blobs/ab/large", os.urandom(FIVE_MIB + 1)) is False
    assert store.get("blobs/ab/large") == body
    assert uploads_under_way(s3_server, store) == []


def test_an_upload_that_loses_at_its_end_is_aborted(
    store: S3Store, s3_server: S3Server, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = S3Store(store.url)
    parts = s3_upload._in_threads

    def overtaken(*arguments: Any) -> Any:
        assert rival.put_if_absent("blobs/ab/raced", b"rival")
        return parts(*arguments)

    monkeypatch.setattr(s3_upload, "_in_threads", overtaken)
    assert store.put_if_absent("blobs/ab/raced", os.urandom(FIVE_MIB + 1)) is False
    assert store.get("blobs/ab/raced") == b"rival"
    assert uploads_under_way(s3_server, store) == []


@pytest.mark.parametrize("operation", ["upload_part", "complete_multipart_upload"])
def test_an_upload_that_fails_is_aborted_and_leaves_no_object(
    store: S3Store, s3_server: S3Server, small_parts: None, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    refuse(store, monkeypatch, operation, "AccessDenied", 403, times=1)
    with pytest.raises(StoreAccessError, match="s3:PutObject"):
        store.put_if_absent("blobs/ab/failed", os.urandom(2 * FIVE_MIB))
    assert store.head("blobs/ab/failed") is None
    assert uploads_under_way(s3_server, store) == []


@pytest.mark.parametrize("size", [10, FIVE_MIB + 1])
def test_a_conflicting_write_is_retried(
    store: S3Store, small_parts: None, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    operation = "put_object" if size == 10 else "complete_multipart_upload"
    seen = refuse(store, monkeypatch, operation, "ConditionalRequestConflict", 409, times=2)
    assert store.put_if_absent("versions/00000001.json", b"x" * size) is True
    assert len(seen) == 3


def test_a_conflict_that_does_not_end_is_unavailable(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    refuse(store, monkeypatch, "put_object", "ConditionalRequestConflict", 409, times=99)
    with pytest.raises(StoreUnavailableError, match="other writers"):
        store.put_if_absent("versions/00000001.json", b"x")


def test_a_completion_whose_upload_is_gone_checks_whether_the_key_is_taken(
    store: S3Store, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(FIVE_MIB + 1)
    client = store._client._made()
    complete = client.complete_multipart_upload

    def completed_twice(**arguments: Any) -> Any:
        complete(**arguments)  # the reply to this one was lost
        answer = {"Error": {"Code": "NoSuchUpload", "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": 404}}
        raise ClientError(answer, "CompleteMultipartUpload")  # type: ignore[arg-type]

    monkeypatch.setattr(client, "complete_multipart_upload", completed_twice)
    assert store.put_if_absent("blobs/ab/twice", body) is False
    assert store.get("blobs/ab/twice") == body


def test_a_false_may_be_ones_own_success(s3_server: S3Server, s3_url: str) -> None:
    """The reply to a successful write is lost; boto3 tries again and finds its own object: 412, hence False.

    The store can't know better. A caller that needs to know reads the object back and looks for its nonce.
    """
    with DroppingProxy(s3_server.port) as proxy:
        store = open_store(s3_url, S3Options(endpoint_url=proxy.endpoint_url))
        proxy.drop_reply_to("PUT")
        assert store.put_if_absent("versions/00000001.json", b'{"nonce": "mine"}') is False
        assert proxy.num_faults == 1
        assert store.get("versions/00000001.json") == b'{"nonce": "mine"}'


def test_a_lost_reply_with_no_attempts_left_is_unavailable_though_written(s3_server: S3Server, s3_url: str) -> None:
    with DroppingProxy(s3_server.port) as proxy:
        store = open_store(s3_url, S3Options(endpoint_url=proxy.endpoint_url, max_attempts=1))
        proxy.drop_reply_to("PUT")
        with pytest.raises(StoreUnavailableError):
            store.put_if_absent("versions/00000001.json", b"written")
        assert store.get("versions/00000001.json") == b"written"


def test_a_broken_download_resumes_where_it_broke(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PIECE_BYTES", 64 << 10)
    body = os.urandom(3_000_000)
    with DroppingProxy(s3_server.port) as proxy:
        store = S3Store(s3_url, options=S3Options(endpoint_url=proxy.endpoint_url))
        store.put_if_absent("blobs/ab/long", body)
        proxy.cut_reply_to("GET", after_bytes=700_000, times=3)
        assert b"".join(store.stream("blobs/ab/long")) == body
        assert proxy.num_faults == 3
        proxy.cut_reply_to("GET", after_bytes=300_000, times=2)
        assert store.get("blobs/ab/long", start=1_000, stop=2_000_000) == body[1_000:2_000_000]
        assert proxy.num_faults == 5


def test_a_download_without_progress_is_given_up(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with DroppingProxy(s3_server.port) as proxy:
        store = S3Store(s3_url, options=S3Options(endpoint_url=proxy.endpoint_url))
        store.put_if_absent("blobs/ab/long", os.urandom(3_000_000))
        proxy.cut_reply_to("GET", after_bytes=0, times=99)
        with pytest.raises(StoreUnavailableError, match="blobs/ab/long"):
            list(store.stream("blobs/ab/long"))


def test_a_missing_bucket_is_refused_by_every_call(s3_url: str) -> None:
    store = open_store("s3://no-such-bucket/condu")
    for call in (
        lambda: store.get("a"),
        lambda: list(store.stream("a")),
        lambda: store.head("a"),
        lambda: store.put_if_absent("a", b"x"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreAccessError, match=r"s3://no-such-bucket/condu.*create the bucket"):
            call()


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "secret key does not match the access key"),
        ("AWS_ACCESS_KEY_ID", "wrong", "does not know this access key"),
        ("AWS_ACCESS_KEY_ID", None, "no usable credentials"),
    ],
)
def test_wrong_credentials_are_named(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, advice: str
) -> None:
    if value is None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv(name, value)
    store = open_store(s3_url)
    with pytest.raises(StoreAccessError, match=advice) as caught:
        store.put_if_absent("versions/00000001.json", b"x")
    assert f"{s3_url}/versions/00000001.json" in str(caught.value)
    with pytest.raises(StoreAccessError):
        store.head("versions/00000001.json")


def test_an_endpoint_that_is_down_is_unavailable_until_it_is_up_again(s3_server: S3Server, s3_url: str) -> None:
    store = open_store(s3_url, S3Options(max_attempts=1, connect_timeout_s=1))
    store.put_if_absent("versions/00000001.json", b"x")
    s3_server.stop()
    try:
        for call in (lambda: store.get("a"), lambda: store.put_if_absent("a", b"x"), lambda: list(store.list(""))):
            with pytest.raises(StoreUnavailableError, match="check `endpoint_url`"):
                call()
    finally:
        s3_server.start()
    assert store.get("versions/00000001.json") == b"x"


def test_an_endpoint_that_accepts_and_says_nothing_is_unavailable(s3_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = open_store(s3_url, S3Options(endpoint_url=url, max_attempts=1, read_timeout_s=0.2))
        with pytest.raises(StoreUnavailableError, match=url):
            store.get("a")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("SlowDown", 503, StoreUnavailableError),
        ("InternalError", 500, StoreUnavailableError),
        ("RequestTimeTooSkewed", 403, StoreAccessError),
        ("PermanentRedirect", 301, StoreAccessError),
        ("KMS.DisabledException", 400, StoreAccessError),
    ],
)
def test_each_refusal_has_its_error_class(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, code: str, status: int, kind: type[Exception]
) -> None:
    refuse(store, monkeypatch, "get_object", code, status, times=1)
    with pytest.raises(kind, match=code):
        store.get("a")


def test_a_malformed_endpoint_is_refused(s3_url: str) -> None:
    with pytest.raises(StoreUrlError, match="http://host:port"):
        open_store(s3_url, S3Options(endpoint_url="minio:9000")).head("a")


def test_options_survive_pickling_and_the_client_is_not_pickled(s3_url: str) -> None:
    store = S3Store(s3_url, options=S3Options(region="us-east-1", addressing_style="path", checksum="when_required"))
    assert store.put_if_absent("a", b"x") is True  # this creates the client
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own bytes
    assert copy.options == store.options
    assert copy.get("a") == b"x"


def test_threads_share_one_client(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = type(store._client)._make

    def counted(self: Any) -> Any:
        made.append(1)
        return make(self)

    monkeypatch.setattr(type(store._client), "_make", counted)
    threads = [threading.Thread(target=store.head, args=("a",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_folder_markers_and_neighbours_are_not_listed(store: S3Store, s3_server: S3Server) -> None:
    store.put_if_absent("blobs/ab/one", b"x")
    client = s3_server.client()
    client.put_object(Bucket=s3_server.bucket, Key=f"{store._prefix}runs/", Body=b"")
    client.put_object(Bucket=s3_server.bucket, Key=f"{store._prefix[:-1]}-other/two", Body=b"")
    assert [info.key for info in store.list("")] == ["blobs/ab/one"]
