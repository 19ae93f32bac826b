"""Pages for people: `/` asks the service about images, `/docs` renders `/openapi.json`. They load files from
here alone.

A page is an `.html` file in `serving/pages` with its `.css` and `.js` beside it: the content security policy forbids
inline scripts and styles, and other hosts.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

router = APIRouter(include_in_schema=False)

_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@router.get("/")
async def index() -> Response:
    return _file("index.html")


@router.get("/docs")
async def docs() -> Response:
    return _file("docs.html")


@router.get("/pages/{name}")
async def asset(name: str) -> Response:
    if name not in _pages() or name.endswith(".html"):
        raise HTTPException(404)
    return _file(name)


def _file(name: str) -> Response:
    return Response(_pages()[name], media_type=_MEDIA_TYPES[PurePath(name).suffix], headers=_HEADERS)


@cache
def _pages() -> dict[str, bytes]:
    """The package's page files by name, read once."""
    found = [entry for entry in (files("serving") / "pages").iterdir() if PurePath(entry.name).suffix in _MEDIA_TYPES]
    return {entry.name: entry.read_bytes() for entry in found}
