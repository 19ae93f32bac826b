"""Session files: how `condu status` finds the local Ray sessions of this user, on this machine.

Such a file holds the session's token, and who has the token runs code as this user. So files are 0600 in a folder of
0700, and one that somebody else owns, or could have read or written, is never used: connecting to a session means to
unpickle what it answers.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fusion.disk import replacing
from fusion.store import open_store
from fusion.store.node_cache import default_cache_folder

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """A local session that runs.

    Attributes:
        address: of Ray, `host:port`.
        auth_mode, token: what Ray is to be asked with; the token is empty where the user chose another mode.
        host, pid, born: the process that owns it, and when that began (a pid is used again).
        store: URL of the store that it works for.
        command, started: what was called, and when (ISO 8601, UTC).
    """

    address: str
    auth_mode: str
    token: str = field(repr=False)
    host: str
    pid: int
    born: str
    store: str
    command: str
    started: str


@contextmanager
def announced(address: str, store_url: str) -> Iterator[None]:
    """Keep a session file for the duration of a block. Where none can be kept safely that is logged, and no error."""
    session = Session(
        address=address,
        auth_mode=os.environ.get("RAY_AUTH_MODE", ""),
        token=os.environ.get("RAY_AUTH_TOKEN", ""),
        host=socket.gethostname(),
        pid=os.getpid(),
        born=_born(os.getpid()),
        store=open_store(store_url).url,
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    path = None
    try:
        folder = sessions_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder.lstat())
        path = folder / f"{session.host}-{session.pid}-{secrets.token_hex(4)}.json"
        _write(path, session)
    except OSError as error:
        _logger.warning("condu status will not find this session: %s", error)
    try:
        yield
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def running_sessions() -> list[Session]:
    """Sessions of this user on this machine, the oldest first. Files of processes that are gone are removed."""
    folder = sessions_folder()
    try:
        _check_private(folder.lstat())
    except FileNotFoundError:
        return []
    except OSError as error:
        _logger.warning("sessions of this machine are not looked for: %s", error)
        return []
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            session = _read(path)
        except FileNotFoundError:
            continue  # it ended between the listing and the reading
        except (OSError, ValueError, TypeError) as error:
            _logger.warning("%s is not used: %s", path, error)
            continue
        if session.host != socket.gethostname():
            continue  # a home on several machines: that one sweeps its own
        if _born(session.pid) == session.born:
            found.append(session)
        else:
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda session: session.started)


def sessions_folder() -> Path:
    """`$XDG_RUNTIME_DIR/condu`, else `sessions` in the user's cache folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "condu" if runtime else default_cache_folder() / "sessions"


def _write(path: Path, session: Session) -> None:
    with replacing(path, private=True) as temporary:
        temporary.write_text(json.dumps(asdict(session)))


def _read(path: Path) -> Session:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
        _check_private(os.fstat(file.fileno()))
        return Session(**json.load(file))


def _check_private(found: os.stat_result) -> None:
    """Raises PermissionError for what is not ours, or open to others."""
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077 or stat.S_ISLNK(found.st_mode):
        raise PermissionError(
            f"session files hold tokens: they and their folder {sessions_folder()} have to be this user's alone "
            "(chmod 700 the folder), this one is not"
        )


def _born(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty when there is none, or only what its parent will collect."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]
