"""botocore's errors turned into ours: what failed, at which URL and key, and the next step.

`KeyTakenError` and `WriteConflictError` never leave the store: they are answers, not failures.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from botocore import exceptions as boto
from botocore.exceptions import ClientError
from urllib3.exceptions import HTTPError

from fusion.errors import StoreAccessError, StoreError, StoreUnavailableError
from fusion.store.keys import not_found


class KeyTakenError(StoreError):
    """412: the condition failed because the key has an object."""


class WriteConflictError(StoreError):
    """409: another write to the key is in progress. Nothing is decided yet: try again."""


BROKEN_STREAM = (
    boto.IncompleteReadError,
    boto.HTTPClientError,
    boto.ConnectionError,
    HTTPError,
    OSError,
)
"""A connection that failed, or that ended before the last byte: worth another attempt."""

_CONDITIONAL = {"put_object", "complete_multipart_upload"}
_PERMISSIONS = "s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and s3:ListBucket"
_CREDENTIALS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_PROFILE, and that they belong to this endpoint"
_REGION = "set `region` to the bucket's region (and `endpoint_url` to its endpoint, if that is not Amazon's)"
_ACCESS = {
    "AccessDenied": f"the credentials in use need {_PERMISSIONS} there",
    "Forbidden": f"the credentials in use need {_PERMISSIONS} there",
    "403": f"check the credentials, and that they allow {_PERMISSIONS} there",
    "AllAccessDisabled": "the provider has closed this bucket: contact the provider",
    "InvalidAccessKeyId": f"the endpoint does not know this access key: {_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key does not match the access key: {_CREDENTIALS}",
    "InvalidToken": "the session token is not valid: renew the credentials",
    "ExpiredToken": "the session token has expired: renew the credentials",
    "NoSuchBucket": "create the bucket, or check its name, `region` and `endpoint_url`",
    "InvalidBucketName": "check the bucket's name in the store's URL",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "NotImplemented": "the endpoint lacks a call that condu needs: use another one, see `condu doctor`",
}
_CLOCK_TOLERANCE_S = 15 * 60
_BUSY = {
    "SlowDown",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "InternalError",
}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.UnauthorizedSSOTokenError,
    boto.SSOTokenLoadError,
    boto.ProfileNotFound,
    boto.NoRegionError,
)


def explain(error: Exception, operation: str, url: str, key: str, endpoint: str) -> StoreError:
    """The error to raise in place of `error`, which botocore raised in `operation` (the name of its method)."""
    where = f"{url}/{key}" if key else url
    what = f"{operation} of {where} at {endpoint} failed ({error})"
    if isinstance(error, ClientError):
        return _refusal(error, operation, url, key, what)
    if isinstance(error, boto.SSLError):
        return StoreAccessError(
            f"{what}: this machine does not trust the endpoint's certificate. Set `ca_bundle` (or AWS_CA_BUNDLE) to a "
            "PEM file of its certificate authority, and check that the address matches the certificate"
        )
    if isinstance(error, _NO_CREDENTIALS):
        return StoreAccessError(
            f"{what}: there are no usable credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give "
            "this machine a profile or role"
        )
    if isinstance(error, BROKEN_STREAM):
        return StoreUnavailableError(
            f"{what}: check `endpoint_url`, the network, and that the endpoint is running; then try again"
        )
    return StoreError(f"{what}: check the S3 options and the store's URL")


def code_of(error: StoreError) -> str:
    """S3's code for the cause of `error`, such as `NoSuchUpload`; '' if the endpoint did not answer."""
    cause = error.__cause__
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, ClientError) else ""


def _refusal(error: ClientError, operation: str, url: str, key: str, what: str) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if operation in _CONDITIONAL and (code == "PreconditionFailed" or status == 412):
        return KeyTakenError(what)
    if operation in _CONDITIONAL and (code == "ConditionalRequestConflict" or status == 409):
        return WriteConflictError(what)
    if operation == "head_bucket" and status == 404:
        code = "NoSuchBucket"
    if code == "RequestTimeTooSkewed" or (status == 403 and abs(_clock_offset_s(error)) > _CLOCK_TOLERANCE_S):
        return StoreAccessError(f"{what}: {_clock_advice(_clock_offset_s(error))}")
    if code in _ACCESS or code.startswith("KMS.") or status in (401, 403):
        return StoreAccessError(f"{what}: {_ACCESS.get(code, 'check the permissions of the credentials in use')}")
    if code in _BUSY or status == 429 or status >= 500:
        return StoreUnavailableError(f"{what}: the endpoint is overloaded or broken. Try again later")
    if code in ("NoSuchKey", "404"):
        return not_found(url, key)
    return StoreError(f"{what}: if the endpoint is not Amazon's, try `checksum: when_required`, and run `condu doctor`")


def _clock_offset_s(error: ClientError) -> float:
    """Seconds by which this machine's clock is ahead of the endpoint's, by the response's date; 0 without a date.

    A refused HEAD has no body and therefore no code: only the date tells a wrong clock from a missing permission.
    """
    try:
        date = parsedate_to_datetime(error.response["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, TypeError, ValueError):
        return 0.0
    return (_now() - date).total_seconds()


def _clock_advice(offset_s: float) -> str:
    if abs(offset_s) <= _CLOCK_TOLERANCE_S:  # the response has no date, or the clock has been set since
        return "this machine's clock is off by more than 15 minutes: set it (NTP), then try again"
    where = "ahead of" if offset_s > 0 else "behind"
    return (
        f"this machine's clock is {abs(offset_s) / 60:.0f} minutes {where} the endpoint's, and 15 are allowed: set it "
        "(NTP), then try again"
    )


def _now() -> datetime:
    return datetime.now(UTC)
