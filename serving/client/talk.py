"""What is said to the service and what its answers mean, without a connection.

A talk is a generator: it yields a `Call` to be sent or a `Pause` to be waited, is sent the reply (a response, or the
error in its place), and returns what it found out. So both clients, with threads and with asyncio, say the same.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from fusion.errors import ConduError, ConfigError
from serving.client.embeddings import Embeddings, Words
from serving.client.errors import ServiceError
from serving.client.images import Read
from serving.client.retries import Retries, retry_after_s
from serving.schemas import ImagePrediction, PredictResponse

Result = TypeVar("Result")
Model = TypeVar("Model", bound=BaseModel)

MAX_BATCH_BYTES = 16 << 20
"""Encoded images in one request of a batch, half of what a service takes by default; an image above it goes alone."""
_AGAIN = (408, 429, 502, 503, 504)
_OF_A_PROXY = (404, 500)
"""Without a problem document these are a proxy's: it does not know its replicas yet, or one died with the request."""
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)


class Question(TypedDict, total=False):
    """What is asked about images; docs/http.md has the meaning of each field. None and absent are the same."""

    task: str | None
    labels: Sequence[str]
    templates: Sequence[str]
    top_k: int | None
    abstain: float | None
    views: str | None
    combine: str | None
    version: int | None


@dataclass(frozen=True)
class Answer:
    """What became of one image of a batch.

    Attributes:
        image: its name.
        prediction: None where there is none.
        response: the answer that it came in, with version, warnings and matched labels; None where there is none.
        problem: why this image could not be answered; None where it was.
    """

    image: str
    prediction: ImagePrediction | None = None
    response: PredictResponse | None = None
    problem: ConduError | None = None


@dataclass(frozen=True)
class Call:
    """A request. `repeatable`: it may be sent again when nobody knows whether it arrived."""

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None
    files: Sequence[tuple[str, tuple[str, bytes, str]]] | None = None
    json: Any = None
    repeatable: bool = True


@dataclass(frozen=True)
class Pause:
    seconds: float


Talk = Generator[Call | Pause, Any, Result]


class Talker:
    """Talks to one service. One that never answered is not waited for; of one that did, a proxy's word is not final.

    Args:
        server: its URL.
        patience_s: for how long a request is repeated.
    """

    def __init__(self, server: str, patience_s: float) -> None:
        self.server = server.rstrip("/")
        self._patience_s = patience_s
        self._met = self._is_condu = False
        """Whether anything has answered, and whether a condu service has."""

    def ask(self, call: Call, model: type[Model]) -> Talk[Model]:
        """Returns the answer. Raises `ServiceError` when the service refuses, or patience is over."""
        retries = Retries(self._patience_s)
        while True:
            reply = yield call
            asked_s = None
            if isinstance(reply, httpx.Response):
                self._met = True
                if reply.status_code == 200:
                    answer = self._read(reply, model)
                    self._is_condu = True
                    return answer
                error = self._refusal(reply)
                self._is_condu |= bool(error.kind)
                again = reply.status_code in (_AGAIN if call.repeatable else (429,))
                again |= self._is_condu and not error.kind and reply.status_code in _OF_A_PROXY and call.repeatable
                asked_s = retry_after_s(reply.headers)
            else:
                reason = str(reply) or type(reply).__name__
                error = ServiceError(f"{self.server} does not answer ({reason}): start it with `condu serve CONFIG`")
                error.__cause__ = reply
                again = self._met and (call.repeatable or isinstance(reply, _NEVER_SENT))
            pause_s = retries.pause_s(asked_s) if again else None
            if pause_s is None:
                raise error
            yield Pause(pause_s)

    def predict(self, images: Sequence[Read], question: Question) -> Talk[PredictResponse]:
        """One request with all images. Raises `ServiceError`, and the error of an image that has no bytes."""
        return (yield from self.ask(_predict(images, question), PredictResponse))

    def embed(self, images: Sequence[Read], words: Words) -> Talk[Embeddings]:
        """One request. Raises `ServiceError`, and the error of an image that has no bytes."""
        from serving.embed_schemas import EmbedResponse  # it loads numpy

        call = _post("/v1/embed", images, {**words, "encoding": "float32"}, Words, "encoding")
        return Embeddings.of((yield from self.ask(call, EmbedResponse)))

    def answer(self, images: Sequence[Read], question: Question) -> Talk[list[Answer]]:
        """An answer for every image, in their order. An image that is refused costs the others one more request.

        Raises `ServiceError` for what is no image's fault.
        """
        found = {i: Answer(image.name, problem=image.problem) for i, image in enumerate(images) if image.problem}
        waiting = _parts(images, [i for i in range(len(images)) if i not in found])
        while waiting:
            part = waiting.pop()
            try:
                call = _predict([images[i] for i in part], question)
                response = yield from self.ask(call, PredictResponse)
            except ServiceError as error:
                refused = _refused(error, part)
                if not refused and error.status == 413 and len(part) > 1:
                    middle = len(part) // 2
                    waiting += [part[:middle], part[middle:]]
                    continue
                if not refused and error.status == 413:
                    refused = {part[0]: ServiceError(f"{images[part[0]].name} is too large to be sent: {error}")}
                if not refused:
                    raise
                found |= {i: Answer(images[i].name, problem=problem) for i, problem in refused.items()}
                if rest := [i for i in part if i not in refused]:
                    waiting.append(rest)
                continue
            for i, prediction in zip(part, response.predictions, strict=True):
                found[i] = Answer(images[i].name, prediction, response)
        return [found[i] for i in range(len(images))]

    def _read(self, reply: httpx.Response, model: type[Model]) -> Model:
        try:
            return model.model_validate_json(reply.content)
        except ValidationError as error:
            raise ServiceError(
                f"{self.server} is not a condu service, or of another release: its answer cannot be read "
                f"({error.error_count()} differences, the first: {error.errors()[0]['msg']})",
                status=reply.status_code,
            ) from error

    def _refusal(self, reply: httpx.Response) -> ServiceError:
        status = reply.status_code
        try:
            problem = reply.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            return ServiceError(
                f"{self.server} is not a condu service: it answered {status} without JSON", status=status
            )
        said = f"{self.server} refused ({status}): {problem.get('detail', problem)}"
        if status == 401:
            said += ". A token is given in $CONDU_TOKEN, or as `token`"
        kind = str(problem.get("type", "")).removeprefix("urn:condu:")
        listed = problem.get("errors") or ()
        mistakes = tuple((str(one.get("field", "")), str(one.get("detail", ""))) for one in listed)
        return ServiceError(said, status=status, kind=kind, errors=mistakes)


def _predict(images: Sequence[Read], question: Question) -> Call:
    return _post("/v1/predict", images, question, Question)


def _post(path: str, images: Sequence[Read], fields: Mapping[str, Any], kind: type, *ours: str) -> Call:
    """A form; JSON where there is no image, because a form without a file is no form.

    Raises `ConfigError` for a field that is neither the kind's nor one of `ours`, and the error of an image that has no
    bytes.
    """
    for image in images:
        if image.problem:
            raise image.problem
    if unknown := fields.keys() - kind.__annotations__ - set(ours):
        raise ConfigError(f"a question has no {sorted(unknown)[0]!r}: it has {', '.join(kind.__annotations__)}")
    given: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, str | int | float):
            given[name] = value
        elif isinstance(value, Sequence) and value:
            given[name] = list(value)
    if not images:
        return Call("POST", path, json=given)
    files = [("image", (image.name, image.body, "application/octet-stream")) for image in images]
    data = {name: str(value).lower() if isinstance(value, bool) else value for name, value in given.items()}
    return Call("POST", path, data=data, files=files)


def _parts(images: Sequence[Read], indices: Sequence[int]) -> list[list[int]]:
    """Consecutive images of at most `MAX_BATCH_BYTES`, the last part first."""
    parts: list[list[int]] = []
    size = 0
    for i in indices:
        size += len(images[i].body)
        if not parts or size > MAX_BATCH_BYTES:
            parts.append([])
            size = len(images[i].body)
        parts[-1].append(i)
    return parts[::-1]


def _refused(error: ServiceError, part: Sequence[int]) -> dict[int, ServiceError]:
    """The images that a refusal names, by index, each with what is wrong with it."""
    found = {}
    for field, detail in error.errors if error.kind == "ImageError" else ():
        name, _, number = field.partition(".")
        if name == "image" and number.isdigit() and int(number) < len(part):
            found[part[int(number)]] = ServiceError(detail, status=error.status, kind=error.kind)
    return found
