"""The fields of requests and answers, and what a request's fields mean together.

A repeated field (`labels`, `templates`, …) may also be given once, as a JSON array of strings, and be named as PHP and
jQuery do, `labels[]`. A field whose only value is empty counts as absent, because HTML forms send empty fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusion.answers.label_spaces import Prediction, Query
from fusion.answers.prompts import DEFAULT_TEMPLATES, check_templates
from fusion.errors import LabelSpaceError
from serving.errors import RequestError

Text = Annotated[str, Field(max_length=256)]


class Fields(BaseModel):
    """The fields of a request, apart from the images."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def read(cls, items: Iterable[tuple[str, str]]) -> Self:
        """Read a form's fields or a query string. Raises `RequestError` that lists all mistakes."""
        repeated = [name for name, field in cls.model_fields.items() if get_origin(field.annotation) is tuple]
        given: dict[str, list[str]] = {}
        for name, value in items:
            bare = name.removesuffix("[]")
            given.setdefault(bare if bare in repeated else name, []).append(value)
        values: dict[str, Any] = {}
        for name, found in given.items():
            if name in repeated and found == [""]:
                continue
            if name in repeated:
                values[name] = _strings(name, found)
            elif len(found) > 1:
                raise RequestError(f"{name} is given {len(found)} times, it takes one value")
            elif found[0]:
                values[name] = found[0]
        try:
            return cls(**values)
        except ValidationError as error:
            raise RequestError.of(mistakes(error.errors())) from None

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Self:
        """Read the members of a JSON object, whose types must be right. Raises `RequestError` like `read`."""
        try:
            return cls.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            raise RequestError.of(mistakes(error.errors())) from None


class PredictFields(Fields):
    """The fields of a prediction."""

    label_space: Literal["task", "labels", "seen"] | None = None
    """How to answer. Absent: `task` where a task is given, `labels` where labels are, else `seen`."""
    task: Text | None = None
    """The task whose expert answers, over its own classes and templates. For label space `task`."""
    labels: tuple[Text, ...] = ()
    """The class names to choose from; repeat the field, or give one JSON array. For label space `labels`."""
    templates: tuple[Text, ...] = ()
    """Prompts with one `{}` each; repeated like labels. Default: `a photo of a {}.` For label space `labels`."""
    top_k: int | None = Field(default=None, ge=1)
    """How many experts are consulted per image by the rule `mean`. Has no effect by `matched`, and in label space
    `task`, which asks one."""
    abstain: float | None = Field(default=None, gt=0, lt=1)
    """Answer "unknown" for an image that is more unusual than this share of the learned tasks' own images, such as
    0.05. For label space `seen`. Absent: what the service was started with."""
    views: Literal["one", "many"] = "one"
    """`many`: all images are views of one object, and get one answer together."""
    combine: Literal["mean", "max", "mean-feature"] = "mean"
    """How views are combined: the mean of their log-probabilities, the largest probability, or one answer for the mean
    of their features."""
    version: int | None = Field(default=None, ge=1)
    """The version that answers. Absent: the newest that this replica has loaded."""

    def query(self, *, default_top_k: int, max_top_k: int, max_texts: int) -> Query:
        """The query that the fields mean. Raises `LabelSpaceError` where they contradict each other or exceed a limit.

        Whether the task exists depends on the version, and is left to `Query.check`.
        """
        if self.views == "one" and "combine" in self.model_fields_set:
            raise LabelSpaceError("combine says how views of one object are combined: give views=many too, or drop it")
        if self.task and self.labels:
            raise LabelSpaceError(
                "task and labels contradict each other: a task has its own classes. Give one or the other"
            )
        space = self.label_space or ("task" if self.task else "labels" if self.labels else "seen")
        if self.templates and space != "labels":
            raise LabelSpaceError(f"label space {space!r} takes no templates: drop them, or give labels too")
        templates = checked_templates(self.templates)
        if (num_texts := len(self.labels) * len(templates)) > max_texts:
            raise LabelSpaceError(
                f"{len(self.labels)} labels in {len(templates)} templates are {num_texts} texts, "
                f"the limit per request is {max_texts}"
            )
        if len(self.labels) == 1:
            raise LabelSpaceError(
                f"labels has one label, {self.labels[0]!r}, so there is nothing to tell apart: repeat the field "
                "(labels=cat&labels=dog), or give one JSON array"
            )
        top_k = self.top_k or default_top_k
        if top_k > max_top_k:
            raise LabelSpaceError(f"top_k is {top_k}, this service consults at most {max_top_k} experts per image")
        return Query(
            label_space=space,
            task=self.task,
            labels=self.labels,
            templates=templates,
            top_k=top_k,
            abstain=self.abstain,
            views=self.combine if self.views == "many" else None,
        )


class Candidate(BaseModel):
    task: str | None
    label: str
    probability: float


class ImagePrediction(BaseModel):
    image: str = Field(description="The file's name as uploaded; of several views the first one's")
    views: int = Field(default=1, description="How many images this is the answer for")
    label: str | None = Field(description="The class; null where the answer is 'unknown'")
    task: str | None = Field(
        description="The task that the class belongs to; null in label space `labels` and for 'unknown'"
    )
    probability: float = Field(description="Of the best candidate, among all candidates")
    experts: list[str] = Field(description="The experts that were consulted, nearest first")
    top: list[Candidate] = Field(description="Up to five candidates, best first")
    rule: str | None = Field(description="The rule that combined base and experts; null in label space `task`")
    familiarity: float | None = Field(
        description="How usual the image is for what was learned, 0 to 1: 5 % of the learned tasks' own images are "
        "below 0.05. Null where the rule cannot tell"
    )

    unknown: bool | None = Field(
        description="Whether the image is too unusual to be answered; null where `abstain` is not set or nothing tells"
    )

    @classmethod
    def of(cls, name: str, answer: Prediction, *, views: int = 1) -> ImagePrediction:
        top = [Candidate(task=task, label=label, probability=p) for task, label, p in answer.top]
        return cls(
            image=name,
            views=views,
            label=answer.label,
            task=answer.task,
            probability=answer.probability,
            experts=list(answer.experts),
            top=top,
            rule=answer.rule,
            familiarity=answer.familiarity,
            unknown=answer.unknown,
        )


class PredictResponse(BaseModel):
    version: int = Field(description="The one version that the whole answer comes from")
    label_space: str
    matched: dict[str, dict[str, str]] = Field(
        description="In label space `labels`, by task: labels that it was taught, and the class each means there"
    )
    predictions: list[ImagePrediction] = Field(description="One per image, in their order; one in all for `views=many`")
    warnings: list[str] = Field(
        default_factory=list, description="What may be wrong with the question, such as a text that the model cuts"
    )
    expert_forwards: int = Field(description="Forwards of experts that the request took, over all images")
    seconds: float


class TaskInfo(BaseModel):
    name: str
    classes: list[str]
    templates: list[str]
    aliases: dict[str, list[str]] = Field(description="Other texts that mean a class")
    session: int = Field(description="The session in which it was fused, from 1; 0 for a task without an expert")
    has_expert: bool = Field(description="False where the frozen base answers, with the evidence of the task's images")
    expert: str = Field(description="`task@hash`: changes when a publish changes this task's expert")
    routable: bool = Field(description="Whether images are routed to it; false for plain weights without classes")


class TasksResponse(BaseModel):
    version: int
    tasks: list[TaskInfo] = Field(description="In the order in which they were fused")


class VersionInfo(BaseModel):
    version: int
    created: str | None = Field(default=None, description="When it was published, ISO 8601 in UTC")
    why: str | None = None
    mode: dict[str, Any] | None = None
    num_tasks: int | None = None
    problem: str | None = Field(default=None, description="Why the version cannot be read; null if it can")


class VersionsResponse(BaseModel):
    serving: int | None = Field(description="The version being served")
    versions: list[VersionInfo] = Field(description="Newest first, at most 50")
    before: int | None = Field(description="`?before=` for the next page; null on the last")


class SampleInfo(BaseModel):
    label: str = Field(description="The image's class")
    media_type: str
    path: str = Field(description="Where the image is, relative to the service's root")


class ShownTask(BaseModel):
    images: int = Field(description="Test images that were measured")
    base: float = Field(description="Accuracy of the bare base on them, in percent")
    answered: float = Field(description="Accuracy of the answers, the task named, in percent")
    samples: list[SampleInfo] = Field(description="Test images to try; none unless the configuration asked for them")


class ShowcaseResponse(BaseModel):
    measured: int | None = Field(description="The version that was measured; null: no run left any figures")
    tasks: dict[str, ShownTask] = Field(description="By name; only tasks whose expert is the one that was measured")


class RollbackRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    to: int = Field(ge=1, description="The version whose state is published again")


class EditResponse(BaseModel):
    version: int = Field(description="The version that holds the change; replicas serve it within `serve.poll_s`")
    changed: bool = Field(description="False where the newest version was already so: nothing was published")
    tasks: list[str]
    removed: list[str] = Field(description="Tasks that were removed on purpose: a run skips them")


class ReadyResponse(BaseModel):
    ready: bool
    version: int | None
    tasks: int
    models: str = Field(description="`ready` once the models of this replica answer")
    problem: str | None = Field(
        description="What is wrong with the store or its newest version; the version being served stays"
    )


class Mistake(BaseModel):
    field: str = Field(description="Empty where it is no single field")
    detail: str


class Problem(BaseModel):
    """A problem document, RFC 9457."""

    type: str = Field(description="`urn:condu:` and the error's name, for programs")
    title: str
    status: int
    detail: str = Field(description="For people; may change")
    instance: str = Field(description="The request's id, as in the header `X-Request-Id` and in the service's log")
    errors: list[Mistake] | None = Field(default=None, description="Each mistake, where fields were wrong")


def checked_templates(given: tuple[str, ...]) -> tuple[str, ...]:
    """The templates, or the default. Raises `LabelSpaceError` for one that has other than one `{}`."""
    check_templates(given)
    return given or DEFAULT_TEMPLATES


def mistakes(errors: Iterable[Any]) -> tuple[tuple[str, str], ...]:
    """Pydantic's errors: the field and what is wrong with it."""
    found = []
    for error in errors:
        where = ".".join(str(part) for part in error["loc"] if part not in ("query", "path", "body"))
        found.append((where, "there is no such field" if error["type"] == "extra_forbidden" else error["msg"]))
    return tuple(found)


def _strings(name: str, found: list[str]) -> tuple[str, ...]:
    if len(found) > 1 or not found[0].lstrip().startswith("["):
        return tuple(found)
    try:
        values = json.loads(found[0])
    except ValueError as error:
        raise RequestError(f"{name} is not a valid JSON array: {error}") from None
    if not all(isinstance(value, str) for value in values):
        raise RequestError(f"{name} must be a JSON array of strings")
    return tuple(values)
