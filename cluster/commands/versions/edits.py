"""`condu versions rollback`, `remove-task`, `pin`, `unpin`: each publishes a version without fusing."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.options import JsonOption, StoreOption
from cluster.output import console, print_json
from fusion.modes import open_mode
from fusion.store import open_store
from fusion.versions import edits
from fusion.versions.history import Versions

NumberArgument = Annotated[int, typer.Argument(help="The version's number.", metavar="N")]


def rollback(number: NumberArgument, store: StoreOption, as_json: JsonOption = False) -> None:
    """Publish an old version's state as a new version. The versions in between stay, so a roll-back can be undone."""
    edit = edits.rollback(Versions(open_store(store)), number)
    tasks = ", ".join(edit.manifest.state.tasks) or "none"
    _tell(
        edit,
        f"has the state of version {number}; its tasks: {tasks}",
        f"already has the state of version {number}: nothing to do",
        as_json,
    )


def remove_task(
    name: Annotated[str, typer.Argument(help="The task's name.", metavar="NAME")],
    store: StoreOption,
    as_json: JsonOption = False,
) -> None:
    """Publish the newest version without a task. `condu run` does not bring it back unless called with --readd."""
    edit = edits.remove_task(Versions(open_store(store)), name)
    _tell(edit, f"is without {name}", f"is already without {name}: nothing to do", as_json)
    if edit.changed and not as_json:
        console.print(edits.what_stays_of(name, open_mode(edit.manifest.mode).traces), markup=False)


def pin(number: NumberArgument, store: StoreOption, as_json: JsonOption = False) -> None:
    """Make `gc` keep a version, whatever its age."""
    edit = edits.pin(Versions(open_store(store)), number)
    _tell(edit, f"pins version {number}", f"already pins version {number}: nothing to do", as_json)


def unpin(number: NumberArgument, store: StoreOption, as_json: JsonOption = False) -> None:
    """Let `gc` delete a version again when it is old enough."""
    edit = edits.unpin(Versions(open_store(store)), number)
    _tell(edit, f"no longer pins version {number}", f"does not pin version {number}: nothing to do", as_json)


def _tell(edit: edits.Edit, done: str, nothing: str, as_json: bool) -> None:
    manifest = edit.manifest
    if as_json:
        print_json(
            {
                "version": manifest.version,
                "changed": edit.changed,
                "tasks": list(manifest.state.tasks),
                "removed": list(manifest.removed),
                "pinned": list(manifest.pinned),
            }
        )
        return
    console.print(f"version [bold]{manifest.version}[/] {done if edit.changed else nothing}")
