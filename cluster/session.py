"""The Ray session: a local Ray whose ports are on loopback, or an existing cluster.

Ray executes whatever it is sent, so a local session listens on 127.0.0.1 only, and requires a token that lives as long
as the session. Ray reads both settings while it is imported, so modules that import it are imported inside the block.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from cluster.haproxy import haproxy_environment
from cluster.interrupts import interrupt_on_sigterm
from cluster.session_file import announced
from fusion.errors import ConfigError
from fusion.options import Options

_LOOPBACK = "127.0.0.1"
_CONNECT_TIMEOUT_S = 10.0
_IN_A_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable by which Ray hands a job its settings."""
_OBJECT_STORE_BYTES = 256 << 20
"""condu passes references, not tensors, so Ray's object store holds only small results."""


@dataclass(frozen=True)
class RayOptions(Options):
    """Which Ray is used. Raises `ConfigError` for values out of range."""

    address: str = "local"
    """`local` starts Ray on this machine, with its ports on loopback; `auto` or an address joins a cluster."""
    num_cpus: Annotated[int, Ge(1)] | None = None
    """Cores that a local Ray counts with. Null: the machine's."""
    quiet: bool = True
    """Keep the logs of Ray's processes in their files instead of the terminal."""


@contextmanager
def ray_session(
    options: RayOptions,
    *,
    store: str | None = None,
    joined: bool = False,
    beside: Callable[[], None] = lambda: None,
) -> Iterator[Any]:
    """Connect to Ray for the duration of a block. Yields the `ray` module.

    Args:
        options: where Ray is, and how much of it is heard.
        store: the store that the session works for. A local session is then announced to `condu status`.
        joined: the address is that of another process's local session, whose token is in the environment.
        beside: called just before Ray starts, once it may be imported: begins what goes on meanwhile, in a thread.
    Raises: ConfigError when the address does not answer, or `local` would start a second Ray inside a Ray job.
    """
    local = options.address == "local"
    if local and os.environ.get(_IN_A_RAY_JOB):
        raise ConfigError(
            "ray.address: `local` would start a second Ray inside this Ray job, beside the cluster that runs it: "
            "use auto, which joins the cluster"
        )
    if local or joined:
        _prepare_local(starts=local)
    if options.quiet:
        # Ray prints its nodes' messages to standard output, where JSON may be expected; this drops all of them
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    import ray

    if ray.is_initialized():  # the caller's session, which the caller ends
        beside()
        yield ray
        return
    settings: dict[str, Any] = {
        "log_to_driver": not options.quiet,
        "logging_level": logging.ERROR if options.quiet else logging.INFO,
        "namespace": "condu",
    }
    if local:
        settings |= {
            "address": "local",
            "num_cpus": options.num_cpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    else:
        settings["address"] = options.address
    if local or joined:
        settings["_node_ip_address"] = _LOOPBACK
    try:
        _check_reachable(options.address)
        beside()
        ray.init(**settings)
        interrupt_on_sigterm()  # Ray set its own handler, which ends the process with its exit code in mid-air
    except SystemExit as ended:  # from that handler, while Ray was starting
        if ended.code == signal.SIGTERM:
            raise KeyboardInterrupt from None
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"ray.address: {options.address!r} can't be used ({str(error).splitlines()[0]}). `local` starts Ray on "
            "this machine. For a cluster, run condu on one of its nodes, or submit it with `ray job submit`. If the "
            "cluster requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in the environment"
        ) from error
    try:
        with announced(ray.get_runtime_context().gcs_address, store) if local and store else nullcontext():
            yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises OSError if nothing listens on `host:port`: Ray itself would retry for minutes."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit() and "/" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _prepare_local(*, starts: bool) -> None:
    """Set the environment of a local Ray, which this process `starts` or joins, and of every process that it starts.
    The user's own settings stay."""
    if "ray" in sys.modules:
        import ray

        assert ray.is_initialized(), "ray was imported outside a session: its ports would be open to the network"
        return
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one to ~/.ray, mode 0644
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name, value in (haproxy_environment() if starts else {}).items():
        os.environ.setdefault(name, value)
    # the only switch that makes Ray use 127.0.0.1 as a node's address; it then listens on no other one
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
