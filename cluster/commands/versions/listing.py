"""`condu versions list` and `show`: what was published, by whom, from what, and its size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cluster.commands.fuse import read_version
from cluster.commands.options import JsonOption, StoreOption
from cluster.output import console, human_bytes, print_json, table
from fusion.errors import ConduError, StoreError, UnknownVersionError, VersionGoneError
from fusion.modes import in_words
from fusion.store import Store, open_store
from fusion.store.blobs import BlobRef
from fusion.versions.history import Versions, spans
from fusion.versions.manifest import Manifest
from fusion.versions.references import named_by, read_manifests, read_records, record_refs, refs_of, whole_records
from fusion.versions.state import TaskRecord

_LINEAGE = 5


def list_versions(store: StoreOption, as_json: JsonOption = False) -> None:
    """All versions, oldest first."""
    source = open_store(store)
    rows, newest = [], None
    for number, found in _manifests(source):
        rows.append(_row(number, found))
        newest = found if isinstance(found, Manifest) else newest
    if newest:  # a killed gc may have left versions below `oldest_kept`
        rows = [row for row in rows if newest.keeps(row["version"]) or row["version"] > newest.version]
    records = read_records(source, {ref for row in rows for ref in row["records"]})
    for row in rows:
        row["bytes"] = _sum(records, row.pop("records"), row.pop("own"))
    if as_json:
        print_json(rows)
        return
    if not rows:
        console.print(f"nothing was published in {source.url} yet")
        return
    lines = [
        (
            *(row[key] for key in ("version", "at", "by", "kind", "num_tasks")),
            in_words(row["mode"]) if row["mode"] else None,
            human_bytes(row["bytes"]) if row["bytes"] is not None else None,
            row["problem"] or row["why"],
        )
        for row in rows
    ]
    console.print(table(source.url, ["version", "published", "by", "kind", "tasks", "mode", "bytes", "why"], lines))


def show(
    store: StoreOption,
    number: Annotated[int | None, typer.Argument(help="Default: the newest.", metavar="[N]")] = None,
    as_json: JsonOption = False,
) -> None:
    """One version: its lineage, its tasks and their sizes."""
    source = open_store(store)
    manifest = read_version(source, number)
    lineage = _lineage(Versions(source), manifest)
    records = whole_records(source, record_refs(manifest))
    everything = named_by(manifest, records)
    before = _named_by_parent(source, lineage[0], records) if lineage else set() if manifest.parent is None else None
    facts = {
        **_summary(manifest),
        "lineage": [{"version": m.version, "kind": _kind(m), "why": m.created.get("why")} for m in lineage],
        "removed": list(manifest.removed),
        "pinned": list(manifest.pinned),
        "oldest_kept": manifest.oldest_kept,
        "last_gc": manifest.last_gc,
        "total_bytes": _bytes(everything),
        "added_bytes": _bytes(everything - before) if before is not None else None,
        "tasks": [_task(manifest, task, records) for task in manifest.state.tasks],
    }
    if as_json:
        print_json(facts)
    else:
        _print(source, manifest, facts)


def _manifests(store: Store) -> Iterable[tuple[int, Manifest | ConduError]]:
    versions = Versions(store)
    for number, found in read_manifests(versions, versions.all_numbers()):
        if not isinstance(found, UnknownVersionError | VersionGoneError):  # gc deleted it after the listing
            yield number, found


def _row(number: int, found: Manifest | ConduError) -> dict[str, Any]:
    """A row of the list; its size is computed from `records` and `own`."""
    if isinstance(found, ConduError):
        nothing = dict.fromkeys(("sha256", "parent", "at", "by", "kind", "why", "mode", "num_tasks"))
        return {"version": number, **nothing, "problem": str(found), "records": (), "own": None}
    return {
        "version": number,
        "sha256": found.sha256,
        "parent": asdict(found.parent) if found.parent else None,
        "at": found.created.get("at"),
        "by": found.created.get("by"),
        "kind": _kind(found),
        "why": found.created.get("why"),
        "mode": dict(found.mode),
        "num_tasks": len(found.state.tasks),
        "problem": None,
        "records": tuple(record_refs(found)),
        "own": _bytes({found.base.weights, *found.state.blobs()}),
    }


def _sum(records: Mapping[BlobRef, TaskRecord | ConduError], refs: Iterable[BlobRef], own: int | None) -> int | None:
    """Size of everything that a version names, bytes; None if that can't be read."""
    found = [records[ref] for ref in refs]
    whole = [record for record in found if isinstance(record, TaskRecord)]
    if own is None or len(whole) < len(found):
        return None
    return own + sum(ref.bytes for record in whole for ref in refs_of(record))


def _lineage(versions: Versions, manifest: Manifest) -> list[Manifest]:
    """The versions that a version was built on, newest first: those that can be read, at most `_LINEAGE`."""
    found: list[Manifest] = []
    parent = manifest.parent
    while parent and len(found) < _LINEAGE:
        try:
            found.append(versions.read(parent.version))
        except (StoreError, UnknownVersionError, VersionGoneError):
            break
        parent = found[-1].parent
    return found


def _named_by_parent(store: Store, parent: Manifest, known: Mapping[BlobRef, TaskRecord]) -> set[BlobRef] | None:
    """Everything that a parent names; None if gc has deleted some of it."""
    others = read_records(store, (ref for ref in record_refs(parent) if ref not in known))
    whole = {ref: record for ref, record in others.items() if isinstance(record, TaskRecord)}
    return named_by(parent, {**known, **whole}) if len(whole) == len(others) else None


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "version": manifest.version,
        "sha256": manifest.sha256,
        "parent": asdict(manifest.parent) if manifest.parent else None,
        "created": dict(manifest.created),
        "base": manifest.base.sha256,
        "mode": dict(manifest.mode),
        "shared_bytes": _bytes(manifest.state.shared.values()),
    }


def _task(manifest: Manifest, task: str, records: Mapping[BlobRef, TaskRecord]) -> dict[str, Any]:
    entry = manifest.state.tasks[task]
    record = records[entry.record]
    return {
        "task": task,
        "session": entry.session,
        "classes": list(record.classes),
        "scale": entry.scale,
        "trigger_bytes": record.trigger.bytes if record.trigger else 0,
        "prototypes_bytes": record.prototypes.bytes if record.prototypes else 0,
        "archive_bytes": record.archive.bytes if record.archive else 0,
        "expert_sha256": entry.expert_sha256,
    }


def _print(source: Store, manifest: Manifest, facts: Mapping[str, Any]) -> None:
    created = manifest.created
    parent = manifest.parent
    parents = ", ".join(f"{m['version']} ({m['kind']})" for m in facts["lineage"]) or (
        f"{parent.version} (gone)" if parent else "none"
    )
    added = facts["added_bytes"]
    sizes = f"{human_bytes(facts['total_bytes'])} in total, {human_bytes(facts['shared_bytes'])} shared by the tasks"
    console.print(f"[bold]version {manifest.version}[/] of {source.url}")
    for name, value in (
        ("published", f"{created.get('at')} by {created.get('by')}" + _asked(created)),
        ("kind", _kind(manifest)),
        ("why", created.get("why")),
        ("parents", parents),
        ("base", f"{manifest.base.architecture or 'plain state dict'} {manifest.base.sha256[:12]}…"),
        ("mode", in_words(manifest.mode)),
        ("config", f"{created['config'][:12]}…" if created.get("config") else "none"),
        ("packages", ", ".join(f"{k} {v}" for k, v in created.get("packages", {}).items())),
        ("bytes", sizes + (f", {human_bytes(added)} more than its parent" if added is not None else "")),
        ("removed", ", ".join(manifest.removed) or "none"),
        ("pinned", spans(manifest.pinned)),
        ("kept", f"from version {manifest.oldest_kept}; last gc: {manifest.last_gc or 'none'}"),
    ):
        console.print(f"  {name:<10} {value}", markup=False)
    rows = [
        (
            task["task"],
            task["session"],
            len(task["classes"]) or None,
            *(human_bytes(task[key]) if task[key] else None for key in ("trigger_bytes", "prototypes_bytes")),
        )
        for task in facts["tasks"]
    ]
    console.print(table("tasks, in fused order", ["task", "session", "classes", "trigger", "prototypes"], rows))


def _asked(created: Mapping[str, Any]) -> str:
    return f", asked for over HTTP with token {created['token']}" if created.get("token") else ""


def _kind(manifest: Manifest) -> str:
    return str(manifest.created.get("kind", "fuse"))


def _bytes(refs: Iterable[BlobRef]) -> int:
    return sum(ref.bytes for ref in refs)
