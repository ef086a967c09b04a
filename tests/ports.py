"""Ports that no two tests get, also when tests run in several processes."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator


def ports() -> Iterator[int]:
    """Ports of 127.0.0.1 that are free, over and over.

    The kernel gives no port below 32768 to anybody by itself. Each worker of pytest-xdist has a range of its own there,
    and each run starts somewhere else in it, so that two runs at the same time seldom ask for the same port.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw7").removeprefix("gw")) % 8
    first = 20_000 + 1_500 * worker
    for number in itertools.count(random.SystemRandom().randrange(1_500)):
        port = first + number % 1_500
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


_ports = ports()


def free_port() -> int:
    """Return a port that nothing listens on. No other test gets it."""
    return next(_ports)


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
