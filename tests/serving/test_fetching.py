"""Images by URL: what is fetched, from where, and what a request can not make the service talk to."""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from fusion.errors import ConduError, ConfigError
from fusion.store import S3Options, Store, open_store
from fusion.store.s3 import S3Store
from serving.fetching.addresses import is_public
from serving.fetching.allowed import Place, Target
from serving.fetching.fetcher import Fetcher, Remote
from serving.images import Upload
from serving.options import ServeOptions
from tests.certificates import make_authority
from tests.serving.helpers import error_of, pictures, png, publish_tasks
from tests.serving.plain import PlainService

IMAGE = png(pictures("red")[0])


class Site:
    """A web server on loopback that notes what it was asked, by path and by the name that it was called."""

    def __init__(self, trust: ssl.SSLContext | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, self.headers["Host"]))
                if self.path.startswith("/moved"):
                    self.send_response(302)
                    self.send_header("Location", "/photos/red.png")
                    self.end_headers()
                elif self.path.startswith("/photos/"):
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(IMAGE * (1000 if "large" in self.path else 1))
                else:
                    self.send_error(404)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign,misc]
        if trust:
            self._server.socket = trust.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    yield found
    found.close()


def fetch(fetcher: Fetcher, *urls: str) -> list[bytes]:
    remote = [Remote(f"images.{i}", f"image-{i + 1}", url) for i, url in enumerate(urls)]
    found: list[Upload] = asyncio.run(fetcher.fetched(remote))
    return [upload.encoded for upload in found]


def fetcher(*allowed: str, **options: Any) -> Fetcher:
    return Fetcher(allowed, **{"max_bytes": 100_000, "timeout_s": 10.0} | options)


def leads_to(*addresses: str) -> Any:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


@pytest.mark.parametrize(
    ("entry", "url", "has"),
    [
        ("https://a.example.com/", "https://a.example.com/x.png?size=3", True),
        ("https://a.example.com", "https://A.Example.com./x.png", True),
        ("https://a.example.com", "https://a.example.com:443/x.png", True),
        ("https://a.example.com", "https://a.example.com:8443/x.png", False),
        ("https://a.example.com", "http://a.example.com/x.png", False),
        ("https://a.example.com", "https://a.example.com.evil.org/x.png", False),
        ("https://*.example.com", "https://a.b.example.com/x.png", True),
        ("https://*.example.com", "https://example.com/x.png", False),
        ("https://*.example.com", "https://evilexample.com/x.png", False),
        ("https://bücher.example/", "https://xn--bcher-kva.example/x.png", True),
        ("https://a.example.com/photos", "https://a.example.com/photos/x.png", True),
        ("https://a.example.com/photos", "https://a.example.com/photos-private/x.png", False),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000/x.png", True),
        ("http://[::1]:9000/", "http://[0:0:0:0:0:0:0:1]:9000/x.png", True),
        ("s3://bucket/photos/", "s3://bucket/photos/a b?#.png", True),
        ("s3://bucket/photos/", "s3://bucket/other/x.png", False),
        ("s3://bucket", "s3://Bucket/x.png", False),
    ],
)
def test_a_place_has_what_is_below_it(entry: str, url: str, has: bool) -> None:
    assert Place.of(entry).has(Target.of(url)) is has


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc/passwd", "only http://"),
        ("gopher://a.example.com/x", "only http://"),
        ("//a.example.com/x", "only http://"),
        ("https://user@a.example.com/x", "a user"),
        ("https://a.example.com@evil.org/x", "a user"),
        ("https://a.example.com:99999/x", "port"),
        ("https:///x", "no host"),
        ("https://a.example.com/photos/../private", "`..`"),
        ("https://a.example.com/photos/%2e%2e/private", "`..`"),
        ("https://a.example.com/photos/%252e%252e%252fprivate", "`..`"),
        ("https://a.example.com/photos/..\\private", "`..`"),
        ("https://a.example.com/x\x00", "control"),
    ],
)
def test_a_url_that_means_something_else_is_refused(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Target.of(url)


@pytest.mark.parametrize(
    "entry", ["", "*", "https://", "https://*/", "https://a*.example.com/", "ftp://a.example.com", "https://a.com/?x"]
)
def test_an_entry_that_is_no_place_is_refused_by_the_configuration(entry: str) -> None:
    with pytest.raises(ConfigError, match="fetch"):
        ServeOptions(fetch=(entry,))


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/", "https://", "ftp://app.example.com"])
def test_what_is_no_origin_is_refused_by_the_configuration(origin: str) -> None:
    with pytest.raises(ConfigError, match="cors"):
        ServeOptions(cors=(origin,))


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
     "64:ff9b::808:808", "2002:a00:1::1", "2001::1"],
)  # fmt: skip
def test_an_address_inside_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2a00:1450:4001::1", "::ffff:8.8.8.8"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


def test_what_is_allowed_is_fetched_in_the_order_of_the_request(site: Site) -> None:
    here = f"http://127.0.0.1:{site.port}"
    assert fetch(fetcher(f"{here}/photos/"), f"{here}/photos/red.png?a=b", f"{here}/photos/b%20c") == [IMAGE, IMAGE]
    assert sorted(site.asked) == [
        ("/photos/b%20c", f"127.0.0.1:{site.port}"),
        ("/photos/red.png?a=b", f"127.0.0.1:{site.port}"),
    ]


def test_a_name_is_asked_for_by_its_name_at_the_address_that_was_checked(site: Site) -> None:
    url = f"http://images.example.com:{site.port}/photos/red.png"
    checked: list[str] = []

    def public(address: str) -> bool:
        checked.append(address)
        return True

    found = fetcher(f"http://*.example.com:{site.port}/", resolve=leads_to("127.0.0.1"), public=public)
    assert fetch(found, url) == [IMAGE]
    assert checked == ["127.0.0.1"]
    assert site.asked == [("/photos/red.png", f"images.example.com:{site.port}")]


def test_a_name_that_leads_inside_is_not_asked_even_if_it_leads_outside_too(site: Site) -> None:
    allowed = f"http://images.example.com:{site.port}/"
    for addresses in (["127.0.0.1"], ["8.8.8.8", "127.0.0.1"]):
        with pytest.raises(ConduError, match="not on the public internet"):
            fetch(fetcher(allowed, resolve=leads_to(*addresses)), allowed + "photos/red.png")
    assert site.asked == []


def test_an_address_that_does_not_answer_is_followed_by_the_next_one(site: Site) -> None:
    allowed = f"http://images.example.com:{site.port}/"
    found = fetcher(allowed, resolve=leads_to("127.0.0.2", "127.0.0.1"), public=lambda _: True)
    assert fetch(found, allowed + "photos/red.png") == [IMAGE]


def test_https_trusts_the_name_not_the_address(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "test")
    site = Site(authority.server)
    trust = ssl.create_default_context(cafile=str(authority.bundle))
    try:
        here = f"https://127.0.0.1:{site.port}/"
        assert fetch(fetcher(here, trust=trust), here + "photos/red.png") == [IMAGE]
        with pytest.raises(ConduError, match="does not answer"):  # certifi does not know the authority
            fetch(fetcher(here), here + "photos/red.png")
        named = f"https://images.example.com:{site.port}/"
        with pytest.raises(ConduError, match="does not answer"):  # the certificate is another one's
            fetch(
                fetcher(named, trust=trust, resolve=leads_to("127.0.0.1"), public=lambda _: True),
                named + "photos/red.png",
            )
    finally:
        site.close()


def test_every_image_that_can_not_be_had_is_listed_with_its_reason(site: Site) -> None:
    here = f"http://127.0.0.1:{site.port}"
    with pytest.raises(ConduError) as refused:
        fetch(fetcher(here), f"{here}/photos/red.png", f"{here}/nothing.png", f"{here}/moved")
    assert [field for field, _ in refused.value.errors] == ["images.1", "images.2"]
    assert "404" in str(refused.value)
    assert "redirect, which is not followed" in str(refused.value)


def test_an_image_that_is_not_allowed_stops_the_others_from_being_fetched(site: Site) -> None:
    here = f"http://127.0.0.1:{site.port}"
    with pytest.raises(ConduError, match=r"images\.1: .*what its operator allows"):
        fetch(fetcher(f"{here}/photos/"), f"{here}/photos/red.png", f"{here}/private/red.png")
    assert site.asked == []


def test_the_limit_holds_for_all_images_together(site: Site) -> None:
    here = f"http://127.0.0.1:{site.port}/photos/"
    limit = 3 * len(IMAGE)
    assert len(fetch(fetcher(here, max_bytes=limit), *[here + "red.png"] * 3)) == 3
    for urls in ([here + "red.png"] * 4, [here + "large.png"]):
        with pytest.raises(ConduError, match=f"more than {limit} bytes"):
            fetch(fetcher(here, max_bytes=limit), *urls)


def test_a_site_that_does_not_answer_in_time_is_504() -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.sleep(3600)
        return []

    with pytest.raises(ConduError, match="not fetched within") as late:
        fetch(fetcher("https://a.example.com/", timeout_s=0.1, resolve=never), "https://a.example.com/x.png")
    assert late.value.http_status == 504


@pytest.mark.s3
def test_objects_below_an_allowed_prefix_are_read(s3_url: str) -> None:
    S3Store(f"{s3_url}/photos").put_if_absent("red.png", IMAGE)
    S3Store(f"{s3_url}/private").put_if_absent("red.png", IMAGE)
    found = fetcher(f"{s3_url}/photos/", s3=S3Options())
    assert fetch(found, f"{s3_url}/photos/red.png") == [IMAGE]
    for key, says in (("photos/nothing.png", "no such object"), ("private/red.png", "what its operator allows")):
        with pytest.raises(ConduError, match=says):
            fetch(found, f"{s3_url}/{key}")
    with pytest.raises(ConduError, match="more than 10 bytes"):
        fetch(fetcher(f"{s3_url}/photos/", max_bytes=10), f"{s3_url}/photos/red.png")


def test_a_service_answers_for_an_image_by_url_as_for_the_image(site: Site, tmp_path: Path) -> None:
    store: Store = open_store(str(tmp_path))
    publish_tasks(store)
    here = f"http://127.0.0.1:{site.port}/photos/"
    images = [{"url": here + "red.png", "name": "red"}, {"b64": base64.b64encode(IMAGE).decode()}]

    async def story() -> None:
        async with PlainService(store, fetch=(here,)) as client:
            answer = await client.post("/v1/predict", json={"images": images, "task": "colours"})
            assert answer.status_code == 200, answer.text
            one, other = answer.json()["predictions"]
            assert (one["image"], other["image"]) == ("red", "image-2")
            assert one["top"] == other["top"]
            # what else is wrong is found before anything is fetched
            site.asked.clear()
            refused = await client.post("/v1/predict", json={"images": images, "top_k": 0})
            assert refused.status_code == 422
            assert site.asked == []
            refused = await client.post("/v1/embed", json={"images": [{"url": here + "../red.png"}]})
            assert "images.0" in error_of(refused)

    asyncio.run(story())


def test_without_a_list_no_url_is_fetched(tmp_path: Path) -> None:
    store: Store = open_store(str(tmp_path))
    publish_tasks(store)

    async def story() -> None:
        async with PlainService(store) as client:
            answer: httpx.Response = await client.post(
                "/v1/predict", json={"images": [{"url": "http://169.254.169.254/"}]}
            )
            assert "fetches no URL" in error_of(answer)

    asyncio.run(story())
