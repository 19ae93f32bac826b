"""The demo's last act: a real service, queried over HTTP about images that were not trained on."""

from __future__ import annotations

import socket
from typing import Any

from cluster.output import console
from cluster.report.records import ServedAnswer
from cluster.run import Run, jobs
from cluster.service_client import predict_over_http
from cluster.serving_config import service_options, start_service
from training.data import TaskData, load_test_data

_FALSE_ALARM = 0.05
"""How many of the learned tasks' own images may be called unknown, where an image of no task is asked about."""


def ask_held_out_images(run: Run, port: int, *, images_per_set: int) -> list[ServedAnswer]:
    """Start the service in this Ray session, query it, stop it.

    Each image of a trained task is asked about twice, with its task named and with nothing named; each image of a
    never-trained task likewise, with its own classes as labels and with nothing named, where "unknown" is right.

    Args:
        images_per_set: test images per task.
    """
    from serving.app import stop

    options = service_options(run.config, port=port)
    server = f"http://{options.host}:{options.port}"
    try:
        start_service(options)
        console.print(f"serving on {server}")
        answers = []
        for job in jobs(run.config):
            if job.name not in run.versions:
                continue
            data = job.load(run.config.address.options, verify=False)
            for index in _spread(len(data.test), images_per_set):
                answers.append(_ask(server, data, index, "task"))
                answers.append(_ask(server, data, index, "seen"))
        for unseen in run.config.unseen:
            data = load_test_data(unseen.name, unseen.data, verify=False, options=run.config.address.options)
            for index in _spread(len(data.test), images_per_set):
                answers.append(_ask(server, data, index, "labels"))
                answers.append(_ask(server, data, index, "seen", of_no_task=True))
        return answers
    finally:
        stop()


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ask(server: str, data: TaskData, index: int, label_space: str, *, of_no_task: bool = False) -> ServedAnswer:
    name = f"{data.name}/test/{index}"
    asked: dict[str, Any] = {}
    if label_space == "task":
        asked = {"task": data.name}
    elif label_space == "labels":
        asked = {"labels": data.classes, "templates": data.templates}
    elif of_no_task:
        asked = {"abstain": _FALSE_ALARM}
    answer = predict_over_http(server, [(name, data.test.encoded(index))], **asked)["predictions"][0]
    truth = data.classes[int(data.test.labels[index])]
    said = answer["label"] or "unknown"
    right = answer["label"] == truth and (label_space != "seen" or answer["task"] == data.name)
    return ServedAnswer(
        image=name,
        asked=label_space,
        truth=f"{truth} (no task)" if of_no_task else truth,
        answer=f"{said} ({answer['task']})" if label_space == "seen" and answer["task"] else said,
        right=bool(answer["unknown"]) if of_no_task else right,
        probability=answer["probability"],
        experts=tuple(answer["experts"]),
    )


def _spread(total: int, count: int) -> list[int]:
    """`count` indices spread over a test set, the same every time."""
    return [round((k + 0.5) * total / count) % total for k in range(min(count, total))]
