"""The stand-in as a process: its command line, its log file, and its end at SIGINT or SIGTERM.

`python tests/cortex_stub.py` runs this. The first line of output names the address.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cortex_stub import CortexStub


async def _run_process(stub: CortexStub, port: int) -> None:
    stub.port = port
    await stub.serve()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sys.stdout.write(f"listening on {stub.url}\n")
    sys.stdout.flush()
    await stop.wait()
    await stub.shut_down()


@contextlib.contextmanager
def _log_file(path: Path | None) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    # Prompts are in the file: nobody else may read them.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
        yield file


def main(make: type[CortexStub], arguments: Sequence[str] | None = None) -> int:
    """Run the stand-in until SIGINT or SIGTERM; 2 for a wrong argument, 1 if the port is taken."""
    parser = argparse.ArgumentParser(description="A local stand-in for Snowflake Cortex, on loopback only.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the first line of output names it")
    parser.add_argument("--account", required=True, help="as in the claims, for example MYORG-MYACCOUNT")
    parser.add_argument("--user", required=True, help="login name")
    parser.add_argument("--public-key", type=Path, action="append", default=[], help="PEM; twice for both slots")
    parser.add_argument("--demo", action="store_true", help="every answer says that no model is behind it")
    parser.add_argument("--bench", action="store_true", help="no rules, no charging, no record of bodies")
    parser.add_argument("--script", type=Path, help="JSON: a list of turns or of {when, turns}")
    parser.add_argument("--log", type=Path, help="append one JSON line per request")
    given = parser.parse_args(arguments)
    try:
        keys = [path.read_text(encoding="ascii") for path in given.public_key]
        script = json.loads(given.script.read_text(encoding="utf-8")) if given.script else ()
        with _log_file(given.log) as log:
            stub = make(given.account, given.user, keys, script=script, demo=given.demo, bench=given.bench, log=log)
            asyncio.run(_run_process(stub, given.port))
    except (OSError, ValueError, TypeError) as error:
        sys.stderr.write(f"cortex_stub: {error}\n")
        return 1 if isinstance(error, OSError) else 2
    return 0
