"""`condu predict`: classify images with a running service, or directly with a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.commands.fuse import JsonOption
from cluster.output import console, errors, print_json, table
from cluster.service_client import predict_over_http
from fusion.answers.label_spaces import Query
from fusion.answers.options import PredictOptions
from fusion.errors import ConfigError, DataError, ImageError
from fusion.store import open_store
from serving.schemas import ImagePrediction

_DEFAULT_SERVER = "http://127.0.0.1:8000"


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE…")],
    task: Annotated[str | None, typer.Option("--task", help="Use this task's expert and classes.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Choose from these labels.", metavar="A,B,C")] = None,
    template: Annotated[
        list[str] | None, typer.Option("--template", help="Prompt for --labels, with {} for the label.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Number of experts to consult without --task.")] = None,
    abstain: Annotated[
        float | None,
        typer.Option(
            help='Answer "unknown" for images more unusual than this share of the learned ones, such as 0.05. Without '
            "--task or --labels."
        ),
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
    server: Annotated[str | None, typer.Option(help=f"URL of a running service. Default: {_DEFAULT_SERVER}")] = None,
    store: Annotated[
        str | None, typer.Option(help="Predict from this store in this process, without a service.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Classify images. Without --task or --labels, the answer is one of all classes that were learned."""
    if task is not None and labels is not None:
        raise ConfigError("--task and --labels contradict each other: give only one of them")
    if server is not None and store is not None:
        raise ConfigError("--server and --store contradict each other: give only one of them")
    names = tuple(part.strip() for part in labels.split(",")) if labels is not None else ()
    if labels is not None and not all(names):
        raise ConfigError(f"--labels {labels!r} has an empty label")
    if template and labels is None:
        raise ConfigError("--template needs --labels: a task has its own templates")
    files = [(str(path), _read(path)) for path in images]
    if store is not None:
        answer = _predict_from_store(store, files, task, names, tuple(template or ()), top_k, abstain, version)
    else:
        answer = predict_over_http(
            server or _DEFAULT_SERVER,
            files,
            task=task,
            labels=names,
            templates=template or (),
            version=version,
            top_k=top_k,
            abstain=abstain,
        )
    if as_json:
        print_json(answer)
        return
    for warning in answer.get("warnings", []):
        errors.print(f"warning: {warning}", markup=False, soft_wrap=True)
    rows = [
        (p["image"], p["label"] or "unknown", p["task"], f"{100 * p['probability']:.0f} %", ", ".join(p["experts"]))
        for p in answer["predictions"]
    ]
    columns = ["image", "label", "task", "probability", "experts consulted"]
    console.print(table(f"version {answer['version']}, label space {answer['label_space']}", columns, rows))


def _predict_from_store(
    url: str,
    files: Sequence[tuple[str, bytes]],
    task: str | None,
    labels: tuple[str, ...],
    templates: tuple[str, ...],
    top_k: int | None,
    abstain: float | None,
    version: int | None,
) -> dict[str, Any]:
    from fusion.answers.clip import preprocess_config
    from fusion.answers.images import decode
    from fusion.answers.predictor import Predictor
    from fusion.store.node_cache import NodeCache

    predictor = Predictor(NodeCache(open_store(url)))
    given: dict[str, Any] = {"templates": templates} if templates else {}
    space = "task" if task is not None else "labels" if labels else "seen"
    query = Query(space, task=task, labels=labels, top_k=top_k or PredictOptions.top_k, abstain=abstain, **given)
    view = predictor.view(version)
    preprocess = preprocess_config(predictor.shelf.base.clip.preprocess_cfg)
    background = view.background(task)
    decoded = [decode(data, name, preprocess=preprocess, background=background) for name, data in files]
    predictions = predictor.predict(decoded, query, view=view)
    return {
        "version": view.version,
        "label_space": space,
        "matched": {name: dict(found) for name, found in predictions[0].matched.items()},
        "predictions": [
            ImagePrediction.of(name, prediction).model_dump()
            for (name, _), prediction in zip(files, predictions, strict=True)
        ],
        "warnings": list(predictions[0].warnings),
        "expert_forwards": sum(len(prediction.experts) for prediction in predictions),
    }


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    if not data:
        raise ImageError(f"{path} is empty")
    return data
