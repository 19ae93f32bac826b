"""Asks one Ray session what runs for a store. A process of its own, since Ray waits for ever and keeps its first token.

`ask_session` starts it, bounds it and reads what it says: one JSON object a line, so that what came before a part that
hangs is not lost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

_TIMEOUT_S = 60.0
"""Of the whole process: on a loaded machine importing and joining Ray alone takes ten seconds."""

_ANSWER_TIMEOUT_S = 10.0


def ask_session(address: str, store_url: str, *, auth_mode: str = "", token: str = "", joined: bool) -> dict[str, Any]:
    """What runs for a store (`Store.url`) on a session.

    Args:
        address: of Ray.
        auth_mode, token: instead of those of the environment.
        joined: see `ray_session`.
    Returns: those of `tasks` (a list a run of statuses), `fusion` (`FusionProgress` or None) and `service` (see
        `find_service`) that were answered, and `problem` when something was not.
    """
    environment = dict(os.environ)
    if auth_mode:
        environment["RAY_AUTH_MODE"] = auth_mode
    if token:  # not an argument: those can be read by everybody
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
        if line.startswith("{"):  # Ray has a line or two of its own
            found |= json.loads(line)
    return {**found, **({"problem": problem} if problem else {})}


def _main(address: str, store_url: str, *, joined: bool) -> None:
    from cluster.config import RayConfig
    from cluster.session import ray_session

    with ray_session(RayConfig(address=address), joined=joined):
        from fusion.actor import find_progress
        from serving.status import find_service
        from training.lanes.status_query import find_statuses

        tasks = find_statuses(store_url, timeout_s=_ANSWER_TIMEOUT_S)
        _say(tasks=[[asdict(status) for status in run] for run in tasks])
        progress = find_progress(store_url, timeout_s=_ANSWER_TIMEOUT_S)
        _say(fusion=asdict(progress) if progress else None)
        _say(service=find_service(store_url, timeout_s=_ANSWER_TIMEOUT_S))


def _say(**part: Any) -> None:
    print(json.dumps(part), flush=True)


if __name__ == "__main__":
    try:
        _main(sys.argv[1], sys.argv[2], joined="joined" in sys.argv[3:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
