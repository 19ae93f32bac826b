"""Machines in one machine: Linux namespaces that Ray takes for separate nodes, to be killed, unplugged and powered off.

Each has a network of its own, a hostname, processes, /dev/shm, and a private disk at the same path as all others'. A
bridge joins them, and nothing leads out. Needs root, `ip` and `unshare`; nothing outlives the process that made them.

    with Machines(Path("lab"), read_only=[source]) as lab:
        lab.s3()
        head, one = lab.add("head"), lab.add("one")
        head.ray_head(num_cpus=0)
        one.ray_worker(head, num_cpus=1)
        head.run("condu", "run", "condu.yaml")
        one.power_off()
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.s3_server import ACCESS_KEY, SECRET_KEY

BIN = Path(sys.executable).parent
SOURCE = Path(__file__).resolve().parents[2]
BUCKET = "condu-test"
_NET = "10.77.0."
_DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
"""A test process that is killed takes its machines with it: `unshare` alone would outlive it."""
_INIT = "trap : TERM INT; while :; do sleep 3600 & wait $!; done"
"""Process 1 of a machine: bash, which reaps orphans as an init has to."""
_MAKE_BUCKET = f"""
import boto3, time
client = boto3.client("s3")
for attempt in range(200):
    try:
        if "{BUCKET}" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket="{BUCKET}")
        client.put_object(Bucket="{BUCKET}", Key="ready", Body=b"x")  # a volume server has joined
        client.delete_object(Bucket="{BUCKET}", Key="ready")
        break
    except Exception as error:
        last = error
        time.sleep(0.3)
else:
    raise last
"""


def why_not() -> str | None:
    """Why machines can't be made here, or None."""
    if os.getuid():
        return "machines are made of namespaces, which need root"
    try:
        for command in (["ip", "-V"], ["nsenter", "-V"], ["unshare", "--net", "--mount", "--pid", "--fork", "true"]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return f"machines are made of namespaces, which are refused here: {done.stderr.strip()}"
    except FileNotFoundError as error:
        return f"machines need iproute2 and util-linux: {error}"
    return None


class Machine:
    """One machine. `disk` is what the outside sees of its private folder, `local` where the machine has it."""

    def __init__(self, lab: Machines, name: str, number: int) -> None:
        self.lab, self.name, self.ip = lab, name, f"{_NET}{number}"
        self.disk, self.local = lab.folder / "disks" / name, lab.folder / "local"
        for folder in ("home", "tmp", "ray", "work"):
            (self.disk / folder).mkdir(parents=True)
        self.local.mkdir(exist_ok=True)
        mounts = [
            f"mount --bind {self.disk} {self.local}",
            "mount -t tmpfs -o size=600m tmpfs /dev/shm",
            f"mount --bind {lab.folder}/hosts /etc/hosts",
            f"mount -t tmpfs tmpfs {lab.folder}/disks",
            f"hostname {name}",
            *(f"mount --bind {path} {path} && mount -o remount,ro,bind {path}" for path in lab.read_only),
            f"exec bash -c '{_INIT}'",
        ]
        own = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            [*_DIES_WITH_US, "unshare", *own, "bash", "-c", " && ".join(mounts)],
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        self._init = _child_of(self._holder.pid)
        self._link = f"v-{name}"[:15]
        lab.switch("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(self._init))
        lab.switch("link", "set", self._link, "master", "br0", "up")
        for words in ("link set lo up", f"addr add {self.ip}/24 dev eth0", "link set eth0 up"):
            _run(["nsenter", "-t", str(self._init), "-n", "ip", *words.split()])
        _until(lambda: _run(["nsenter", "-t", str(self._init), "-u", "hostname"]).strip() == name, 10)
        self.env = {
            "PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": f"{self.local}/home",
            "TMPDIR": f"{self.local}/tmp",
            "RAY_TMPDIR": f"{self.local}/ray",
            "PYTHONPATH": str(SOURCE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LANG": "C.UTF-8",
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.second_try:middlewares",  # as in the image
            **lab.env,
        }

    def run(self, *command: str | Path, timeout_s: float = 900, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command on the machine, to its end."""
        done = subprocess.run(self._entered(command), env=self.env, capture_output=True, text=True, timeout=timeout_s)
        assert not check or done.returncode == 0, (
            f"{self.name}: {command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done

    def python(self, code: str) -> str:
        """What a Python program on the machine prints."""
        return self.run("python", "-c", code, timeout_s=120).stdout

    def start(self, *command: str | Path, log: Path) -> subprocess.Popen[bytes]:
        """A command on the machine, in the background. Signals go to `real(process)`."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self._entered(command), env=self.env, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def ray_head(self, *, num_cpus: int) -> None:
        """Ray's head. Its dashboard listens on loopback, as everywhere."""
        self._ray(
            "--head", "--port", "6379", "--include-dashboard", "true", "--dashboard-host", "127.0.0.1", cpus=num_cpus
        )

    def ray_worker(self, head: Machine, *, num_cpus: int) -> None:
        self._ray("--address", f"{head.ip}:6379", cpus=num_cpus)

    def kill_raylet(self) -> None:
        """SIGKILL of the node's raylet: its connections close, and its workers follow."""
        found = [pid for pid, command in self._processes() if "/raylet/raylet" in command.split(" ")[0]]
        assert found, f"{self.name} runs no raylet"
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    def power_off(self) -> None:
        """Its link goes, and then everything on it: dying processes close their connections, and nobody may hear it."""
        self.unplug()
        os.kill(self._init, signal.SIGKILL)
        self._holder.wait()

    def kill_all(self) -> None:
        """SIGKILL of all that runs on it; the machine stays."""
        for pid, _ in self._processes():
            if pid != self._init:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def small_disk(self, *, mib: int) -> None:
        """Let its home, with the node cache, and its scratch folder be on small disks. Before anything runs there."""
        for name in ("home", "tmp"):
            self.run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", f"{self.local}/{name}")

    def fill_disk(self) -> None:
        """Leave no room on its small disks."""
        for name in ("home", "tmp"):
            self.run("bash", "-c", f"cat /dev/zero > {self.local}/{name}/full", check=False)

    def unplug(self) -> None:
        self.lab.switch("link", "set", self._link, "down")

    def plug(self) -> None:
        self.lab.switch("link", "set", self._link, "up")

    @property
    def is_on(self) -> bool:
        return self._holder.poll() is None

    def _ray(self, *arguments: str, cpus: int) -> None:
        log = self.lab.folder / f"ray-{self.name}.log"
        log.unlink(missing_ok=True)
        process = self.start(
            "ray", "start", "--block", "--node-ip-address", self.ip, "--num-cpus", str(cpus), "--object-store-memory",
            str(100 << 20), "--disable-usage-stats", *arguments, log=log,
        )  # fmt: skip
        _until(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()[-3000:]

    def _entered(self, command: Iterable[str | Path]) -> list[str]:
        # --wdns: --wd would resolve outside of the machine
        inside = ["nsenter", "-t", str(self._init), "-m", "-u", "-n", "-i", "-p", f"--wdns={self.local}/work"]
        return [*inside, *map(str, command)]

    def _processes(self) -> list[tuple[int, str]]:
        """Process ids as seen from outside, and command lines."""
        mine = os.readlink(f"/proc/{self._init}/ns/pid")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/pid") == mine:
                    command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append((int(path.name), command.strip()))
            except OSError:  # it ended
                continue
        return found


class Machines:
    """A few machines and the bridge between them. Leaving the block powers all off.

    Args:
        folder: on a real disk; must not exist yet. Short: sockets below it have paths of 107 characters at most.
        read_only: folders of this machine that no machine may write to.
    """

    def __init__(self, folder: Path, *, read_only: Sequence[Path] = ()) -> None:
        self.folder, self.read_only = folder, [str(path) for path in read_only]
        (folder / "disks").mkdir(parents=True)
        (folder / "hosts").write_text("127.0.0.1 localhost\n")
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.machines: list[Machine] = []
        self.gate: S3Gate

    def __enter__(self) -> Machines:
        self._holder = subprocess.Popen(
            [*_DIES_WITH_US, "unshare", "--net", "--fork", "--kill-child", "sleep", "infinity"], start_new_session=True
        )
        self._switch = _child_of(self._holder.pid)
        _until(lambda: os.readlink(f"/proc/{self._switch}/ns/net") != os.readlink("/proc/self/ns/net"), 5)
        self.switch("link", "add", "br0", "type", "bridge")
        self.switch("link", "set", "br0", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self.machines:
            if machine.is_on:
                machine.power_off()
        os.kill(self._switch, signal.SIGKILL)
        self._holder.wait()

    def switch(self, *words: str) -> None:
        _run(["nsenter", "-t", str(self._switch), "-n", "ip", *words])

    def keep_logs(self, folder: Path) -> None:
        """Copy what was logged: by commands, and by Ray on every machine."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in self.folder.glob("*.log"):
            shutil.copy(path, folder)
        for machine in self.machines:
            for logs in machine.disk.glob("ray/ray/session_2*/logs"):
                shutil.copytree(logs, folder / machine.name, symlinks=True, dirs_exist_ok=True)

    def add(self, name: str) -> Machine:
        number = 1 + len(self.machines)
        with (self.folder / "hosts").open("a") as file:
            file.write(f"{_NET}{number} {name}\n")
        self.machines.append(Machine(self, name, number))
        return self.machines[-1]

    def redis(self, machine: Machine) -> dict[str, str]:
        """Redis on a machine, for the state of a head. Returns what the head has to have in its environment."""
        machine.start(
            "redis-server", "--bind", machine.ip, "--protected-mode", "no", "--save", "", "--port", "6390",
            log=self.folder / "redis.log",
        )  # fmt: skip
        self.env |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "300"}  # nodes wait so long for a head, as on Kubernetes
        return {"RAY_REDIS_ADDRESS": f"{machine.ip}:6390"}

    def s3(self) -> Machine:
        """A machine with an S3 server. Every machine that is added later finds it in its environment."""
        machine = self.add("s3")
        identity = {
            "name": "condu",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (machine.disk / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (machine.disk / "data").mkdir()
        machine.start(
            BIN / "weed", "server", f"-dir={machine.local}/data", f"-ip={machine.ip}", f"-ip.bind={machine.ip}",
            "-master.port=9333", "-volume.port=9340", "-filer", "-filer.port=8888", "-s3", "-s3.port=8333",
            f"-s3.config={machine.local}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-filer.localSocket={machine.local}/filer.sock", f"-s3.localSocket={machine.local}/s3.sock",
            "-volume.max=20", "-master.volumeSizeLimitMB=256", "-volume.preStopSeconds=0", "-master.telemetry=false",
            "-s3.autoCreateBucket=false", "-master.electionTimeout=1s", log=self.folder / "s3.log",
        )  # fmt: skip
        (machine.disk / "gate").mkdir()
        machine.start(
            "python", "-m", "tests.soak.gate", machine.ip, "8334", "8333", machine.local / "gate",
            log=self.folder / "gate.log",
        )  # fmt: skip
        self.gate = S3Gate(machine.disk / "gate")
        self.env |= {
            "AWS_ENDPOINT_URL_S3": f"http://{machine.ip}:8334",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        machine.env |= self.env
        machine.python(_MAKE_BUCKET)
        return machine


class S3Gate:
    """The controls of the gate before the S3 server, see `tests.soak.gate`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hold(self, pattern: str) -> None:
        """Let the next request that matches get half of its body through, and no further."""
        (self._folder / "hold.new").write_text(pattern)
        (self._folder / "hold.new").rename(self._folder / "hold")

    def held(self) -> tuple[str, str] | None:
        """From which address the request came, and its first line; None until it is held."""
        try:
            address, _, line = (self._folder / "held").read_text().partition(" ")
        except FileNotFoundError:
            return None
        return address, line

    def slow(self, *, before_s: float, bytes_per_s: float) -> None:
        """Wait before each request, and carry what is sent no faster than this, a connection."""
        (self._folder / "slow").write_text(f"{before_s} {bytes_per_s}")


def real(process: subprocess.Popen[bytes]) -> int:
    """The process behind nsenter, as seen from outside."""
    return _child_of(process.pid)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    _until(lambda: children.read_text().strip() != "", 5)
    return int(children.read_text().split()[0])


def _until(what: object, timeout_s: float) -> None:
    assert callable(what)
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
