"""How the stand-in sends an answer: as a stream or as half a body, with the faults of a connection.

The events themselves come from cortex_model.py. Here they are delayed, held or cut, as a turn or a fault says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

from aiohttp import web

from tests.cortex_faults import Fault
from tests.cortex_rules import JSON
from tests.cortex_scripts import Turn


async def send_stream(
    request: web.Request,
    events: Iterable[bytes],
    headers: Mapping[str, str],
    *,
    turn: Turn,
    fault: Fault | None,
    record: JSON,
    held: Callable[[JSON], Awaitable[None]],
) -> web.StreamResponse:
    """Send server-sent events; `held` waits at the chunk of `turn.hold`."""
    trouble = fault.name if fault else ""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **headers})
    await response.prepare(request)
    pause = turn.delay or (fault.seconds if fault and trouble == "slow_chunks" else 0)
    with contextlib.suppress(ConnectionError):
        for count, event in enumerate(events):
            record["chunks"] = count
            if turn.hold == count:
                await held(record)
            if fault and trouble in {"cut", "broken_sse"} and count == fault.after:
                if trouble == "broken_sse":
                    await response.write(b'data: {"choices": [{"del\n\n')
                elif not fault.clean:
                    _hang_up(request)
                break
            if pause:
                await asyncio.sleep(pause)
            await response.write(event)
        await response.write_eof()
        return response
    record["aborted"] = True  # by the client, or on purpose
    return response


async def wait_for_client(request: web.Request, seconds: float) -> bool:
    """Wait, and return whether the client is still there. If it leaves, the wait ends."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and request.transport is not None:
        await asyncio.sleep(min(left, 0.05))
    return request.transport is not None


async def send_half(request: web.Request, whole: JSON, record: JSON) -> web.StreamResponse:
    """Send the first half of a body, and close the connection."""
    data = json.dumps(whole).encode()
    half = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
    await half.prepare(request)
    await half.write(data[: len(data) // 2])
    _hang_up(request)
    record["aborted"] = True
    return half


def odd_events(events: Iterable[bytes]) -> Iterator[bytes]:
    """The same events, plus comments, empty data and pings (docs/cortex.md#answer-stream-lines)."""
    *others, last = events
    for event in others:
        yield b": keep-alive\n\nevent: ping\n\ndata:\n\n" + event
    yield last.rstrip(b"\n")


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()
