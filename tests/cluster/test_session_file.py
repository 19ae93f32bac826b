"""Session files: private to their user, tied to a living process, and gone with it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.session_file import announced, running_sessions, sessions_folder


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    return tmp_path / "runtime" / "condu"


def rewrite(folder: Path, **changes: object) -> None:
    (file,) = folder.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_session_is_found_while_it_lasts_and_nobody_else_can_read_its_token(runtime: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with announced("127.0.0.1:1234", str(tmp_path / "store")):
            (session,) = running_sessions()
            assert (session.address, session.token, session.pid) == ("127.0.0.1:1234", "secret", os.getpid())
            assert session.store == (tmp_path / "store").as_uri(), "as the store spells it"
            assert "secret" not in repr(session)
            (file,) = runtime.iterdir()
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    finally:
        os.umask(old)
    assert running_sessions() == []
    assert list(runtime.iterdir()) == []


@pytest.mark.processes
def test_a_file_of_a_process_that_is_gone_or_whose_pid_was_reused_is_removed(runtime: Path, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for changes in ({"pid": gone.pid}, {"born": "1"}):
        with announced("127.0.0.1:1234", str(tmp_path / "store")):
            rewrite(runtime, **changes)
            assert running_sessions() == []
            assert list(runtime.iterdir()) == []


def test_a_file_of_another_machine_is_neither_used_nor_removed(runtime: Path, tmp_path: Path) -> None:
    with announced("127.0.0.1:1234", str(tmp_path / "store")):
        rewrite(runtime, host="elsewhere")
        assert running_sessions() == []
        assert len(list(runtime.iterdir())) == 1


def test_a_symlink_and_a_file_that_is_not_a_session_are_ignored(
    runtime: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with announced("127.0.0.1:1234", str(tmp_path / "store")):
        (file,) = runtime.iterdir()
        file.rename(tmp_path / "real")
        (runtime / "link.json").symlink_to(tmp_path / "real")
        (runtime / "other.json").write_text("{}")
        (runtime / "other.json").chmod(0o600)
        assert running_sessions() == []
    assert caplog.text.count("is not used") == 2


def test_a_session_runs_unannounced_if_its_token_would_not_be_safe(
    runtime: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.mkdir(parents=True)
    runtime.chmod(0o755)
    with announced("127.0.0.1:1234", str(tmp_path / "store")):
        assert list(runtime.iterdir()) == []
    assert "condu status will not find this session" in caplog.text


def test_without_a_runtime_folder_session_files_are_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("CONDU_CACHE", str(tmp_path / "cache"))
    assert sessions_folder() == tmp_path / "cache" / "sessions"
