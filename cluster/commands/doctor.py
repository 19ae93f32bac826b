"""`condu doctor`: checks what this machine, Ray and the store can do, and what is wrong."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import JsonOption
from cluster.config import Config, load_config
from cluster.doctor_check import MIN_FREE_BYTES, Check
from cluster.output import console, human_bytes, print_json
from fusion.errors import ConduError, ConfigError
from fusion.store.address import StoreAddress
from fusion.store.node_cache import default_cache_folder
from fusion.store.probe import check_store
from fusion.versions.history import Versions

_PACKAGES = ("ray", "torch", "open_clip_torch", "safetensors", "boto3", "pyarrow")


def doctor(
    config: Annotated[Path | None, typer.Argument(help="Also check what this configuration needs.")] = None,
    store: Annotated[str | None, typer.Option(help="Check this store.", metavar="URL")] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also ask every node of the cluster that CONFIG names.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, and the store and port of a configuration. The store is really written to, and cleaned up.

    With --cluster, every living node is asked as well: whether their versions and clocks agree, whether they see the
    same store and the tasks' data, their disks and GPUs, and where a service listens.
    """
    settings = load_config(config) if config else None
    if cluster and (settings is None or settings.ray.address == "local"):
        raise ConfigError("--cluster needs a CONFIG that names a cluster: ray: {address: auto}, or an address")
    checks = [_python(), _packages(), _machine(), _disk(settings), _ray_token()]
    url = store or (settings.store if settings else None)
    if url:
        checks += _store(url, settings)
    if settings:
        checks.append(_port(settings))
    if cluster and settings:
        checks += _cluster(settings)
    broken = [check for check in checks if check.problem]
    if as_json:
        print_json([check.__dict__ for check in checks])
    else:
        for check in checks:
            mark = "[red]✗[/]" if check.problem else "[green]✓[/]"
            console.print(f"{mark} {check.what:<10} {check.found}")
            if check.problem:
                console.print(f"  {check.problem}")
    if broken:
        raise typer.Exit(1)


def _cluster(settings: Config) -> list[Check]:
    from cluster.session import ray_session

    with ray_session(settings.ray) as ray:
        from cluster.cluster_checks import check_cluster

        return check_cluster(ray, settings)


def _python() -> Check:
    found = sys.version.split()[0]
    return Check("python", found, None if sys.version_info >= (3, 11) else "condu needs Python 3.11 or newer")


def _packages() -> Check:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    return Check("packages", ", ".join(found), f"missing: {', '.join(missing)}. Run `make setup`" if missing else None)


def _machine() -> Check:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return Check("machine", f"{os.cpu_count()} cores, {human_bytes(memory)} memory, {', '.join(gpus) or 'no GPU'}")


def _disk(settings: Config | None) -> Check:
    chosen = settings.cache if settings and settings.cache else default_cache_folder()
    folder = chosen
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    problem = f"less than {human_bytes(MIN_FREE_BYTES)} is free: set CONDU_CACHE to a folder on a larger disk"
    return Check("cache", f"{chosen}, {human_bytes(free)} free", problem if free < MIN_FREE_BYTES else None)


def _ray_token() -> Check:
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        return Check("ray token", "no token file (a local session creates a token of its own, which ends with it)")
    mode = stat.S_IMODE(path.stat().st_mode)
    problem = (
        f"other users of this machine can read it, and run code on your cluster: chmod 600 {path}"
        if mode & 0o077
        else None
    )
    return Check("ray token", f"{path}, mode {mode:04o}", problem)


def _store(url: str, settings: Config | None) -> list[Check]:
    try:
        opened = StoreAddress(url, settings.address.options if settings else None).open()
        problems = check_store(opened)
        if problems:
            return [Check("store", url, "; ".join(problems))]
        newest = Versions(opened).newest()
    except ConduError as error:
        return [Check("store", url, str(error))]
    holds = f"version {newest.version}, {len(newest.state.tasks)} tasks" if newest else "nothing published yet"
    return [Check("store", f"{url}: writes, reads, put-if-absent work; {holds}")]


def _port(settings: Config) -> Check:
    host, port = settings.serve.host, settings.serve.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Check(
                "port", f"{host}:{port}", f"it can't be used ({error.strerror}): set serve.port, or free the port"
            )
    return Check("port", f"{host}:{port} is free")
