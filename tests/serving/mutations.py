"""Bodies that are almost right: images in every format and whole requests, damaged at random."""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from fusion.answers.images import FORMATS
from tests.fusion.answers.pictures import encoded, scene

_BOUNDARY = "a-boundary"
Request = tuple[str, dict[str, str], bytes]
"""Path, headers and body of a `POST`."""


def mutants(chance: random.Random, count: int, tasks: Sequence[str]) -> Iterator[Request]:
    """`count` requests to a service with these tasks. Some are still right."""
    images = _images()
    for _ in range(count):
        image = chance.choice(images)
        if chance.random() < 0.6:
            image = _damaged(chance, image)
        fields = chance.choice([{}, {"task": chance.choice(tasks)}, {"labels": '["red", "a tree"]'}, {"top_k": "2"}])
        path, headers, body = chance.choice([_alone, _form, _json])(image, fields)
        if chance.random() < 0.2:
            headers, body = headers | {"Content-Encoding": "gzip"}, gzip.compress(body)
        if chance.random() < 0.3:
            body = _damaged(chance, body)
        yield path, headers, body


def _images() -> list[bytes]:
    picture = scene()
    kinds = {
        "PNG": [{}, {"compress_level": 0}],
        "JPEG": [{"quality": 90}, {"progressive": True}],
        "TIFF": [{}, {"compression": "tiff_lzw"}],
        "WEBP": [{"lossless": True}, {}],
    }
    found = [encoded(picture, kind, **how) for kind in FORMATS if kind != "MPO" for how in kinds.get(kind, [{}])]
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    found += [encoded(deep, "PNG"), encoded(picture.convert("CMYK"), "JPEG"), encoded(picture.convert("P"), "GIF")]
    frames = [picture, picture.rotate(90)]
    found.append(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    return found


def _damaged(chance: random.Random, body: bytes) -> bytes:
    how: list[Callable[[random.Random, bytearray], bytearray]] = [_flip, _cut, _doubled, _overwritten, _swapped]
    found = bytearray(body)
    for _ in range(chance.randint(1, 3)):
        if found:
            found = chance.choice(how)(chance, found)
    return bytes(found)


def _flip(chance: random.Random, body: bytearray) -> bytearray:
    for _ in range(chance.randint(1, 8)):
        # headers are where parsers decide: half of the flips are there
        body[chance.randrange(min(len(body), 64) if chance.random() < 0.5 else len(body))] ^= 1 << chance.randrange(8)
    return body


def _cut(chance: random.Random, body: bytearray) -> bytearray:
    return body[: chance.randrange(len(body))]


def _doubled(chance: random.Random, body: bytearray) -> bytearray:
    first, last = sorted((chance.randrange(len(body)), chance.randrange(len(body))))
    return body[:last] + body[first:last] + body[last:]


def _overwritten(chance: random.Random, body: bytearray) -> bytearray:
    at, size = chance.randrange(len(body)), chance.choice([1, 2, 4, 8, 64])
    value = chance.choice([0, 0x7F, 0xFF])
    return body[:at] + bytes([value] * size) + body[at + size :]


def _swapped(chance: random.Random, body: bytearray) -> bytearray:
    middle = chance.randrange(len(body))
    return body[middle:] + body[:middle]


def _alone(image: bytes, fields: dict[str, str]) -> Request:
    query = "&".join(f"{name}={value}" for name, value in fields.items() if name != "labels")
    return f"/v1/predict?{query}", {"Content-Type": "image/png"}, image


def _form(image: bytes, fields: dict[str, str]) -> Request:
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts.append(b'name="image"; filename="x"\r\nContent-Type: image/png\r\n\r\n' + image)
    lines = [b"--%s\r\nContent-Disposition: form-data; %s\r\n" % (_BOUNDARY.encode(), part) for part in parts]
    body = b"".join(lines) + b"--%s--\r\n" % _BOUNDARY.encode()
    return "/v1/predict", {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body


def _json(image: bytes, fields: dict[str, str]) -> Request:
    values = {name: json.loads(value) if name == "labels" else value for name, value in fields.items()}
    values |= {"top_k": 2} if "top_k" in fields else {}
    body = json.dumps({"images": [{"b64": base64.b64encode(image).decode()}], **values}).encode()
    return "/v1/predict", {"Content-Type": "application/json"}, body
