"""What a client raises."""

from __future__ import annotations

from fusion.errors import ConduError


class ServiceError(ConduError):
    """The service did not answer, or refused.

    Attributes:
        status: of the answer; None where there was none.
        kind: the problem's name, such as `UnknownTaskError` (docs/http.md, "Errors"); empty where it has none.
        errors: each mistake: the field, and what is wrong with it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        kind: str = "",
        errors: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.errors = errors
