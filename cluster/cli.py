"""The command line. Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 some tasks failed."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import traceback
from typing import Any

import typer
import typer.core

from cluster.commands.mode_options import expand_mode_options
from cluster.interrupts import interrupt_on_sigterm
from cluster.output import errors
from fusion.errors import ConduError, ConfigError

_COMMANDS = {
    "demo": ("demo", "Everything once, on the embedded example: train, fuse, measure, serve."),
    "run": ("run", "Fine-tune all tasks in parallel, fuse them in order, evaluate, report."),
    "add-task": ("run", "Train, fuse and publish one more task."),
    "import-task": ("import_task", "Publish a task from an expert that was trained elsewhere, and its images."),
    "fuse": ("fuse", "Fuse experts into the store and publish a version."),
    "export": ("fuse", "Write a decoupled expert as a full state dict."),
    "versions": ("versions", "Published versions: list, show, roll back, verify, prune."),
    "compare": ("compare", "Every method side by side on the same experts."),
    "status": ("status", "What is running, and what the store holds."),
    "serve": ("serve", "Answer over HTTP."),
    "drift": ("drift", "Whether what a service is asked still looks like what was trained."),
    "token": ("token", "Who may use a service: make, list and revoke tokens."),
    "data": ("data", "A task's data: what is understood of it, and what is wrong with it."),
    "predict": ("predict", "Classify images, over HTTP or straight from the store."),
    "doctor": ("doctor", "What this machine, cluster and store can do, and what is wrong."),
}
"""Each command's module in `cluster.commands`, and its line in the help."""


_INTERRUPTED = 130


class _Commands(typer.core.TyperGroup):
    """The commands, each imported when it is called: torch and Ray take seconds that `condu fuse` need not wait for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: typer.core.TyperCommand(name, help=line) for name, (_, line) in _COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, _load(str(name)), rest


def _load(name: str) -> Any:
    module: Any = importlib.import_module(f"cluster.commands.{_COMMANDS[name][0]}")
    if hasattr(module, "app"):
        return typer.main.get_command(module.app)
    one = typer.Typer(**_OPTIONS, add_completion=False)
    one.command(name)(expand_mode_options(getattr(module, name.replace("-", "_"))))
    return typer.main.get_command(one)


_OPTIONS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

app = typer.Typer(
    cls=_Commands,
    name="condu",
    help="One CLIP service that keeps learning: fine-tune experts per task, fuse them, serve them from one store.",
    no_args_is_help=True,
    **_OPTIONS,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"condu {version('condu')}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log every event to standard error."),
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )


def main() -> None:
    """Entry point of the `condu` command: runs it, and turns every error into one message and an exit code."""
    interrupt_on_sigterm()  # from the first moment: a job that is stopped ends like one with Ctrl-C
    try:
        app()
    except ConfigError as error:
        errors.print(f"[bold red]error[/]: {_escaped(error)}", soft_wrap=True)
        sys.exit(2)
    except ConduError as error:
        errors.print(f"[bold red]error[/]: {_escaped(error)}", soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `condu … | head` is not an error
        sys.exit(0)
    except SystemExit as ended:  # typer ends so on a KeyboardInterrupt, without a word
        if ended.code == _INTERRUPTED:
            errors.print("stopped")
        raise
    except Exception as error:
        handle, path = tempfile.mkstemp(prefix="condu-error-", suffix=".txt")
        with os.fdopen(handle, "w") as file:
            traceback.print_exc(file=file)
        first_line = next(iter(str(error).splitlines()), "")
        errors.print(
            f"[bold red]internal error[/]: {type(error).__name__}: {_escaped(first_line)}\n"
            f"This is a bug in condu. The details are in {path}: please report them."
        )
        sys.exit(1)


def _escaped(message: object) -> str:
    return str(message).replace("[", "\\[")


if __name__ == "__main__":
    main()
