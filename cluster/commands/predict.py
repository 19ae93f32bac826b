"""`condu predict`: classify images with a running service, or directly with a store.

Asked of a service, it imports neither torch nor Ray, and answers in the time of one request.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.commands.options import JsonOption, names_of
from cluster.output import console, errors, print_json, progress_bar, table
from cluster.predict_inputs import images_of
from fusion.errors import ConduError, ConfigError
from serving.client import Answer, Client, NamedImage
from serving.client.client import DEFAULT_SERVER, TOKEN_VARIABLE
from serving.client.images import read_file
from serving.client.talk import Question

_SOME_FAILED = 3
_PATIENCE_S = 60.0
_BATCH_PATIENCE_S = 300.0
"""With an output, which is work of hours: a service that restarts is waited for."""
_FEW = 16
_PROBLEMS_SHOWN = 20
_WRITTEN_AT_ONCE = 16


def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, patterns, s3:// prefixes, or a .csv, .tsv or .parquet with a column of paths.",
            metavar="IMAGE…",
        ),
    ],
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
    server: Annotated[str | None, typer.Option(help=f"URL of a running service. Default: {DEFAULT_SERVER}")] = None,
    store: Annotated[
        str | None, typer.Option(help="Predict from this store in this process, without a service.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the answers to this .csv, .jsonl or .parquet. If it is there, it is continued: images that it "
            "has are skipped."
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of paths in a table. Default: found by its name.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=64, help="Images in one request to the service.")] = 16,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests to the service at a time.")] = 4,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token for the service. Default: ${TOKEN_VARIABLE}")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Classify images. Without --task or --labels, the answer is one of all classes that were learned.

    An image that can't be answered is reported by name and ends nothing; the exit code is then 3, or 1 if there is no
    answer at all.
    """
    if task is not None and labels is not None:
        raise ConfigError("--task and --labels contradict each other: give only one of them")
    if server is not None and store is not None:
        raise ConfigError("--server and --store contradict each other: give only one of them")
    names = names_of(labels, "--labels") or ()
    if template and labels is None:
        raise ConfigError("--template needs --labels: a task has its own templates")
    if token_file is not None and store is not None:
        raise ConfigError("--token-file and --store contradict each other: a store takes no token")
    question: Question = {
        "task": task, "labels": names, "templates": tuple(template or ()), "top_k": top_k, "abstain": abstain,
        "version": version,
    }  # fmt: skip
    token = read_file(token_file).decode(errors="replace") if token_file else None

    @contextmanager
    def asking() -> Iterator[Any]:
        if store is not None:
            from cluster.predict_in_process import answers_from_store

            yield lambda wanted: answers_from_store(store, wanted, question)
            return
        patience_s = _PATIENCE_S if output is None else _BATCH_PATIENCE_S
        with Client(server or DEFAULT_SERVER, token=token, patience_s=patience_s) as client:
            yield lambda wanted: client.predict_many(wanted, batch_size=batch_size, concurrency=concurrency, **question)

    wanted = images_of([str(image) for image in images], column)
    with asking() as ask:
        if output is None:
            _show(wanted, ask, as_json)
        else:
            _write(wanted, ask, output, question, as_json)


def _show(wanted: list[NamedImage], ask: Any, as_json: bool) -> None:
    started = time.monotonic()
    with _progress(len(wanted)) as step:
        answers = [answer for answer in ask(wanted) if step(answer)]
    responses = list({id(answer.response): answer.response for answer in answers if answer.response}.values())
    problems = [answer.problem for answer in answers if answer.problem]
    if not responses:
        raise problems[0] if len(problems) == 1 else type(problems[0])("; ".join(str(one) for one in problems))
    warnings = list(dict.fromkeys(warning for response in responses for warning in response.warnings))
    found = [(answer.image, answer.prediction) for answer in answers if answer.prediction]
    if as_json:
        print_json(
            {
                "version": responses[0].version,
                "label_space": responses[0].label_space,
                "matched": responses[0].matched,
                "predictions": [{**prediction.model_dump(), "image": name} for name, prediction in found],
                "warnings": warnings,
                "failed": _failed(answers),
                "expert_forwards": sum(response.expert_forwards for response in responses),
                "seconds": round(time.monotonic() - started, 4),
            }
        )
    else:
        for warning in warnings:
            errors.print(f"warning: {warning}", markup=False, soft_wrap=True)
        rows = [
            (name, p.label or "unknown", p.task, f"{100 * p.probability:.0f} %", ", ".join(p.experts))
            for name, p in found
        ]
        columns = ["image", "label", "task", "probability", "experts consulted"]
        title = f"version {responses[0].version}, label space {responses[0].label_space}"
        console.print(table(title, columns, rows))
    _end(problems)


def _write(wanted: list[NamedImage], ask: Any, path: Path, question: Question, as_json: bool) -> None:
    from cluster.predict_output import check_question, open_output

    space = "task" if question.get("task") else "labels" if question.get("labels") else "seen"
    failed: list[Answer] = []
    answered = 0
    warned: set[str] = set()
    held: list[Answer] = []
    with open_output(path) as output:
        check_question(path, output, space, question.get("task"))
        left = [image for image in {image.name: image for image in wanted}.values() if image.name not in output.done]
        skipped = len(wanted) - len(left)
        try:
            with _progress(len(left)) as step:
                for answer in ask(left) if left else ():
                    step(answer)
                    if answer.problem:
                        failed.append(answer)
                        continue
                    for warning in set(answer.response.warnings) - warned:
                        warned.add(warning)
                        errors.print(f"warning: {warning}", markup=False, soft_wrap=True)
                    held.append(answer)
                    answered += 1
                    if len(held) == _WRITTEN_AT_ONCE:
                        output.write(held)
                        held = []
        finally:
            output.write(held)  # what was answered before an error, too
    if as_json:
        print_json({"output": str(path), "answered": answered, "skipped": skipped, "failed": _failed(failed)})
    else:
        console.print(f"{path}: {answered} images answered, {skipped} were there already, {len(failed)} failed")
    if failed and not answered and not skipped:
        raise typer.Exit(1)
    _end([answer.problem for answer in failed])


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Yields what is called with every answer: it moves the bar, if there is a terminal, and tells of problems."""
    told = 0

    def tell(answer: Answer) -> bool:
        nonlocal told
        told += answer.problem is not None
        if answer.problem and total > 1 and told <= _PROBLEMS_SHOWN:
            more = " (further ones are not shown, but counted)" if told == _PROBLEMS_SHOWN else ""
            errors.print(f"not answered: {answer.problem}{more}", markup=False, soft_wrap=True)
        return True

    if total <= _FEW:
        yield tell
        return
    with progress_bar(total) as advance:

        def step(answer: Answer) -> bool:
            advance(1)
            return tell(answer)

        yield step


def _failed(answers: Iterable[Answer]) -> list[dict[str, str]]:
    return [{"image": answer.image, "problem": str(answer.problem)} for answer in answers if answer.problem]


def _end(problems: Iterable[ConduError | None]) -> None:
    if any(problems):
        raise typer.Exit(_SOME_FAILED)
