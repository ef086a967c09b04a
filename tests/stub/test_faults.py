"""Each fault that a test can switch on: the errors of Cortex, connections that break, and a port that closes."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.cortex_stub import CHAT, FAULTS, MESSAGES, CortexStub
from tests.stub.sending import CLAUDE, GPT, chat, events, native, post, tool

STATUSES = {
    "throttled": (400, "all requests were throttled by remote service"),
    "bad_token": (401, "JWT token is invalid. ["),
    "budget": (402, "budget exceeded"),
    "no_role": (403, "Not Authorized"),
    "trial": (403, "This account is not allowed to access this endpoint. Please contact Snowflake support."),
    "network_policy": (403, "is not allowed to access Snowflake"),
    "model_not_allowed": (403, f"Model {CLAUDE} not allowed"),
    "too_many": (429, "too many requests"),
    "internal": (500, "internal error"),
    "inference_timeout": (503, "inference timed out"),
    "not_in_region": (400, f"model {CLAUDE} is not available"),
    "expired_token": (401, "expired"),
    "wrong_token_type": (401, "OAuth"),
    "pat_invalid": (401, "Programmatic access token is invalid."),
    "pat_expired": (401, "expired"),
    "pat_disabled": (401, "disabled"),
    "pat_no_policy": (401, "Network policy is required."),
    "goaway": (503, "GOAWAY"),
    "goaway_200": (200, "GOAWAY"),
    "session_token": (200, "expired"),
    "unprocessable": (422, "invalid request parameters"),
    "too_long": (400, "max tokens of 200000 exceeded"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_status_of_the_contract_is_a_switch(stub: CortexStub, name: str) -> None:
    status, words = STATUSES[name]
    stub.fault(name, times=1)
    response = post(stub, CHAT, chat(stream=True))
    assert response.status_code == status
    assert words in response.json()["message"]
    assert response.json()["request_id"]
    assert not {"retry-after", "x-ratelimit-remaining"} & set(response.headers)
    assert post(stub, CHAT, chat(stream=True)).status_code == 200


def test_a_fault_lasts_until_it_is_cleared_and_keeps_to_its_route(stub: CortexStub) -> None:
    stub.fault("internal", route="messages")
    assert [post(stub, MESSAGES, native()).status_code for _ in range(3)] == [500, 500, 500]
    assert post(stub, CHAT, chat()).status_code == 200
    stub.clear_faults()
    assert post(stub, MESSAGES, native()).status_code == 200
    stub.fault("internal", main=True)
    assert post(stub, CHAT, chat()).status_code == 200
    assert post(stub, CHAT, chat(tools=[tool()])).status_code == 500
    with pytest.raises(ValueError, match="no fault 'nonsense'"):
        stub.fault("nonsense")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_cut_stream_has_no_terminal_event(stub: CortexStub, path: str) -> None:
    body = {**(chat if path == CHAT else native)("[[stream: 20]]"), "stream": True}
    stub.fault("cut", times=1, after=4, clean=True)
    text = post(stub, path, body).text
    assert text.count("data: ") == 4
    assert "[DONE]" not in text
    assert "message_stop" not in text
    stub.fault("cut", times=1, after=4)
    with pytest.raises(httpx.RemoteProtocolError):
        post(stub, path, body)
    assert stub.wait_for(lambda record: record.get("aborted") and record["done"])
    stub.fault("cut", times=1)
    with pytest.raises(httpx.RemoteProtocolError):
        post(stub, path, {**body, "stream": False})


def test_the_wire_breaks_in_each_way(stub: CortexStub) -> None:
    stub.fault("drop", times=1)
    with pytest.raises(httpx.HTTPError):
        post(stub, CHAT, chat())
    stub.fault("html", times=1)
    page = post(stub, CHAT, chat())
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/html")
    stub.fault("broken_json", times=1)
    with pytest.raises(json.JSONDecodeError):
        post(stub, CHAT, chat()).json()
    stub.fault("broken_sse", times=1, after=1)
    with pytest.raises(json.JSONDecodeError):
        events(post(stub, CHAT, chat(stream=True)))
    for name in ("slow_start", "slow_chunks"):
        stub.fault(name, times=1, seconds=0.01)
        assert post(stub, CHAT, chat(stream=True)).status_code == 200
        assert stub.requests[-1]["fault"] == name


def test_a_closed_port_refuses_and_opens_again(stub: CortexStub) -> None:
    with httpx.Client() as client:
        client.get(stub.url)
        stub.close_port()
        for url in (stub.url, stub.url):
            with pytest.raises(httpx.ConnectError):
                client.get(url)
        stub.open_port()
        assert client.get(stub.url).status_code == 404


def test_a_model_can_be_missing_in_the_region(stub: CortexStub) -> None:
    stub.missing_models = frozenset({CLAUDE})
    assert post(stub, CHAT, chat()).status_code == 400
    assert post(stub, CHAT, chat(model=GPT)).status_code == 200


def test_an_answer_without_content_and_an_odd_stream_are_faults(stub: CortexStub) -> None:
    stub.fault("done_only", times=2, route="chat")
    assert post(stub, CHAT, chat(stream=True)).text == "data: [DONE]\n\n"
    assert post(stub, CHAT, chat()).json()["choices"][0]["message"]["content"] == ""
    stub.fault("done_only", times=1, route="messages")
    assert "content_block_delta" not in post(stub, MESSAGES, native(stream=True)).text
    stub.fault("odd_sse", times=1)
    odd = post(stub, CHAT, chat(stream=True)).text
    assert odd.startswith(": keep-alive\n\nevent: ping\n\ndata:\n\ndata: {")
    assert odd.endswith("data: [DONE]")
