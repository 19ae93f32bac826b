"""Errors for the person who meets them: what is wrong, with which value or file, and what to do.

Everything that a user, an operator or a request can cause derives from `ConduError`; the command line prints
its message and the HTTP service answers with its `http_status`. A traceback is kept for what we broke.
"""

from __future__ import annotations

import collections.abc


class ConduError(ValueError):
    """Base of every error that condu raises on purpose. `http_status` is what the service answers with."""

    http_status = 400
    errors: tuple[tuple[str, str], ...] = ()
    """Each mistake, where there may be several: the field, empty where it is no single one, and what is wrong."""
    headers: collections.abc.Mapping[str, str] | None = None
    """Of the service's answer, beside its usual ones."""


class ConfigError(ConduError):
    """A configuration file, or a choice on the command line, that can't be used."""


class DataError(ConduError):
    """A task's data: a missing folder, an unreadable image, a class without images."""


class ImageError(DataError):
    """Bytes that are not an image, or an image too large to decode safely."""

    http_status = 422


class TaskNameError(ConduError):
    """A task name that is ill-formed or taken."""

    http_status = 409


class UnknownTaskError(ConduError):
    """A task that the version does not have."""

    http_status = 404


class LabelSpaceError(ConduError):
    """A label space that does not exist, or lacks what it needs."""

    http_status = 422


class UnknownVersionError(ConduError):
    """A version that was never published."""

    http_status = 404


class VersionGoneError(ConduError):
    """A version that `gc` has removed."""

    http_status = 410


class StateDictError(ConduError):
    """Weights that are unreadable, incomplete, of another shape, or not finite."""


class BaseMismatchError(ConduError):
    """An expert or a store that belongs to another base."""


class DiskError(ConduError):
    """A local disk that can't take a file: full, or not to be written."""

    http_status = 503


class StoreError(ConduError):
    """Base of what can go wrong between us and the object store."""

    http_status = 503


class StoreUrlError(ConfigError):
    """A store URL that names no store we know."""


class StoreAccessError(StoreError):
    """The store refused: no permission, wrong credentials, a missing bucket."""


class StoreUnavailableError(StoreError):
    """The store did not answer after all retries."""


class BlobNotFoundError(StoreError):
    """An object that the store does not have."""


class DamagedBlobError(StoreError):
    """Bytes that differ from the sha256 that names them."""


class FormatError(StoreError):
    """A manifest or record of a format that this release can't read."""


def own_cause(error: BaseException) -> ConduError | None:
    """The `ConduError` that a remote call raised; None where it raised something else.

    Ray wraps what a task or an actor raises in an error of its own, with the original as `cause`. A caller raises that
    one again, so that users meet the same message wherever the code ran.
    """
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, ConduError) else None
