"""What only a service can answer with, beside the errors of `fusion`."""

from __future__ import annotations

from fusion.errors import ConduError


class RequestError(ConduError):
    """A request whose fields can't be read, or contradict each other."""

    http_status = 422


class MediaTypeError(ConduError):
    """A body that is neither a form nor an image."""

    http_status = 415


class BodyTooLargeError(ConduError):
    """A body above the limit."""

    http_status = 413


class OverloadedError(ConduError):
    """More requests than may wait. Nothing was computed: send it again after `Retry-After`."""

    http_status = 429


class NotReadyError(ConduError):
    """No version is loaded yet."""

    http_status = 503


class RequestTimeoutError(ConduError):
    """No answer within `request_timeout_s`."""

    http_status = 504


class StartError(ConduError):
    """The service did not come up."""

    http_status = 503
