"""What the front door adds to answers: an id, the numbers that Anthropic's API always sends, and an estimate."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bundle.proxy.front_door import LITELLM_ROUTES, OWN_ROUTES, FrontDoor
from bundle.proxy.live_config import LiveConfig
from bundle.proxy.replies import counted_start, is_start, whole_answer

KEY = "sk-the-key-of-this-proxy-0123456789"
ASKED = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "word " * 7_000}]}
ZERO = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
START = {"type": "message_start", "message": {"id": "msg_1", "usage": ZERO}}
JSON_TYPE, STREAM_TYPE = (b"content-type", b"application/json"), (b"content-type", b"text/event-stream; charset=utf-8")


def event(content: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (content["type"].encode(), json.dumps(content).encode())


def answered(
    *pieces: bytes | Exception, status: int = 200, kind: tuple[bytes, bytes] = JSON_TYPE, **request: Any
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) for a client of the front door, when LiteLLM answers with these pieces."""
    sent = list[Any]()

    async def litellm(_: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [kind, (b"content-length", b"7"), (b"x-litellm-call-id", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for place, piece in enumerate(pieces):
            if isinstance(piece, Exception):
                raise piece
            await send({"type": "http.response.body", "body": piece, "more_body": place + 1 < len(pieces)})

    async def run() -> None:
        door: Any = FrontDoor(litellm, key=KEY, port=8001, config=LiveConfig(Path("/no/such/file")))
        scope = {"type": "http", "method": "POST", "path": "/v1/messages", "query_string": b"", **request}
        headers = [(b"host", b"127.0.0.1:8001"), (b"authorization", b"Bearer " + KEY.encode()), JSON_TYPE]
        body = iter([{"type": "http.request", "body": json.dumps(ASKED).encode()}])

        async def receive() -> Any:
            return next(body, None) or await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await door({"headers": headers, **scope}, receive, send)

    asyncio.run(run())
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(("method", "path"), sorted((LITELLM_ROUTES | OWN_ROUTES) | {("GET", "/nothing")}))
def test_every_answer_has_an_id_of_its_own(method: str, path: str) -> None:
    ids = [answered(b"{}", method=method, path=path)[1]["request-id"] for _ in range(2)]
    assert ids[0] != ids[1]
    assert all(re.fullmatch(r"req_[0-9a-z]{24}", identity) for identity in ids)


@pytest.mark.parametrize(
    ("pieces", "more", "line"),
    [
        ([b'{"error": {"message": "no"}}'], {"status": 402}, "error 402 to Claude Code ({}): no"),
        ([b""], {"method": "GET"}, "refused GET /v1/messages ({}): There is no GET"),
        ([RuntimeError("boom")], {}, "an answer was interrupted ({}): RuntimeError: boom"),
        (
            [event(START), b'event: error\ndata: {"error": {"message": "cut"}}\n\n'],
            {"kind": STREAM_TYPE},
            "error in the middle of an answer ({}): cut",
        ),
        ([event(START), RuntimeError("x")], {"kind": STREAM_TYPE}, "an answer was interrupted ({}): RuntimeError: x"),
    ],
)
def test_an_error_has_its_id_in_the_body_and_in_the_log(
    capsys: pytest.CaptureFixture[str], pieces: list[Any], more: dict[str, Any], line: str
) -> None:
    _, headers, body = answered(*pieces, **more)
    told = json.loads(body.rpartition(b"data: ")[2])
    assert told.keys() == {"type", "error", "request_id"}
    assert told["request_id"] == headers["request-id"]
    assert line.format(headers["request-id"]) in capsys.readouterr().out


def test_an_answer_gets_the_id_and_the_counts_that_are_missing() -> None:
    answer = {"id": "chatcmpl-1", "type": "message", "content": [], "usage": {"input_tokens": 5, "output_tokens": 7}}
    status, headers, body = answered(json.dumps(answer)[:20].encode(), json.dumps(answer)[20:].encode())
    found = json.loads(body)
    assert (status, int(headers["content-length"]), "x-litellm-call-id" in headers) == (200, len(body), False)
    assert re.fullmatch(r"msg_[0-9a-f]{24}", found["id"])
    assert found["usage"] == {**ZERO, "input_tokens": 5, "output_tokens": 7}
    assert {**found, "id": 1, "usage": 1} == {**answer, "id": 1, "usage": 1}


WHOLE = {"id": "msg_1", "usage": {**ZERO, "cache_read_input_tokens": 4, "service_tier": "standard"}}


@pytest.mark.parametrize(
    "body", [json.dumps(WHOLE, indent=1).encode(), b"", b"null", b"[1]", b'{"id": 1}', b'{"usage": 5, "id": 1}', b"{"]
)
def test_another_body_stays_as_it_is(body: bytes) -> None:
    assert whole_answer(body) == body
    assert answered(body)[2] == body


@pytest.mark.parametrize("before", [[], [b"event: ping\ndata: {}\n\n"]])
def test_a_stream_starts_with_an_estimate_of_the_prompt(before: list[bytes]) -> None:
    rest = [event({"type": "content_block_start", "index": 0}), event({"type": "message_delta", "usage": ZERO}), b""]
    _, _, body = answered(*before, event(START) + rest[0], *rest[1:], kind=STREAM_TYPE)
    lines = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: ")]
    start, *others = lines[len(before) :]
    assert 10_000 <= start["message"]["usage"].pop("input_tokens") <= 10_050
    assert start["message"]["usage"] == {name: 0 for name in ZERO if name != "input_tokens"}
    assert others == [json.loads(part.partition(b"data: ")[2]) for part in rest if part]


@pytest.mark.parametrize("name", ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"])
def test_a_stream_that_starts_with_numbers_of_cortex_keeps_them(name: str) -> None:
    first = event({"type": "message_start", "message": {"usage": {**ZERO, name: 3}}})
    assert is_start(first)
    assert counted_start(first, lambda: 99) == first
    for odd in (b"event: message_start\ndata: ", b"event: message_start\ndata: {}\n\n", first[:40]):
        assert counted_start(odd, lambda: 99) == odd
