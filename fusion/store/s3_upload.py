"""A multipart upload that is conditional: it is completed with `If-None-Match: *`, which boto3's own does not offer.

Parts of 16 MiB in 4 threads, so at most 64 MiB of the body are in memory; beyond 156 GiB parts grow, to stay within
S3's limit of 10,000. If anything fails, the upload is aborted, so that its parts are not billed. A killed process can't
do that: give the bucket a lifecycle rule that aborts incomplete uploads.

Not every endpoint makes the completion exclusive: on SeaweedFS 4.48 several concurrent completions can all succeed,
and the last one stays (its `put_object` is exclusive). So nothing above 64 MiB may depend on which writer was first.
In condu nothing does: such keys contain the writer's nonce or the sha256 of the body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fusion.errors import StoreError
from fusion.store.s3_errors import KeyTakenError, code_of

logger = logging.getLogger(__name__)

PART_BYTES = 16 << 20
MAX_PARTS = 10_000
NUM_THREADS = 4


def upload_parts(
    call: Callable[..., Any],
    body: bytes | Path,
    num_bytes: int,
    *,
    is_taken: Callable[[], bool],
    encryption: Mapping[str, str],
) -> None:
    """Store `body` in parts unless the key is taken.

    Args:
        call: `call(operation, **arguments)` sends one request about the key, and raises our errors.
        num_bytes: size of `body`, above 0.
        is_taken: whether the key has an object now.
        encryption: arguments of the request that opens the upload.
    Raises:
        KeyTakenError: the key is taken, perhaps by this very upload, whose reply was lost.
        WriteConflictError: another write is in progress; S3 requires the whole upload again.
    """
    part_bytes = max(PART_BYTES, -(-num_bytes // MAX_PARTS))
    upload_id = call("create_multipart_upload", **encryption)["UploadId"]

    def put_part(number: int) -> dict[str, Any]:
        data = _read(body, (number - 1) * part_bytes, part_bytes)
        answer = call("upload_part", UploadId=upload_id, PartNumber=number, Body=data)
        sums = {name: value for name, value in answer.items() if name.startswith("Checksum") and name != "ChecksumType"}
        return {"PartNumber": number, "ETag": answer["ETag"], **sums}

    try:
        parts = _in_threads(put_part, -(-num_bytes // part_bytes))
        try:
            call(
                "complete_multipart_upload",
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
        except StoreError as error:
            # the reply to the completion was lost, and the retry finds no upload: see whether the key is taken
            if code_of(error) == "NoSuchUpload" and is_taken():
                raise KeyTakenError(str(error)) from error
            raise
    except BaseException:
        _abort(call, upload_id)
        raise


def _in_threads(put_part: Callable[[int], dict[str, Any]], num_parts: int) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        futures = [pool.submit(put_part, number) for number in range(1, num_parts + 1)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # no part may arrive after the abort
            raise


def _abort(call: Callable[..., Any], upload_id: str) -> None:
    try:
        call("abort_multipart_upload", UploadId=upload_id)
    except StoreError as error:
        if code_of(error) != "NoSuchUpload":
            logger.warning("parts of a failed upload remain until a lifecycle rule removes them error=%s", error)


def _read(body: bytes | Path, start: int, num_bytes: int) -> bytes:
    if not isinstance(body, Path):
        return body[start : start + num_bytes]
    with open(body, "rb", buffering=0) as file:
        file.seek(start)
        return file.read(num_bytes)
