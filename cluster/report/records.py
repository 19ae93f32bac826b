"""Reports as frozen records. Their fields are the JSON's keys, in this order: programs read those, so none is renamed.

Accuracies are percent of test images, differences are percentage points, intervals are 95 % [low, high]. None is a
figure that could not be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it imports torch, which a report has no use for
    from cluster.compare import Kind

Interval = tuple[float, float]
Matrix = tuple[tuple[float | None, ...], ...]
"""A[t, i]: accuracy on task i after session t."""


@dataclass(frozen=True)
class Record:
    """A report, or a part of one."""

    def to_json(self) -> dict[str, Any]:
        """JSON values only: lists, dicts by field name, numbers, strings, None."""
        return {field.name: _json_value(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class Estimate(Record):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class BaseFigures(Record):
    """The base; `architecture` is None for a plain state dict."""

    architecture: str | None
    sha256: str


@dataclass(frozen=True)
class EarlyStop(Record):
    """Where a training stopped.

    Attributes:
        steps: that were trained.
        best_step: whose weights are the expert's.
        images: validation images.
        accuracy: of the expert on them, in percent.
    """

    steps: int
    best_step: int
    images: int
    accuracy: float


@dataclass(frozen=True)
class HeldOut(Record):
    """Held-out training images, before the last steps of training saw them too.

    Attributes:
        images: how many.
        expert, head: accuracy of the expert, and of the discriminant of frozen features.
        gain: expert less head, percentage points, with its 95 % interval.
        needed: whether the expert brings more than its error bars.
    """

    images: int
    expert: float
    head: float
    gain: Estimate
    needed: bool


@dataclass(frozen=True)
class CalibrationBin(Record):
    """Answers whose probability is in one of 15 equal bins: their number, mean probability and accuracy, in percent."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration(Record):
    """Answers on the learned tasks' test images in one label space.

    Attributes:
        ece: expected calibration error, 15 bins, percentage points; `ece_before`: without temperatures.
        bins: those that are not empty.
    """

    ece: float
    ece_before: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class Abstention(Record):
    """Whether foreign images are recognised, over test images of learned and of never-trained sets.

    Attributes:
        false_alarm: the nominal share of the learned tasks' own images that is answered with "unknown".
        refused_learned, refused_unseen: what is answered so, in percent, mean over sets; the latter by set too.
        auroc: learned against never-trained images by their familiarity; `auroc_base`: by the base's largest softmax
            probability over all learned classes.
    """

    false_alarm: float
    refused_learned: float
    refused_unseen: float
    refused_unseen_by_set: Mapping[str, float]
    auroc: float
    auroc_base: float


@dataclass(frozen=True)
class OneRequest(Record):
    """Labels of many tasks in one request: accuracy, mean over sets, of learned and of never-trained ones.

    Attributes:
        labels: how many.
        learned, unseen: by the configured rule; `_base`: by the bare base. None where the labels are not among them.
    """

    labels: int
    learned: float
    learned_base: float
    unseen: float | None
    unseen_base: float | None


@dataclass(frozen=True)
class Answers(Record):
    """How the newest version answers, by the configured rule.

    Attributes:
        rule: its name.
        known, unknown, seen: accuracy on learned tasks, mean over tasks: the task named, its labels given, and nothing
            given (task and class right).
        over_experts, over_discriminant: `known` less the plain experts, and less the discriminant of frozen features.
        forwards: experts per image, by way of asking.
        one_request: labels of all learned tasks, and of every set, in one request.
        calibration: by label space.
        abstention: None where there is no never-trained set, or the rule can't tell.
    """

    rule: str
    known: float
    unknown: float
    seen: float
    over_experts: Estimate | None
    over_discriminant: Estimate | None
    forwards: Mapping[str, float]
    one_request: Mapping[str, OneRequest]
    calibration: Mapping[str, Calibration]
    abstention: Abstention | None


@dataclass(frozen=True)
class KeptFigures(Record):
    """Answers of a decoupled expert against the expert's: the same class, in percent of images, and KL in nats."""

    agreement: float
    divergence: float


@dataclass(frozen=True)
class TaskFigures(Record):
    """A trained task, the task known.

    Attributes:
        classes, n_test: numbers of classes and of test images.
        zero_shot: accuracy of the bare base.
        frozen: of the frozen base with a discriminant, a linear probe, or the nearest class mean on top: what costs no
            expert.
        expert: of the expert as trained, by its texts alone; None where its weights are gone, or it has none.
        fused, fused_interval: likewise of the decoupled expert, by mode: the store's own and those that it was compared
            with.
        kept: what the decoupled expert keeps of the expert's answers on the test images, by mode likewise; empty where
            `expert` is None.
        answered, answered_interval: of the answers by the configured rule.
        held_out: what images that training had not seen told of the expert; None where none were held out.
        early_stop: where training stopped; None where it was not asked to before its last step.
    """

    name: str
    classes: int
    n_test: int
    zero_shot: float
    zero_shot_interval: Interval
    frozen: Mapping[str, float]
    expert: float | None
    expert_interval: Interval | None
    fused: Mapping[str, float]
    fused_interval: Mapping[str, Interval]
    kept: Mapping[str, KeptFigures]
    answered: float
    answered_interval: Interval
    held_out: HeldOut | None
    early_stop: EarlyStop | None = None


@dataclass(frozen=True)
class UnseenFigures(Record):
    """A never-trained task over its own labels: the bare base, and base and routed experts together (`aggregated`)."""

    name: str
    classes: int
    n_test: int
    zero_shot: float
    zero_shot_interval: Interval
    aggregated: float
    aggregated_interval: Interval


@dataclass(frozen=True)
class Metrics(Record):
    """Transfer, Avg and Last of one method; None where its matrix lacks what they need."""

    transfer: float | None
    avg: float | None
    last: float | None


@dataclass(frozen=True)
class Fidelity(Record):
    """How near a decoupled task vector is to the expert's; None where the expert's weights are gone."""

    cosine: float | None
    relative_error: float | None
    bits_lost: float


@dataclass(frozen=True)
class FailedTask(Record):
    """A task without an expert, and why."""

    name: str
    reason: str | None


@dataclass(frozen=True)
class ServedAnswer(Record):
    """An answer of the running service about one test image.

    Attributes:
        image: `TASK/test/INDEX`.
        asked: label space of the request.
        truth, answer: class names; the answer in label space `seen` has its task in parentheses.
        right: whether class and, in `seen`, task are right.
        experts: those that were consulted.
    """

    image: str
    asked: str
    truth: str
    answer: str
    right: bool
    probability: float
    experts: tuple[str, ...]


@dataclass(frozen=True)
class RunReport(Record):
    """Everything that a run found.

    Attributes:
        version, mode: the newest version and its mode's settings.
        tasks: the trained ones, in fused order.
        loss_to_experts: accuracy lost to the experts, mean over tasks, by mode; None where experts' weights are gone.
        kept: what is kept of the experts' answers, mean over tasks, by mode; None where experts' weights are gone.
        metrics, matrices: over all sessions, by method and by kind.
        unseen, unseen_gain: never-trained tasks, and what the experts add to the bare base there.
        answers: by the configured rule: calibration, abstention, forwards, many labels in one request.
        routing_accuracy: how often the first routed task is the right one; None where no image was routed.
        bytes_per_task, shared_bytes: stored per task (mean), and shared by all tasks.
        checkpoint_bytes: an expert's full state dict.
        fidelity: by task.
        removed: configured tasks that were left out, because they had been removed from the store.
        seconds: by stage.
        served: answers over HTTP, where the service was asked; else None, and no key in the JSON.
    """

    version: int
    mode: Mapping[str, Any]
    base: BaseFigures
    tasks: tuple[TaskFigures, ...]
    loss_to_experts: Mapping[str, Estimate | None]
    kept: Mapping[str, KeptFigures | None]
    metrics: Mapping[str, Metrics]
    matrices: Mapping[str, Matrix]
    unseen: tuple[UnseenFigures, ...]
    unseen_gain: Estimate | None
    answers: Answers
    routing_accuracy: float | None
    bytes_per_task: int
    shared_bytes: int
    checkpoint_bytes: int
    fidelity: Mapping[str, Fidelity]
    removed: tuple[str, ...]
    failed: tuple[FailedTask, ...]
    seconds: Mapping[str, float]
    served: tuple[ServedAnswer, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        if self.served is None:
            del values["served"]
        return values


@dataclass(frozen=True)
class SetFigures(Record):
    """Accuracy of a method on one test set of `n_test` images."""

    accuracy: float
    interval: Interval
    n_test: int


@dataclass(frozen=True)
class UnseenMean(Estimate):
    """Mean accuracy over never-trained sets, and each of them."""

    sets: Mapping[str, SetFigures]


@dataclass(frozen=True)
class MethodFigures(Record):
    """One way to keep the experts.

    Attributes:
        title, kind: for tables, and what it keeps.
        accuracy: mean over tasks, the task known.
        loss: accuracy lost to the experts, likewise.
        unseen: never-trained sets over their own labels; None where the method has no rule for them.
        bytes_per_task, shared_bytes: stored beside the base: per task (mean), and shared by all tasks.
        total_bytes_per_task: all of it, divided by the number of tasks.
        seconds: to fuse all experts and keep the result on disk.
        note: what a reader should know beside the figures.
    """

    method: str
    title: str
    kind: Kind
    accuracy: Estimate
    loss: Estimate
    tasks: Mapping[str, SetFigures]
    unseen: UnseenMean | None
    bytes_per_task: int
    shared_bytes: int
    total_bytes_per_task: int
    seconds: float
    note: str | None


@dataclass(frozen=True)
class SizedBase(BaseFigures):
    """The base and the size of its weights."""

    bytes: int


@dataclass(frozen=True)
class ComparisonReport(Record):
    """Methods side by side on the same experts: by what they keep, then by falling accuracy.

    Attributes:
        store: URL of the experts' store.
        tasks, unseen: names, in configured order.
        settings: options of the comparison.
    """

    store: str
    base: SizedBase
    tasks: tuple[str, ...]
    unseen: tuple[str, ...]
    settings: Mapping[str, Any]
    methods: tuple[MethodFigures, ...]


def _json_value(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return value
