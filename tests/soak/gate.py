"""A gate in front of a lab's S3 server, a program of its own: it stops one request half way, or slows all of them.

    python -m tests.soak.gate HOST PORT TARGET_PORT FOLDER

Files in the folder are its controls. `hold` has a regular expression: the first request whose first line matches gets
half of its body through, and `held` then says from which address it came and what it was. Nobody answers it: whoever
sent it is to be killed. `slow` has two numbers: seconds before each request, and bytes a second.

As `tests.dropping_proxy`, it takes a segment that starts with a method for the start of a request.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
import time
from pathlib import Path

_METHODS = (b"GET /", b"HEAD /", b"PUT /", b"POST /", b"DELETE /")


class Gate:
    """Forwards connections to `target`. See above."""

    def __init__(self, folder: Path, target: tuple[str, int]) -> None:
        self._folder, self._target = folder, target
        self._lock = threading.Lock()

    def serve(self, listener: socket.socket) -> None:
        """Until the process is killed."""
        while True:
            client, (address, *_) = listener.accept()
            try:
                server = socket.create_connection(self._target)
            except OSError:  # it is still starting
                _close(client)
                continue
            threading.Thread(target=self._requests, args=(client, server, address), daemon=True).start()
            threading.Thread(target=_replies, args=(server, client), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, address: str) -> None:
        held = False
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                starts = data.startswith(_METHODS)
                head, blank, body = data.partition(b"\r\n\r\n") if starts else (b"", b"", data)
                held = held or (starts and self._holds(address, head))
                self._delay(len(data), starts=starts)
                if held and body:  # the head alone has no half: its body comes after `100 Continue`
                    server.sendall(head + blank + body[: len(body) // 2])
                    (self._folder / "held.part").rename(self._folder / "held")
                    while client.recv(1 << 16):
                        continue
                    break
                server.sendall(data)
        _close(server)

    def _holds(self, address: str, head: bytes) -> bool:
        line = head.split(b"\r\n")[0].decode("latin-1")
        with self._lock, contextlib.suppress(FileNotFoundError):
            if re.search((self._folder / "hold").read_text(), line):
                (self._folder / "hold").unlink()
                (self._folder / "held.part").write_text(f"{address} {line}")
                return True
        return False

    def _delay(self, num_bytes: int, *, starts: bool) -> None:
        with contextlib.suppress(FileNotFoundError):
            before_s, bytes_per_s = map(float, (self._folder / "slow").read_text().split())
            time.sleep(num_bytes / bytes_per_s + (before_s if starts else 0.0))


def _replies(server: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(1 << 16):
            client.sendall(data)
    _close(client)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # wakes the other thread's recv, which a close alone does not
    connection.close()


if __name__ == "__main__":
    host, port, target_port, folder = sys.argv[1:]
    Gate(Path(folder), (host, int(target_port))).serve(socket.create_server((host, int(port)), backlog=128))
