"""Does the bundle's own proxy listen on its port? Asked before a key or a prompt is sent there.

Any user of this machine can listen on the port while the proxy does not run. So the proxy answers a random nonce with
an HMAC of it under the key: only a program that already has the key can do that.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import socket
import time
from typing import Literal, NamedTuple

from bundle.bootstrap import make
from bundle.errors import ConfigError
from bundle.running import port_owner
from bundle.settings import Settings, renew_key, saved_key

PATH = "/proof"
ANSWER_BYTES = 4096  # the proxy sends 200
START_SECONDS = 30.0  # a proxy that has just started listens before it answers

_QUERY = re.compile(rb"nonce=([0-9a-f]{64})")


def proof(key: str, port: int, query: bytes) -> bytes | None:
    """The answer to this query, or None for a query without a nonce of ours. It is good for this port only, so that a
    program on another port cannot use the proxy's answer as its own."""
    if not (found := _QUERY.fullmatch(query)):
        return None
    said = b"claude-proxy: proof of the key, on port %d, for nonce %b" % (port, found[1])
    return json.dumps({"proof": hmac.new(key.encode(), said, hashlib.sha256).hexdigest()}).encode()


class Listener(NamedTuple):
    """Who listens on the port. Only "ours" has proved that it has the key."""

    state: Literal["ours", "starting", "another key", "none", "foreign"]
    found: str
    fix: str = ""


def listener(port: int, key: str, seconds: float = 5) -> Listener:
    """Ask who listens on 127.0.0.1:`port`. Sends no secret."""
    owner = ""
    for _ in range(2):  # whoever listened may have ended before its name was looked up
        query = f"nonce={secrets.token_hex(32)}"
        try:
            answer = _ask(port, query, seconds)
        except ConnectionRefusedError:
            return Listener("none", f"nothing listens on 127.0.0.1:{port}", make("start"))
        expected = proof(key, port, query.encode()) or b""
        if key and hmac.compare_digest(answer.partition(b"\r\n\r\n")[2], expected):
            return Listener("ours", f"the proxy answers on 127.0.0.1:{port}")
        owner = port_owner(port)
        if "claude_proxy.py" in owner and (not answer or b" 503 " in answer[:20]):  # 503: too many connections
            return Listener(
                "starting", f"{owner} does not answer yet", f"Look again in half a minute: {make('doctor')}"
            )
        if "claude_proxy.py" in owner:
            found = f"{owner} does not have the configured key, or is an older release"
            return Listener("another key", found, make("stop", "start"))
        if owner:
            break
    fix = f"End that program, or put another port into .env (PROXY_PORT=8002), then: {make('stop', 'start')}"
    return Listener("foreign", f"port {port} is taken by {owner or 'a program of another user'}", fix)


def _ask(port: int, query: str, seconds: float) -> bytes:
    """The first bytes of the answer; b"" if there is none in this time. Raises ConnectionRefusedError."""
    deadline, answer = time.monotonic() + seconds, b""
    request = f"GET {PATH}?{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.sendall(request.encode())
            while len(answer) < ANSWER_BYTES and (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                if not (piece := connection.recv(ANSWER_BYTES)):
                    break
                answer += piece
    except ConnectionRefusedError:
        raise
    except OSError:
        pass
    return answer


def require_proxy(settings: Settings, seconds: float = START_SECONDS) -> None:
    """Raises ConfigError unless our own proxy listens. If another program does, the key is renewed."""
    found = listener(settings.proxy_port, saved_key(settings), seconds)
    if found.state != "ours":
        more = f"\n{renew_key(settings)}" if found.state == "foreign" else ""
        raise ConfigError(f"{found.found}. Nothing was sent there.\n{found.fix}{more}")
