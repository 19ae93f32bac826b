"""`condu status`: what is running, and what the store holds. It only reads, and never waits for long."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cluster.commands.options import JsonOption
from cluster.config import Config, load_config
from cluster.output import console, errors, print_json, table
from cluster.session_file import Session, running_sessions
from cluster.session_query import ask_session
from fusion.errors import ConduError, ConfigError
from fusion.modes import in_words
from fusion.store import Store, open_store
from fusion.versions.experts import survey_experts
from fusion.versions.history import Versions


def status(
    config: Annotated[Path | None, typer.Argument(help="YAML configuration.", metavar="[CONFIG]")] = None,
    store: Annotated[
        str | None, typer.Option("--store", help="Instead of CONFIG: file:///folder, a path, or s3://…", metavar="URL")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the newest version, the experts in training, and what is running: lanes, the fusion actor, the service.

    Your local sessions on this machine are found automatically; a cluster is queried if CONFIG names one. Without
    CONFIG and --store, all your sessions on this machine are shown.
    """
    if config and store:
        raise ConfigError("CONFIG and --store both name a store: give only one of them")
    settings = load_config(config) if config else None
    target = settings.address.open() if settings else open_store(store) if store else None
    held = _store_status(target) if target else None
    sessions = _session_statuses(target.url if target else None, settings)
    if as_json:
        print_json({"store": held, "sessions": sessions})
    else:
        _print_store(held) if held else None
        _print_sessions(sessions)
    if held and held["problem"]:
        raise typer.Exit(1)


def _store_status(store: Store) -> dict[str, Any]:
    """What a store holds. If it is unreadable that is reported as `problem`: what is running can still be shown."""
    found: dict[str, Any] = {"url": store.url, "newest": None, "experts": None, "problem": None}
    try:
        if newest := Versions(store).newest():
            published = datetime.fromisoformat(newest.created["at"])
            found["newest"] = {
                "version": newest.version,
                "published": newest.created["at"],
                "age_s": round((datetime.now(UTC) - published).total_seconds()),
                "by": newest.created["by"],
                "why": newest.created.get("why"),
                "mode": dict(newest.mode),
                "tasks": list(newest.state.tasks),
            }
        finished, unfinished = survey_experts(store)
        found["experts"] = {"finished": finished, "unfinished": [asdict(expert) for expert in unfinished]}
    except ConduError as error:
        found["problem"] = str(error)
    return found


def _session_statuses(store_url: str | None, settings: Config | None) -> list[dict[str, Any]]:
    """Every session that works for the store (None: for any store), queried in parallel."""

    def ask(session: Session) -> dict[str, Any]:
        known = {name: getattr(session, name) for name in ("store", "command", "started", "pid", "address")}
        return known | ask_session(
            session.address, session.store, auth_mode=session.auth_mode, token=session.token, joined=True
        )

    with ThreadPoolExecutor(2) as pool:
        ours = [session for session in running_sessions() if store_url in (None, session.store)]
        local = pool.map(ask, ours)
        if settings is None or store_url is None or settings.ray.address == "local":
            return list(local)
        cluster = pool.submit(ask_session, settings.ray.address, store_url, joined=False)
        return [*local, {"store": store_url, "address": settings.ray.address, **cluster.result()}]


def _print_store(held: dict[str, Any]) -> None:
    newest, experts = held["newest"], held["experts"]
    if held["problem"]:
        errors.print("[bold red]problem[/] ", end="")
        errors.print(held["problem"], markup=False)
    elif newest is None:
        console.print(f"nothing was published in {held['url']} yet")
    else:
        console.print(f"[bold]version {newest['version']}[/] of {held['url']}")
        console.print(f"  published  {_ago(newest['age_s'])} ago, {newest['published']}, by {newest['by']}")
        console.print(f"  why        {newest['why'] or '–'}", markup=False)
        console.print(f"  mode       {in_words(newest['mode'])}")
        console.print(f"  tasks      {len(newest['tasks'])}: {', '.join(newest['tasks'])}")
    if experts:
        begun = [f"{e['identity'][:12]}… (step {e['step']}, attempt {e['attempts']})" for e in experts["unfinished"]]
        unfinished = f", {len(begun)} unfinished: {', '.join(begun)}" if begun else ""
        console.print(f"experts      {experts['finished']} finished{unfinished}")


def _print_sessions(sessions: list[dict[str, Any]]) -> None:
    parts = ("command", "tasks", "fusion", "service", "problem")  # a session of this machine has a command
    busy = [session for session in sessions if any(session.get(part) for part in parts)]
    if not busy:
        console.print("nothing is running")
    for session in busy:
        console.print()
        console.print(f"[bold]{escape(session.get('command') or 'cluster')}[/], Ray at {session['address']}")
        if "command" in session:
            console.print(f"  started {session['started']}, process {session['pid']}, for {session['store']}")
        for run in session.get("tasks", []):
            console.print(table("lanes", ["task", "state", "step", "loss", "s", "attempts", "where"], _task_rows(run)))
        for line in [*_fusion_lines(session.get("fusion")), *_service_lines(session.get("service"))]:
            console.print(line, markup=False)
        if "problem" in session:
            console.print(f"  no answer: {session['problem']}", markup=False)


def _task_rows(run: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for task in run:
        where = escape(task["reason"] or task["worker"] or "")
        step = f"{task['step']}/{task['steps']}"
        loss = None if task["loss"] is None else f"{task['loss']:.2f}"
        yield task["name"], task["state"], step, loss, round(task["seconds"]), task["attempts"], where


def _fusion_lines(fusion: dict[str, Any] | None) -> Iterator[str]:
    if fusion is None:
        return
    if now := fusion["now"]:
        yield f"  fusing   {', '.join(now['tasks'])}: {now['stage']}, {now['seconds']:.1f} s, for {now['caller']}"
    for waiting in fusion["waiting"]:
        yield f"  waiting  {', '.join(waiting['what'])}, for {waiting['caller']}"
    version = f", the last in version {fusion['version']}" if fusion["version"] else ""
    yield f"  fused    {fusion['num_fused']} experts in process {fusion['pid']}{version}"
    if fusion["error"]:
        yield f"  failed   {fusion['error']}"


def _service_lines(service: dict[str, Any] | None) -> Iterator[str]:
    if service is None:
        return
    counts = [
        f"{name} {', '.join(f'{count} {state.lower()}' for state, count in states.items()) or 'none'}"
        for name, states in service["replicas"].items()
    ]
    yield f"  service  {service['name']} {service['status'].lower()}: {'; '.join(counts)}"
    if service["urls"]:
        yield f"           at {', '.join(service['urls'])}"
    for replica in service["serving"]:
        ready = "ready" if replica["ready"] else "not ready"
        yield f"           replica {ready}, version {replica['version']}" + (
            f", {replica['problem']}" if replica["problem"] else ""
        )


def _ago(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0, seconds):.0f} seconds"
