"""The command line. Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 some tasks failed."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback

import typer

from cluster.commands import compare, demo, doctor, fuse, predict, run, serve, versions
from cluster.output import errors
from fusion.errors import ConduError, ConfigError

app = typer.Typer(
    name="condu",
    help="One CLIP service that keeps learning: fine-tune experts per task, fuse them, serve them from one store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("add-task")(run.add_task)
app.command("fuse")(fuse.fuse)
app.command("export")(fuse.export)
app.add_typer(versions.app, name="versions")
app.command("compare")(compare.compare)
app.command("serve")(serve.serve)
app.command("predict")(predict.predict)
app.command("doctor")(doctor.doctor)


@app.callback()
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log every event to standard error."),
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )


def main() -> None:
    """Entry point of the `condu` command: runs it, and turns every error into one clear message."""
    try:
        app()
    except ConfigError as error:
        errors.print(f"[bold red]error[/]: {_escaped(error)}")
        sys.exit(2)
    except ConduError as error:
        errors.print(f"[bold red]error[/]: {_escaped(error)}")
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `condu … | head` is no error
        sys.exit(0)
    except KeyboardInterrupt:
        errors.print("stopped")
        sys.exit(130)
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
