"""The Ray session refuses what can't work, before Ray is imported."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from cluster.interrupts import interrupt_on_sigterm
from cluster.session import RayOptions, ray_session
from fusion.errors import ConfigError


def test_a_second_ray_inside_a_ray_job_is_refused_with_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="use auto"), ray_session(RayOptions(), store=str(tmp_path)):
        pass


def test_sigterm_is_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        interrupt_on_sigterm()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
