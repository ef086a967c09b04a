"""A company's proxy on loopback: SOCKS 5 and HTTP on one port. It notes where the requests want to go."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress


class CompanyProxy:
    """Passes everything on to 127.0.0.1, to the port that was asked for. `targets` are HOST:PORT of each request."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CompanyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, ValueError):
            first = client.recv(1)
            target, opening = self._socks(client) if first == b"\5" else self._http(client, first)
            self.targets.append(target)
            with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2]))) as server:
                server.sendall(opening)
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join()

    def _socks(self, client: socket.socket) -> tuple[str, bytes]:
        client.recv(client.recv(1)[0])
        client.sendall(b"\5\0")
        kind = client.recv(4)[3]
        host = socket.inet_ntoa(client.recv(4)) if kind == 1 else client.recv(client.recv(1)[0]).decode()
        port = int.from_bytes(client.recv(2), "big")
        client.sendall(b"\5\0\0\1\0\0\0\0\0\0")
        return f"{host}:{port}", b""

    def _http(self, client: socket.socket, first: bytes) -> tuple[str, bytes]:
        head = first
        while b"\r\n\r\n" not in head:
            head += client.recv(65536)
        method, url, rest = head.split(b" ", 2)
        if method == b"CONNECT":
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            return url.decode(), b""
        found = re.fullmatch(rb"http://([^/]+)(.*)", url)
        if not found:
            raise ValueError(url)
        return found[1].decode(), b" ".join([method, found[2], rest])


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
