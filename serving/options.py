"""What a service is told once, when it starts. Plain values, so that they travel to every replica."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from fusion.answers.options import DEFAULT_EXPERT_MEMORY, MAX_PIXELS, PredictOptions
from fusion.errors import ConfigError
from fusion.options import Options
from fusion.store.address import StoreAddress
from serving.fetching.allowed import places
from serving.loopback import is_loopback

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ROUTE = re.compile(r"/|(/[A-Za-z0-9_][A-Za-z0-9_.~-]*)+")
"""`/-/` is Serve's own."""
_ORIGIN = re.compile(r"https?://[A-Za-z0-9_.\[\]:-]+")


@dataclass(frozen=True)
class ReplicaOptions(Options):
    """How many processes share the work. Raises `ConfigError` for values out of range."""

    min: Annotated[int, Ge(1)] = 1
    """Replicas that always run."""
    max: Annotated[int, Ge(1)] = 1
    """Most replicas. Above `min`, Serve scales between the two."""
    per_node: Annotated[int, Ge(1)] | None = None
    """Most replicas on one node; one that finds no node waits for it. An update then replaces them one after the other,
    instead of starting the new ones beside the old. Null: any number, on as many nodes as have room."""

    def contradictions(self) -> list[str]:
        return [f"max: {self.max} is below min: {self.min}"] if self.max < self.min else []


@dataclass(frozen=True)
class LimitOptions(Options):
    """How much one token may ask for. Each replica counts by itself. Raises `ConfigError` for values out of range."""

    requests_per_s: Annotated[float, Gt(0)] | None = None
    """Requests a second of a token that was made without a limit of its own; above it 429. Null: any number. Where no
    tokens are asked for, of all callers together."""
    images_per_s: Annotated[float, Gt(0)] | None = None
    """Images a second, likewise. A larger request passes when nothing is owed, and the next ones wait for it."""


@dataclass(frozen=True)
class LogOptions(Options):
    """What is kept of what is asked. Raises `ConfigError` for values out of range, and for choices without effect."""

    sample: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of the images asked about that are logged in the store: the request's id, the answer, and the base's
    features, for `condu drift`. 0: none. The service then writes to the store, below `log/`."""
    images: bool = False
    """Log the image itself as well, as it was received."""
    keep_days: Annotated[int, Ge(1)] | None = 30
    """After how many days `condu versions gc` deletes what is logged from now on. Null: never."""
    flush_rows: Annotated[int, Ge(1)] = 1000
    """A replica writes a file as soon as it has so many images."""
    flush_s: Annotated[float, Gt(0)] = 60.0
    """Longest that an image waits until it is written. What waits is lost if the replica is killed."""
    memory: Annotated[int, Ge(1)] = 64 << 20
    """Bytes that may wait in the memory of one replica, about; images that do not fit are not logged. The default is
    64 MiB."""

    def contradictions(self) -> list[str]:
        return ["images: true has no effect with sample: 0"] if self.images and self.sample == 0 else []


@dataclass(frozen=True)
class ServeOptions(Options):
    """How a service runs, whatever it serves. Raises `ConfigError` for values out of range."""

    name: str = "condu"
    """Name of the Serve application. Several services on one cluster have different ones."""
    route: str = "/"
    """Path below which the service answers, such as `/flowers`. Several services on one cluster have different ones, on
    one port."""
    replicas: ReplicaOptions = ReplicaOptions()
    """How many processes answer. Each does all of a request: it decodes, runs base and experts, and answers."""
    num_cpus: Annotated[float, Gt(0)] = 1.0
    """Cores of a replica: what Ray reserves, and the threads it computes with. Decoding takes up to two more."""
    num_gpus: Annotated[float, Ge(0)] = 0.0
    """GPU share of a replica; above 0 its models run on CUDA. A share is bookkeeping, not a limit on
    memory."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Interval(ge=1, le=65535)] = 8000
    """Port to listen on."""
    auth: Literal["auto", "tokens", "none"] = "auto"
    """Who may ask. `tokens`: whoever has one (`condu token create`). `none`: whoever reaches the port. `auto`: `none`
    where `host` is loopback, else `tokens`."""
    limits: LimitOptions = LimitOptions()
    """How much one token may ask for."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask from a browser, such as `https://app.example.com`; `"*"` is every page."""
    fetch: tuple[str, ...] = ()
    """Where images that a JSON body names by `url` may be fetched from: everything below `https://images.example.com/`,
    `https://*.example.com/photos/`, `s3://bucket/prefix/`. A host must be on the public internet, unless it is spelled
    out as an address. Objects on S3 are read with the service's own rights."""
    log: LogOptions = LogOptions()
    """What is kept of what is asked."""
    expert_memory: Annotated[int, Ge(1)] = DEFAULT_EXPERT_MEMORY
    """Bytes of experts in the memory of one replica, beside the base. With less than those in use take,
    requests make them ready again and again. The default is 4 GiB."""
    text_memory: Annotated[int, Ge(1)] = 256 << 20
    """Bytes of text features in the memory of one replica, of experts' classes and of callers' labels. The default is
    256 MiB."""
    max_batch_size: Annotated[int, Ge(1)] = 16
    """Images in one forward pass."""
    poll_s: Annotated[float, Gt(0)] = 2.0
    """How often a replica looks for a new version in the store."""
    start_timeout_s: Annotated[float, Gt(0)] = 600.0
    """How long the start may take until the service is ready."""
    request_timeout_s: Annotated[float, Gt(0)] = 30.0
    """How long one prediction may take; then 504."""
    max_queued_requests: Annotated[int, Ge(1)] = 64
    """Predictions in flight in one replica; the next one gets 429."""
    max_body_bytes: Annotated[int, Ge(1)] = 32 << 20
    """Size of a request's body; above it 413. The default is 32 MiB."""
    max_images: Annotated[int, Ge(1)] = 64
    """Images in one request."""
    max_pixels: Annotated[int, Ge(1)] = MAX_PIXELS
    """Pixels of one image, checked before it is decoded: what stops a decompression bomb."""
    max_top_k: Annotated[int, Ge(1)] = 16
    """Ceiling for a request's `top_k`, and for `predict.top_k`: each is an expert to rebuild."""
    max_texts: Annotated[int, Ge(1)] = 4096
    """Ceiling for a request's labels x templates: every expert consulted encodes each of these texts."""

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if not _NAME.fullmatch(self.name):
            problems.append(f"name: {self.name!r} is not a name: use letters, digits, `_`, `.` and `-`")
        if not _ROUTE.fullmatch(self.route):
            problems.append(f"route: {self.route!r} is not a route: write `/`, or a path such as `/flowers`")
        for origin in self.cors:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                problems.append(f"cors: {origin!r} is not an origin: write https://app.example.com, without a path")
        try:
            places(self.fetch)
        except ConfigError as error:
            problems.append(str(error).removeprefix("serve."))
        return problems

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus > 0 else "cpu"


@dataclass(frozen=True, kw_only=True)
class ServiceOptions(ServeOptions, PredictOptions):
    """All that a service is told: the store, how it answers, and how it runs. Raises `ConfigError`."""

    address: StoreAddress
    """Of the store that is served."""
    host_is_told: bool = True
    """False where Serve's own configuration says where it listens, and `host` says nothing."""

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine reaches the service, as far as is known."""
        return self.host_is_told and is_loopback(self.host)

    @property
    def asks_for_tokens(self) -> bool:
        return self.auth == "tokens" or (self.auth == "auto" and not self.on_loopback)

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.top_k > self.max_top_k:
            problems.append(f"top_k ({self.top_k}) is above max_top_k ({self.max_top_k})")
        return problems
