"""Examples of the OpenAPI document: what is sent, and what comes back. A test sends the one and validates the other."""

from __future__ import annotations

from typing import Any

_RED_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"  # a PNG of 1 x 1
)

_TASK, _VERSION = "pets", 7

_PREDICT = {"images": [{"b64": _RED_PIXEL, "name": "cat.png"}], "labels": ["cat", "dog"]}
_PREDICTED = {
    "version": _VERSION,
    "label_space": "labels",
    "matched": {_TASK: {"cat": "abyssinian"}},
    "warnings": [],
    "predictions": [
        {
            "image": "cat.png",
            "views": 1,
            "label": "cat",
            "task": None,
            "probability": 0.93,
            "experts": [_TASK],
            "top": [
                {"task": None, "label": "cat", "probability": 0.93},
                {"task": None, "label": "dog", "probability": 0.07},
            ],
            "rule": "matched",
            "familiarity": 0.62,
            "unknown": None,
        }
    ],
    "expert_forwards": 1,
    "seconds": 0.0124,
}

_EMBED = {"texts": ["a red kite"], "normalize": True}
_EMBEDDED = {
    "version": _VERSION,
    "model": "base",
    "dimensions": 2,
    "encoding": "list",
    "normalized": True,
    "images": [],
    "texts": [{"text": "a red kite", "embedding": [0.6, 0.8]}],
    "warnings": [],
    "seconds": 0.0081,
}

_TASKS = {
    "version": _VERSION,
    "tasks": [
        {
            "name": _TASK,
            "classes": ["abyssinian", "bengal"],
            "templates": ["a photo of a {}, a type of pet."],
            "aliases": {"abyssinian": ["cat"]},
            "session": 2,
            "has_expert": True,
            "expert": "pets@550de874172cbbf7",
            "routable": True,
        }
    ],
}
_VERSIONS = {
    "serving": _VERSION,
    "versions": [
        {
            "version": _VERSION,
            "created": "2026-01-31T12:00:00+00:00",
            "why": "fuse pets",
            "mode": {"name": "averaged", "weight": 0.5},
            "num_tasks": 2,
            "problem": None,
        }
    ],
    "before": None,
}
_SHOWCASE = {
    "measured": _VERSION,
    "tasks": {
        _TASK: {
            "images": 158,
            "base": 23.4,
            "answered": 98.7,
            "samples": [{"label": "bengal", "media_type": "image/png", "path": "v1/showcase/pets/0"}],
        }
    },
}

_ROLLBACK = {"to": 5}
_EDITED = {"version": 8, "changed": True, "tasks": ["dtd"], "removed": [_TASK]}

_ALIVE = {"status": "ok"}
_READY = {"ready": True, "version": _VERSION, "tasks": 2, "models": "ready", "problem": None}


_OPERATIONS: dict[tuple[str, str], tuple[Any, Any]] = {
    ("post", "/v1/predict"): (_PREDICT, _PREDICTED),
    ("post", "/v1/embed"): (_EMBED, _EMBEDDED),
    ("get", "/v1/tasks"): (None, _TASKS),
    ("get", "/v1/versions"): (None, _VERSIONS),
    ("get", "/v1/showcase"): (None, _SHOWCASE),
    ("post", "/v1/versions/rollback"): (_ROLLBACK, _EDITED),
    ("delete", "/v1/tasks/{name}"): (None, _EDITED),
    ("get", "/healthz"): (None, _ALIVE),
    ("get", "/readyz"): (None, _READY),
}
_PARAMETERS = {
    "name": _TASK,
    "task": _TASK,
    "index": 0,
    "version": _VERSION,
    "before": _VERSION,
    "labels": ["cat", "dog"],
}


def add_examples(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its examples, which FastAPI would rid of every null."""
    for (method, path), (sent, answer) in _OPERATIONS.items():
        operation = document["paths"][path][method]
        operation["responses"]["200"]["content"]["application/json"]["example"] = answer
        if sent is not None:
            operation["requestBody"]["content"]["application/json"]["example"] = sent
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in _PARAMETERS:
                    parameter["example"] = _PARAMETERS[parameter["name"]]
    return document
