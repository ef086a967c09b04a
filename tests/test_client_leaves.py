"""When the client leaves, the application is cancelled; when it stays or has its answer, nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bundle.proxy import front_door
from bundle.proxy.front_door import Receive, _while_connected
from bundle.proxy.replies import Message, Send

BODY: Message = {"type": "http.response.body", "body": b"x"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door, "LEAVING_SECONDS", 0.01)


async def nowhere(_: Message) -> None:
    pass


def run(app: Callable[[Any, Receive, Send], Awaitable[None]], *, leaves: bool, stopped: bool = False) -> None:
    async def receive() -> Message:
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def main() -> None:
        task = asyncio.ensure_future(_while_connected(app, {}, b"{}", receive, nowhere))
        if stopped:
            await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.wait_for(task, 2)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("turns_into", [asyncio.CancelledError, ValueError])
def test_a_call_whose_client_has_left_is_cancelled_and_its_error_is_nobody_s(turns_into: type[BaseException]) -> None:
    cancelled = []

    async def app(_: Any, receive: Receive, __: Send) -> None:
        assert await receive() == {"type": "http.request", "body": b"{}", "more_body": False}
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise turns_into from None

    run(app, leaves=True)
    assert cancelled


def test_the_application_hears_of_it_before_it_is_cancelled() -> None:
    heard = []

    async def app(_: Any, receive: Receive, __: Send) -> None:
        heard.extend([(await receive())["type"], (await receive())["type"], (await receive())["type"]])

    run(app, leaves=True)
    assert heard == ["http.request", "http.disconnect", "http.disconnect"]


def test_what_is_done_after_a_whole_answer_is_not_cancelled() -> None:
    done = []

    async def app(_: Any, __: Receive, send: Send) -> None:
        await send({**BODY, "more_body": True})
        await send(BODY)
        await asyncio.sleep(0.05)
        done.append(True)

    run(app, leaves=True)
    assert done


def test_an_error_of_a_call_whose_client_stays_is_told() -> None:
    async def app(*_: Any) -> None:
        raise ValueError("odd")

    with pytest.raises(ValueError, match="odd"):
        run(app, leaves=False)


def test_a_proxy_that_stops_is_not_taken_for_a_client_that_left() -> None:
    async def app(*_: Any) -> None:
        await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        run(app, leaves=False, stopped=True)
