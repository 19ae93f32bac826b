"""`condu versions verify` and `gc`: check that everything is there and intact, and delete what no version needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.commands.options import JsonOption, StoreOption
from cluster.output import console, human_bytes, print_json
from fusion.store import open_store
from fusion.versions.gc import Policy, collect, in_words
from fusion.versions.history import Versions, spans
from fusion.versions.verify import Finding
from fusion.versions.verify import verify as verify_store

_BAD = 1
_DEFAULT = Policy()


def verify(store: StoreOption, as_json: JsonOption = False) -> None:
    """Hash every object that a kept version names. Exits with 1 if one is missing or damaged."""
    found = verify_store(Versions(open_store(store)))
    if as_json:
        print_json(asdict(found))
    else:
        for finding in found.findings:
            console.print(_line(finding), markup=False, soft_wrap=True)
        console.print(
            f"versions {spans(found.versions)}: {found.num_objects} objects, {human_bytes(found.num_bytes)} intact, "
            + (f"{len(found.findings)} missing or damaged" if found.findings else "nothing is missing or damaged")
        )
    if found.findings:
        raise typer.Exit(_BAD)


def gc(
    store: StoreOption,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be deleted; publish and delete nothing.")
    ] = False,
    keep: Annotated[
        int, typer.Option(help="Number of newest versions to keep, not counting garbage collections.")
    ] = _DEFAULT.keep,
    keep_days: Annotated[float, typer.Option(help="Keep versions younger than this.")] = _DEFAULT.keep_days,
    experts: Annotated[
        bool,
        typer.Option(
            "--experts", help="Also delete resumable states of finished trainings, and weights that are fused."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete old versions, blobs that no kept version names, and request logs whose days are over.

    Safe while others publish and a service is running."""
    policy = Policy(keep=keep, keep_days=keep_days, experts=experts)
    found = collect(Versions(open_store(store)), policy, dry_run=dry_run)
    if as_json:
        groups = {"blobs": found.blobs, "experts": found.experts, "log": found.log}
        print_json(
            {
                "dry_run": dry_run,
                "version": found.version,
                "oldest_kept": found.oldest_kept,
                "versions": list(found.versions),
                **{name: [{"key": info.key, "bytes": info.bytes} for info in infos] for name, infos in groups.items()},
                "temporary_files": [str(path) for path in found.scratch],
                "bytes": found.bytes,
            }
        )
        return
    verb = "would delete" if dry_run else "deleted"
    console.print(f"{verb} {in_words(found)}: {human_bytes(found.bytes)}")
    if found.version is not None:
        console.print(f"version [bold]{found.version}[/]: the same state; kept from version {found.oldest_kept}")


def _line(finding: Finding) -> str:
    tasks = f", tasks {', '.join(finding.tasks)}" if finding.tasks else ""
    return f"versions {spans(finding.versions)}{tasks}: {finding.problem}"
