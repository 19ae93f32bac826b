"""A user's project: a tiny base, a few tasks in folders, a configuration, and the real `condu` command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.cli import main
from fusion.store import Store, open_store
from tests.plugins.ray_session import AS_NICE_AS_OTHERS
from tests.serving.helpers import free_port
from tests.tiny import COLOURS, MODEL_CFG, PREPROCESS_CFG, SHAPES, tiny_base, tiny_parquet, tiny_task

CONDU = Path(sys.executable).parent / "condu"
ROOT = Path(__file__).resolve().parents[2]
_OTHERS = ("AWS_", "RAY_")
"""Variables that are the developer's, or those of other tests' Ray and S3: a command gets none of them."""

FAST = {
    "steps": 20,
    "batch_size": 16,
    "lr": 2.0e-3,
    "warmup_steps": 2,
    "augment": "none",
    "flip": False,
    "label_smoothing": 0.0,
    "save_every_steps": 5,
}


class Project:
    """A folder with everything that `condu` needs.

    Args:
        folder: made where missing.
        store: URL of its store; None: a folder of its own.
        env: additional environment of the commands.
    """

    def __init__(self, folder: Path, *, store: str | None = None, env: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.config = folder / "condu.yaml"
        self.store_url = store or (folder / "store").as_uri()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)},
            "HOME": str(folder / "home"),
            "CONDU_CACHE": str(folder / "cache"),
            "XDG_RUNTIME_DIR": str(folder / "runtime"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
            "AWS_EC2_METADATA_DISABLED": "true",  # there is no such service here: asking for it takes seconds
            **AS_NICE_AS_OTHERS,
            **(env or {}),
        }
        (folder / "home").mkdir(exist_ok=True)
        scratch = open_store((folder / "scratch").as_uri())
        weights = tiny_base(scratch).weights
        (folder / "base.safetensors").write_bytes(scratch.get(weights.key))
        (folder / "tiny.json").write_text(json.dumps({"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}))
        self.tasks = {
            "colours": tiny_task(folder / "data" / "colours", classes=tuple(COLOURS)),
            "shapes": tiny_parquet(
                folder / "data" / "shapes", tiny_task(folder / "data" / "shapes-folders", classes=SHAPES, seed=1)
            ),
        }
        self.unseen = {"red-or-circle": tiny_task(folder / "data" / "unseen", classes=("red", "circle"), seed=5)}
        self.write_config()

    @property
    def store(self) -> Store:
        return open_store(self.store_url)

    def write_config(self, **changes: Any) -> None:
        """Write `condu.yaml`; `changes` replace whole sections, None removes one."""
        values: dict[str, Any] = {
            "store": self.store_url,
            "base": {"architecture": "tiny.json", "weights": "base.safetensors"},
            "tasks": [{"name": name, "data": data} for name, data in self.tasks.items()],
            "unseen": [{"name": name, "data": data} for name, data in self.unseen.items()],
            "train": {"lanes": 1, **FAST},
            "ray": {"num_cpus": 4},
            "serve": {"num_cpus": 0.5, "poll_s": 0.3},
            "showcase": {"samples": 2},
            **changes,
        }
        self.config.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))

    def condu(self, *arguments: str | Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        command = [str(CONDU), *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=timeout)

    def condu_here(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The command in this process: starting one costs more than what it does. Not for commands that need Ray."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["condu", *map(str, arguments)])
            for name in set(os.environ) - set(self.env):
                patch.delenv(name)
            for name, value in self.env.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def start(self, *arguments: str | Path, log: str = "log.txt") -> subprocess.Popen[str]:
        """Start the command in a process group of its own."""
        command = [str(CONDU), *map(str, arguments)]
        file = (self.folder / log).open("w")
        return subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=file, stderr=file, text=True, start_new_session=True
        )

    @contextmanager
    def service(self) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        """`condu serve` on a free port, once it is ready: its URL and its process. Nothing of it outlives the block."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        process = self.start("serve", "condu.yaml", "--port", str(port))
        try:
            deadline = time.monotonic() + 200
            while not is_ready(url):
                assert process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.2)
            yield url, process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)  # it led a session of its own

    def log(self, name: str = "log.txt") -> str:
        return (self.folder / name).read_text()


def is_ready(url: str) -> bool:
    """Whether a service is ready at a URL."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
