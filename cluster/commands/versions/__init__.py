"""`condu versions`: what was published, edits that fuse nothing, and maintenance of the store."""

from __future__ import annotations

import typer

from cluster.commands.versions import edits, listing, verify_gc

app = typer.Typer(
    add_completion=False,
    help="Published versions: list, show, roll back, remove a task, pin, verify, collect garbage.",
    no_args_is_help=True,
)
app.command("list")(listing.list_versions)
app.command("show")(listing.show)
app.command("rollback")(edits.rollback)
app.command("remove-task")(edits.remove_task)
app.command("pin")(edits.pin)
app.command("unpin")(edits.unpin)
app.command("verify")(verify_gc.verify)
app.command("gc")(verify_gc.gc)
