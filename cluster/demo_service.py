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


def ask_held_out_images(run: Run, port: int, *, images_per_set: int) -> list[ServedAnswer]:
    """Start the service in this Ray session, query it, stop it.

    Each image of a trained task is asked about twice, with its task named and with nothing named; each image of a
    never-trained task once, with the task's classes as labels.

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
            answers += [_ask(server, data, index, "labels") for index in _spread(len(data.test), images_per_set)]
        return answers
    finally:
        stop()


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ask(server: str, data: TaskData, index: int, label_space: str) -> ServedAnswer:
    name = f"{data.name}/test/{index}"
    asked: dict[str, Any] = {}
    if label_space == "task":
        asked = {"task": data.name}
    elif label_space == "labels":
        asked = {"labels": data.classes, "templates": data.templates}
    answer = predict_over_http(server, [(name, data.test.encoded(index))], **asked)["predictions"][0]
    truth = data.classes[int(data.test.labels[index])]
    own_task = label_space != "seen" or answer["task"] == data.name
    return ServedAnswer(
        image=name,
        asked=label_space,
        truth=truth,
        answer=answer["label"] if label_space != "seen" else f"{answer['label']} ({answer['task']})",
        right=answer["label"] == truth and own_task,
        probability=answer["probability"],
        experts=tuple(answer["experts"]),
    )


def _spread(total: int, count: int) -> list[int]:
    """`count` indices spread over a test set, the same every time."""
    return [round((k + 0.5) * total / count) % total for k in range(min(count, total))]
