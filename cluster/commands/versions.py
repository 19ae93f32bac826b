"""`condu versions`: what was published, by whom, from what."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.commands.fuse import JsonOption, StoreOption, read_version
from cluster.output import console, human_bytes, print_json, table
from fusion.cache import NodeCache
from fusion.errors import VersionGoneError
from fusion.fuse import read_record
from fusion.manifest import Manifest
from fusion.store import open_store
from fusion.versions import Versions

app = typer.Typer(help="Published versions: list, show.", no_args_is_help=True)


@app.command("list")
def list_versions(store: StoreOption, as_json: JsonOption = False) -> None:
    """All versions, oldest first."""
    source = open_store(store)
    versions = Versions(source)
    manifests = []
    for number in versions.all_numbers():
        try:
            manifests.append(versions.read(number))
        except VersionGoneError:
            continue  # gc took it between the listing and the reading
    if as_json:
        print_json([_summary(manifest) for manifest in manifests])
        return
    if not manifests:
        console.print(f"nothing was published in {source.url} yet")
        return
    rows = [
        (m.version, m.created["at"], m.created["by"], len(m.state.tasks), _mode(m), m.created.get("why", ""))
        for m in manifests
    ]
    console.print(table(source.url, ["version", "published", "by", "tasks", "mode", "why"], rows))


@app.command("show")
def show(
    store: StoreOption,
    number: Annotated[int | None, typer.Argument(help="Default: the newest.", metavar="[N]")] = None,
    as_json: JsonOption = False,
) -> None:
    """One version: its lineage, its tasks and what they cost."""
    source = open_store(store)
    manifest = read_version(source, number)
    cache = NodeCache(source)
    records = {task: read_record(cache, manifest, task) for task in manifest.state.tasks}
    if as_json:
        tasks = [
            {"task": task, "session": entry.session, "classes": list(records[task].classes), "scale": entry.scale,
             "trigger_bytes": records[task].trigger.bytes}
            for task, entry in manifest.state.tasks.items()
        ]  # fmt: skip
        print_json({**_summary(manifest), "tasks": tasks})
        return
    console.print(f"[bold]version {manifest.version}[/] of {source.url}")
    for name, value in [
        ("published", f"{manifest.created['at']} by {manifest.created['by']}"),
        ("why", manifest.created.get("why", "")),
        ("parent", f"version {manifest.parent.version} ({manifest.parent.sha256[:12]}…)" if manifest.parent else "none"),
        ("base", f"{manifest.base.architecture or 'plain state dict'} {manifest.base.sha256[:12]}…"),
        ("mode", _mode(manifest)),
        ("packages", ", ".join(f"{k} {v}" for k, v in manifest.created.get("packages", {}).items())),
        ("shared", human_bytes(sum(ref.bytes for ref in manifest.state.shared()))),
    ]:
        console.print(f"  {name:<10} {value}")
    rows = [
        (task, entry.session, len(records[task].classes) or None, human_bytes(records[task].trigger.bytes))
        for task, entry in manifest.state.tasks.items()
    ]
    console.print(table("tasks, in fused order", ["task", "session", "classes", "trigger"], rows))


def _mode(manifest: Manifest) -> str:
    bits = manifest.mode.get("bits")
    return f"{manifest.mode['name']}" + (f" {bits} bit" if bits else "")


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "version": manifest.version,
        "sha256": manifest.sha256,
        "parent": asdict(manifest.parent) if manifest.parent else None,
        "created": dict(manifest.created),
        "base": manifest.base.sha256,
        "mode": dict(manifest.mode),
        "tasks": list(manifest.state.tasks),
        "shared_bytes": sum(ref.bytes for ref in manifest.state.shared()),
    }
