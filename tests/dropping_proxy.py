"""A TCP proxy in front of a real server that loses what networks lose: the reply to a request that was carried out,
or the rest of a download. It remembers the heads of the requests, and can speak TLS to the client.

    with DroppingProxy(server.port) as proxy:
        proxy.drop_reply_to("PUT")        # the next PUT reaches the server; its reply never reaches the client
        proxy.cut_reply_to("GET", after_bytes=100_000, times=2)

It knows as little of HTTP as possible: a request starts with its method at the start of a segment, a reply with
`HTTP/1.1`. `100 Continue` is passed on, because a client waits for it before it sends the body.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass

_METHODS = (b"GET /", b"HEAD /", b"PUT /", b"POST /", b"DELETE /")


@dataclass
class _Fault:
    method: bytes
    after_bytes: int | None
    """How much of the reply's body gets through before both connections end. None: not even its head."""
    times: int


class DroppingProxy:
    """Forwards loopback connections to `port` of this machine. `num_faults` counts the faults that have struck.

    `heads` are the requests so far without their bodies: "PUT /bucket/key HTTP/1.1" and the headers, one per line.
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.num_faults = 0
        self.heads: list[str] = []
        self._tls = tls
        self._target = ("127.0.0.1", port)
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = {self._listener}
        self.port: int = self._listener.getsockname()[1]
        self.endpoint_url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"

    def drop_reply_to(self, method: str, *, times: int = 1) -> None:
        """Lose the whole reply to the next `times` requests of this method, after the server has sent it."""
        self.cut_reply_to(method, after_bytes=None, times=times)

    def cut_reply_to(self, method: str, *, after_bytes: int | None, times: int = 1) -> None:
        """End the connection after `after_bytes` of the reply's body, for the next `times` requests."""
        with self._lock:
            self._faults.append(_Fault(method.encode() + b" ", after_bytes, times))

    def __enter__(self) -> DroppingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for connection in self._open:
                _close(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            if self._tls is not None:
                try:
                    client = self._tls.wrap_socket(client, server_side=True)
                except OSError:  # the client did not trust us
                    _close(client)
                    _close(server)
                    continue
            with self._lock:
                self._open |= {client, server}
            link = _Link(self, client, server)
            threading.Thread(target=link.carry_requests, daemon=True).start()
            threading.Thread(target=link.carry_replies, daemon=True).start()

    def take_fault(self, request: bytes) -> _Fault | None:
        """The armed fault for the request that starts with these bytes; uses it up once."""
        with self._lock:
            if request.startswith(_METHODS):
                self.heads.append(request.partition(b"\r\n\r\n")[0].decode("latin-1").replace("\r\n", "\n"))
            for fault in self._faults:
                if fault.times > 0 and request.startswith(fault.method):
                    fault.times -= 1
                    return fault
        return None


class _Link:
    """One client's connection and the matching one to the server."""

    def __init__(self, proxy: DroppingProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._fault: _Fault | None = None

    def carry_requests(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(1 << 16):
                self._fault = self._proxy.take_fault(data) or self._fault
                self._server.sendall(data)
        _close(self._server)

    def carry_replies(self) -> None:
        left: int | None = None  # bytes that may still pass, once a fault has struck
        with contextlib.suppress(OSError):
            while data := self._server.recv(1 << 16):
                fault = self._fault
                if fault is not None and left is None and not data.startswith(b"HTTP/1.1 100"):
                    self._proxy.num_faults += 1
                    head = data.find(b"\r\n\r\n") + 4
                    left = 0 if fault.after_bytes is None else head + fault.after_bytes
                if left is not None:
                    data, left = data[:left], max(left - len(data), 0)
                self._client.sendall(data)
                if left == 0:
                    break
        _close(self._client)
        _close(self._server)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # wakes the other thread's recv, which a close alone does not
    connection.close()
