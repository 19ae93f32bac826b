"""The demo's last act: a real service, queried over HTTP about images that were not trained on."""

from __future__ import annotations

import socket

from cluster.output import console
from cluster.report.records import ServedAnswer
from cluster.run import Run, jobs
from cluster.serving_config import service_options, start_service
from cluster.showcase import spread
from serving.client import Client
from serving.client.talk import Question
from training.data.task_data import Reading, TaskData, load_test_data

_FALSE_ALARM = 0.05
"""How many of the learned tasks' own images may be called unknown, where an image of no task is asked about."""
_OWN_LABELS_PER_SET = 2


def ask_held_out_images(run: Run, port: int, *, images_per_set: int) -> list[ServedAnswer]:
    """Start the service in this Ray session, ask what a newcomer would try first, stop it.

    An image of each trained task, with its task named and with nothing said; an image of each never-trained set, with
    nothing said, where "unknown" is right, as is its class if a task happens to have it; and an image of every set with
    the same mixed list of labels.

    Args:
        images_per_set: test images per set and question.
    """
    from serving.app import stop

    options = service_options(run.config, port=port)
    server = f"http://{options.host}:{options.port}{options.route.rstrip('/')}"
    reading = Reading(run.config.address, verify=False)
    learned = [job.load(reading) for job in jobs(run.config) if job.name in run.versions]
    foreign = [load_test_data(one.name, one.data, reading) for one in run.config.unseen]
    everything = [*learned, *foreign]
    labels = tuple(dict.fromkeys(name for data in everything for name in data.classes[:_OWN_LABELS_PER_SET]))
    try:
        start_service(options)
        console.print(f"serving on {server}")
        client = Client(server)
        answers = [
            _ask(client, data, index, label_space)
            for data in learned
            for index in spread(len(data.test), images_per_set)
            for label_space in ("task", "seen")
        ]
        for data in foreign:
            for index in spread(len(data.test), images_per_set):
                answers.append(_ask(client, data, index, "seen", of_no_task=True))
        for data in everything:
            known = [i for i, label in enumerate(data.test.labels.tolist()) if data.classes[label] in labels]
            for place in spread(len(known), images_per_set):
                answers.append(_ask(client, data, known[place], "labels", labels=labels))
        return answers
    finally:
        stop(options.name)


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ask(
    client: Client,
    data: TaskData,
    index: int,
    label_space: str,
    *,
    labels: tuple[str, ...] = (),
    of_no_task: bool = False,
) -> ServedAnswer:
    name = f"{data.name}/test/{index}"
    asked: Question = {}
    if label_space == "task":
        asked = {"task": data.name}
    elif label_space == "labels":
        asked = {"labels": labels}
    elif of_no_task:
        asked = {"abstain": _FALSE_ALARM}
    (answer,) = client.predict([(name, data.test.encoded(index))], **asked).predictions
    truth = data.classes[int(data.test.labels[index])]
    said = answer.label or "unknown"
    right = answer.label == truth and (label_space != "seen" or answer.task == data.name)
    return ServedAnswer(
        image=name,
        asked=label_space,
        truth=f"{truth} (no task)" if of_no_task else truth,
        answer=f"{said} ({answer.task})" if label_space == "seen" and answer.task else said,
        right=bool(answer.unknown) or answer.label == truth if of_no_task else right,
        probability=answer.probability,
        experts=tuple(answer.experts),
    )
