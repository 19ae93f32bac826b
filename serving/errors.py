"""Errors of the service, in addition to those of `fusion`."""

from __future__ import annotations

from types import MappingProxyType

from fusion.errors import ConduError


class RequestError(ConduError):
    """A request whose fields cannot be read, or contradict each other."""

    http_status = 422

    @classmethod
    def of(cls, errors: tuple[tuple[str, str], ...]) -> RequestError:
        """One error of several mistakes: `top_k: Input should be …; …`."""
        error = cls("; ".join(f"{field}: {what}" if field else what for field, what in errors))
        error.errors = errors
        return error


class UnauthorizedError(ConduError):
    """A caller without a token, where one is asked for, or with one that is not valid."""

    http_status = 401

    def __init__(self, message: str, *, given: bool = False) -> None:
        super().__init__(message)
        self.headers = {"WWW-Authenticate": 'Bearer realm="condu"' + (', error="invalid_token"' if given else "")}


class ForbiddenError(ConduError):
    """A caller without the scope that the route requires."""

    http_status = 403


class NoSampleError(ConduError):
    """A sample image that is not there."""

    http_status = 404


class MediaTypeError(ConduError):
    """A body that is neither a form nor an image."""

    http_status = 415


class EncodingError(ConduError):
    """A body that is compressed in a way that is not understood."""

    http_status = 415
    headers = MappingProxyType({"Accept-Encoding": "gzip"})  # RFC 7694


class BodyTooLargeError(ConduError):
    """A body larger than the limit."""

    http_status = 413


class OverloadedError(ConduError):
    """Too many requests are waiting. Nothing was computed: retry after `Retry-After`."""

    http_status = 429


class LimitError(ConduError):
    """More requests or images a second than the caller is allowed. Nothing was computed."""

    http_status = 429

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(f"{message}. Retry after {retry_after_s} s")
        self.headers = {"Retry-After": str(retry_after_s)}


class NotReadyError(ConduError):
    """No version is loaded yet."""

    http_status = 503


class RequestTimeoutError(ConduError):
    """No answer within `request_timeout_s`."""

    http_status = 504


class StartError(ConduError):
    """The service did not start."""

    http_status = 503
