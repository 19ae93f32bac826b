"""Asks one Ray session what is running for a store, in a subprocess: Ray may wait for ever, and keeps its first token.

`ask_session` starts the subprocess, bounds its time and reads its output: one JSON object per line, so that the answers
before a part that hangs are not lost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

_TIMEOUT_S = 60.0
"""For the whole subprocess: on a loaded machine, importing and joining Ray alone takes ten seconds."""

_ANSWER_TIMEOUT_S = 10.0


def ask_session(address: str, store_url: str, *, auth_mode: str = "", token: str = "", joined: bool) -> dict[str, Any]:
    """What is running for a store (`Store.url`) in a session.

    Args:
        address: Ray's address.
        auth_mode, token: instead of those in the environment.
        joined: see `ray_session`.
    Returns: the parts that were answered of `tasks` (a list of statuses per run), `fusion` (`FusionProgress` or None)
        and `service` (see `find_service`), and `problem` if a part was not.
    """
    environment = dict(os.environ)
    if auth_mode:
        environment["RAY_AUTH_MODE"] = auth_mode
    if token:  # not as an argument, which every user could read
        environment["RAY_AUTH_TOKEN"] = token
    command = [sys.executable, "-P", "-m", "cluster.session_query", address, store_url, *(["joined"] if joined else [])]
    problem = None
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=_TIMEOUT_S, check=False)
        output = done.stdout
        if done.returncode:
            problem = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "Ray did not answer"
    except subprocess.TimeoutExpired as late:
        output, problem = late.stdout or b"", f"{address} did not answer within {_TIMEOUT_S:.0f} s"
    found: dict[str, Any] = {}
    for line in output.decode(errors="replace").splitlines():
        if line.startswith("{"):  # Ray prints some lines of its own
            found |= json.loads(line)
    return {**found, **({"problem": problem} if problem else {})}


def _main(address: str, store_url: str, *, joined: bool) -> None:
    from cluster.session import RayOptions, ray_session

    with ray_session(RayOptions(address=address), joined=joined):
        from fusion.actor import find_progress
        from serving.status import find_service
        from training.lanes.status_query import find_statuses

        tasks = find_statuses(store_url, timeout_s=_ANSWER_TIMEOUT_S)
        _print_part(tasks=[[asdict(status) for status in run] for run in tasks])
        progress = find_progress(store_url, timeout_s=_ANSWER_TIMEOUT_S)
        _print_part(fusion=asdict(progress) if progress else None)
        _print_part(service=find_service(store_url, timeout_s=_ANSWER_TIMEOUT_S))


def _print_part(**part: Any) -> None:
    print(json.dumps(part), flush=True)


if __name__ == "__main__":
    try:
        _main(sys.argv[1], sys.argv[2], joined="joined" in sys.argv[3:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
