"""What `lean_litellm` leaves out is not missed, what it warms costs nobody anything, and nothing depends on it."""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest

from bundle.proxy import lean_litellm
from bundle.proxy.lean_litellm import CHUNKS_AHEAD, Changes, apply, pinged, warmed
from bundle.proxy.live_config import LiveConfig
from tests.set_up import BUNDLE, SetUp, events

ROW = {
    "model_name": "claude-sonnet-4-5",
    "litellm_params": {"model": "openai/claude-sonnet-4-5"},
    "model_info": {"cortex": True},
}


class Toy:
    """A class in the place of LiteLLM."""

    part = "old"


class Live(LiveConfig):
    """A configuration with one row, and a token that is live or not."""

    def __init__(self, *, live: bool = True) -> None:
        self.document, self._live = {"model_list": [ROW]}, live

    def is_live(self) -> bool:
        return self._live


def start(changes: Changes, live: LiveConfig) -> list[str]:
    """Start an application that is `warmed`, and return what it says about its start."""
    told = []

    async def app(_: Any, __: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})

    async def send(message: dict[str, str]) -> None:
        told.append(message["type"])

    async def run() -> None:
        await warmed(app, changes, key="sk-1", config=live)({"type": "lifespan"}, None, send)

    asyncio.run(run())
    return told


def test_a_litellm_that_moved_something_runs_without_that_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(changes: Changes) -> None:
        changes.replace(__name__, "Toy.no_such_part", lambda old: old)

    def still_there(changes: Changes) -> None:
        changes.replace(__name__, "Toy.part", lambda old: f"not {old}")

    monkeypatch.setattr(lean_litellm, "STEPS", (gone, still_there))
    changes = apply()
    assert Toy.part == "not old"
    assert "without gone" in capsys.readouterr().out
    changes.take_back()
    assert Toy.part == "old"


def test_a_warm_up_that_fails_takes_every_step_back_and_does_not_keep_the_proxy_from_starting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = Changes()
    changes.replace(__name__, "Toy.part", lambda old: f"not {old}")
    asked: list[str] = []

    async def ask(_: Any, __: str, model: str) -> str:
        asked.append(model)
        if Toy.part != "old":
            raise AttributeError("no such thing")
        return ""

    monkeypatch.setattr(lean_litellm, "_ask", ask)
    assert start(changes, Live()) == ["lifespan.startup.complete"]
    assert Toy.part == "old"
    assert asked == ["claude-sonnet-4-5"] * 2
    assert "AttributeError: no such thing" in capsys.readouterr().out


def test_without_a_live_token_there_is_no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(lean_litellm, "_ask")
    assert start(Changes(), Live(live=False)) == ["lifespan.startup.complete"]


class Stream:
    """Yields its words, each after so many seconds, and raises the errors among them. `closed`: it has ended."""

    def __init__(self, *words: tuple[float, str | BaseException]) -> None:
        self._words, self.closed = words, False

    async def chunks(self) -> AsyncGenerator[str, None]:
        try:
            for seconds, word in self._words:
                await asyncio.sleep(seconds)
                if isinstance(word, BaseException):
                    raise word
                yield word
        finally:
            await asyncio.sleep(0)
            self.closed = True


class Jumping(selectors.DefaultSelector):
    """Where an event loop would wait, its clock jumps: the machine's load changes no order of events."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Jumping()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def heard(stream: Stream, *, stop_after: int = 100) -> list[str]:
    """What comes out of a stream with a ping each tenth of a second, and its error. Afterwards all tasks have ended."""

    async def listen() -> list[str]:
        said: list[str] = []
        before = asyncio.all_tasks()
        whole = pinged(stream=stream.chunks(), ping_interval_seconds=0.1, ping_chunk="ping")
        try:
            async for word in whole:
                said.append(word)
                if len(said) == stop_after:
                    break
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - any is heard
            said.append(repr(error))
        await whole.aclose()
        await asyncio.sleep(0.05)
        assert asyncio.all_tasks() == before
        return said

    loop = JumpingLoop()
    try:
        return loop.run_until_complete(asyncio.wait_for(listen(), 100))
    finally:
        loop.close()


def test_a_stream_passes_with_its_error_and_pings_fill_its_gaps() -> None:
    assert heard(Stream((0, "a"), (0, "b"))) == ["a", "b"]
    assert heard(Stream((0.25, "a"), (0.15, "b"))) == ["ping", "ping", "a", "ping", "b"]
    assert heard(Stream((0, "a"), (0, ValueError("no")))) == ["a", "ValueError('no')"]
    assert heard(Stream((0, "a"), (0, asyncio.CancelledError()))) == ["a", "CancelledError()"]
    assert heard(Stream()) == []


def test_the_first_piece_leaves_before_the_rest_is_read() -> None:
    order: list[str] = []

    async def stream() -> AsyncGenerator[str, None]:
        for word in ("a", "b", "c"):
            order.append(f"read {word}")
            yield word

    async def listen() -> None:
        async for word in pinged(stream=stream(), ping_interval_seconds=60, ping_chunk="ping"):
            order.append(f"left {word}")  # noqa: PERF401 - as it comes

    asyncio.run(listen())
    assert order == ["read a", "left a", "read b", "read c", "left b", "left c"]


@pytest.mark.keeps("unread-answer")
def test_a_slow_client_slows_the_stream_down_and_misses_nothing() -> None:
    ahead: list[int] = []

    async def listen() -> None:
        read = 0

        async def stream() -> AsyncGenerator[int, None]:
            nonlocal read
            for read in range(1000):
                yield read

        taken = 0
        async for number in pinged(stream=stream(), ping_interval_seconds=60, ping_chunk="ping"):
            assert number == taken
            taken += 1
            for _ in range(3):
                await asyncio.sleep(0)
            ahead.append(read - taken)
        assert taken == 1000

    asyncio.run(listen())
    assert max(ahead) <= CHUNKS_AHEAD + 1


@pytest.mark.parametrize("words", [[(0, "a"), (60, "b")], [(0, "a"), (0, ValueError("no"))], [(0, "a"), (0, "b")]])
def test_a_stream_that_nobody_listens_to_is_closed(words: list[tuple[float, str | BaseException]]) -> None:
    stream = Stream(*words)
    assert heard(stream, stop_after=1) == ["a"]
    assert stream.closed


KEY_CHECK = """
import asyncio
from bundle.proxy import lean_litellm
from bundle.proxy.front_door import LITELLM_ROUTES
with lean_litellm.importing({path for _, path in LITELLM_ROUTES}):
    from litellm.proxy import proxy_server
from starlette.requests import Request

lean_litellm.one_user(lean_litellm.Changes())
(user,) = proxy_server.app.dependency_overrides.values()

async def ask(given):
    async def body():
        return {"type": "http.request", "body": b"{}", "more_body": False}
    scope = {"type": "http", "method": "POST", "path": "/v1/messages", "query_string": b"", "headers": given}
    try:
        return (await user(Request(scope, body))).api_key
    except proxy_server.ProxyException as error:
        return error.code

for proxy_server.master_key in ("sk-the-right-one", "", None):
    for given in (b"Bearer sk-the-right-one", b"Bearer sk-another", b"Bearer ", b"Bearer None", None):
        print(asyncio.run(ask([(b"authorization", given)] if given is not None else [])))
"""


@pytest.mark.real
def test_litellm_itself_lets_nobody_in_without_the_key() -> None:
    environ = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [sys.executable, "-c", KEY_CHECK],
        cwd=BUNDLE,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["claude-proxy", *["401"] * 14]


@pytest.mark.real
def test_the_first_request_is_warm_although_cortex_was_asked_nothing_before_it(set_up: SetUp) -> None:
    set_up.start("auto_refresh.py")
    set_up.start_proxy()
    assert [record for record in set_up.stub.requests if record["route"] != "sql"] == []
    first, *later = [set_up.ask("hello") for _ in range(4)]
    assert "hello" in first.json()["content"][0]["text"]
    assert len([record for record in set_up.stub.requests if record["route"] != "sql"]) == 4
    # Cold, the first takes a hundred times as long as the others. (The bench measures it; here others use the machine.)
    assert first.elapsed < 20 * max(answer.elapsed for answer in later)
    assert "lean_litellm" not in set_up.log("claude_proxy.py")
    assert "\033" not in set_up.log("claude_proxy.py")  # LiteLLM's list of models, at each start


@pytest.mark.real
def test_while_a_model_thinks_the_connection_is_kept_alive(running: SetUp) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.ask, "[[hold: 2]] [[text: at last]]", stream=True)
        time.sleep(16)  # LiteLLM's interval is 15 seconds
        running.stub.release()
        kinds = [event["type"] for event in events(answer.result())]
    assert kinds.count("ping") == 1
    assert kinds[-1] == "message_stop"


@pytest.mark.real
def test_a_client_that_goes_away_ends_the_call_to_cortex(running: SetUp) -> None:
    before = len(running.stub.requests)
    asked = {"model": "claude-sonnet-4-5", "max_tokens": 4000, "stream": True}
    asked["messages"] = [{"role": "user", "content": "[[stream: 400 0.05]]"}]
    with (
        httpx.Client(trust_env=False, timeout=30, headers={"Authorization": f"Bearer {running.master_key}"}) as client,
        client.stream("POST", running.url + "/v1/messages", json=asked) as answer,
    ):
        next(answer.iter_bytes())
    running.stub.wait_for(lambda record: record["number"] >= before and record.get("aborted"), 5)


@pytest.mark.real
def test_a_long_stream_keeps_its_words_and_its_usage(running: SetUp) -> None:
    answer = running.ask("[[stream: 300 0]]", stream=True, max_tokens=4000)
    record = running.stub.requests[-1]
    told = events(answer)
    words = "".join(event["delta"].get("text", "") for event in told if event["type"] == "content_block_delta")
    assert words == " ".join(f"w{number}" for number in range(300))
    usage = next(event["usage"] for event in told if event["type"] == "message_delta")
    assert usage["output_tokens"] == record["usage"]["output"] > 300


@pytest.mark.real
def test_an_answer_of_one_token_is_counted_as_one(running: SetUp) -> None:
    told = events(running.ask("[[text: ok]]", stream=True))
    assert next(event["usage"]["output_tokens"] for event in told if event["type"] == "message_delta") == 1


@pytest.mark.real
def test_chunks_of_another_shape_than_openai_documents_pass(running: SetUp) -> None:
    running.stub.set_options(older_shapes=True)
    try:
        told = events(running.ask('[[tools: Bash {"command": "ls"}]]', stream=True, tools=[TOOL]))
    finally:
        running.stub.set_options(older_shapes=False)
    parts = [event["delta"] for event in told if event["type"] == "content_block_delta"]
    assert json.loads("".join(part.get("partial_json", "") for part in parts)) == {"command": "ls"}


TOOL = {"name": "Bash", "description": "Run a command", "input_schema": {"type": "object", "properties": {}}}


def test_the_end_of_a_long_stream_without_a_usage_is_built_from_few_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    litellm: Any = ModuleType("litellm")  # in place of the real one, which takes seconds to import
    litellm.stream_chunk_builder = lambda chunks, *_, **__: built.append(len(chunks))
    handler: Any = ModuleType("streaming_handler")
    handler.asyncify = None
    monkeypatch.setitem(sys.modules, "litellm", litellm)
    monkeypatch.setitem(sys.modules, "litellm.litellm_core_utils.streaming_handler", handler)
    lean_litellm.usage_from_the_end(Changes())
    chunk = SimpleNamespace(choices=[SimpleNamespace(finish_reason=None)])
    for number in (lean_litellm.MANY_CHUNKS, lean_litellm.MANY_CHUNKS + 1):
        litellm.stream_chunk_builder([chunk] * number)
    assert built == [lean_litellm.MANY_CHUNKS, 5]
