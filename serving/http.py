"""The HTTP application of one ingress replica, put together."""

from __future__ import annotations

from functools import cache

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from fusion.store import Store
from serving.catalogue import Catalogue
from serving.dependencies import Parts
from serving.door import Door
from serving.error_handlers import add_error_handlers
from serving.exhibits import Exhibits
from serving.fetching.fetcher import Fetcher
from serving.metrics import Metrics
from serving.request_id import HEADER, RequestId
from serving.routes import admin, catalogue, embed, health, pages, predict, showcase
from serving.routes.examples import add_examples
from serving.service import Service

_DESCRIPTION = """One CLIP that keeps learning: one expert per task, one version of all of them at a time.

Three label spaces. `task`: you name the task; its expert answers over its own classes. `labels`: you give class
names; the base and the experts nearest to the image answer over them. `seen`: you give nothing; the classes of the
nearest tasks compete, and the answer names task and class. Every answer names the version that it comes from."""


def build_http(service: Service, store: Store, metrics: Metrics, door: Door) -> FastAPI:
    """The application that answers for `service`, whose versions are in `store`, whoever `door` lets in."""
    # FastAPI's own documentation pages load scripts from elsewhere: `routes.pages` has a self-contained one
    app = FastAPI(title="condu", version="1", description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.parts = Parts(
        service, Catalogue(store), Exhibits(store), metrics, door, store, Fetcher.of(service.options)
    )
    if service.options.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.options.cors,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Encoding", "Content-Type", HEADER],
            expose_headers=[HEADER, "Retry-After"],
        )
    app.add_middleware(RequestId)  # the last is the outermost: a preflight has a name too
    add_error_handlers(app, store.url)
    plain = app.openapi
    app.openapi = cache(lambda: add_examples(plain()))  # type: ignore[method-assign]
    for module in (predict, embed, catalogue, showcase, admin, health, pages):
        app.include_router(module.router)
    return app
