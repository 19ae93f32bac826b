"""What a service is told once, when it starts. Plain values, so that they travel to every replica."""

from __future__ import annotations

from dataclasses import dataclass

from fusion.answers.label_spaces import DEFAULT_TOP_K
from fusion.answers.predictor import DEFAULT_CACHED_EXPERTS
from fusion.errors import ConfigError
from fusion.store.address import StoreAddress

MIB = 1 << 20


@dataclass(frozen=True)
class ServeOptions:
    """Options of one service. Raises `ConfigError` with every choice that can't work."""

    address: StoreAddress
    """Of the store that is served."""
    top_k: int = DEFAULT_TOP_K
    """Experts consulted for an image where a request does not say."""
    host: str = "127.0.0.1"
    port: int = 8000

    min_replicas: int = 1
    """Of each deployment: ingress, base, experts."""
    max_replicas: int = 1
    num_cpus: float = 1.0
    """CPUs of a base or expert replica: what Ray reserves, and torch's threads. The ingress reserves none."""
    num_gpus: float = 0.0
    """GPU share of a base or expert replica. 0: on the CPU. A share is bookkeeping, not a limit on memory."""
    cached_experts: int = DEFAULT_CACHED_EXPERTS
    """Rebuilt experts that an expert replica keeps in memory, one model's weights each."""

    max_batch_size: int = 16
    """Images in one forward."""
    batch_wait_s: float = 0.01
    """How long a forward waits for more images. About half of what a forward takes is right."""
    poll_s: float = 2.0
    """How often the store is asked for the next version."""
    start_timeout_s: float = 600.0
    """How long `start` waits until the service is ready."""
    request_timeout_s: float = 30.0
    max_queued_requests: int = 64
    """Predictions in flight in one ingress replica; the next one gets 429."""

    max_body_bytes: int = 32 * MIB
    max_images: int = 64
    """Images in one request."""
    max_pixels: int = 50_000_000
    """Pixels of one image, before it is decoded: what stops a decompression bomb."""
    max_top_k: int = 16
    """Ceiling for a request's `top_k`: each is an expert to rebuild."""
    max_texts: int = 4096
    """Ceiling for labels x templates of a request: each is a text to encode, by every expert consulted."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}: it has to be above 0"
            for name in (
                "top_k", "min_replicas", "max_replicas", "num_cpus", "cached_experts", "max_batch_size", "poll_s",
                "start_timeout_s", "request_timeout_s", "max_queued_requests", "max_body_bytes", "max_images",
                "max_pixels", "max_top_k", "max_texts",
            )
            if getattr(self, name) <= 0
        ]  # fmt: skip
        problems += [
            f"{name} is {getattr(self, name)}: it can't be negative"
            for name in ("num_gpus", "batch_wait_s")
            if getattr(self, name) < 0
        ]
        if not 0 < self.port < 65536:
            problems.append(f"port is {self.port}: it has to be between 1 and 65535")
        if self.max_replicas < self.min_replicas:
            problems.append(f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})")
        if self.top_k > self.max_top_k:
            problems.append(f"top_k ({self.top_k}) is above max_top_k ({self.max_top_k})")
        if problems:
            raise ConfigError("serving: " + "; ".join(problems))

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus > 0 else "cpu"
