"""The Messages route: a row with `snowflake/` in place of `openai/`.

The real LiteLLM runs against the strict stand-in, and some tests run the real Claude Code. The proxy is the one of the
other tests, with an edited template. The first promise here is that it follows the edit.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bundle.files import write_private
from bundle.settings import load_settings
from bundle.tokens import sign
from tests import cortex_messages_rules
from tests.claude_home import on_messages_route
from tests.cortex_rules import JSON
from tests.cortex_stub import FAULTS, MESSAGES
from tests.messages import MARK, TOOL, body, said, says, text, thought, user
from tests.set_up import SetUp, events

pytestmark = pytest.mark.real


def to_snowflake(template: str) -> str:
    """The edit of a user who wants every Claude model on the second route, and a row for which that is impossible."""
    changed = on_messages_route(template)
    row = "  - model_name: mistaken\n    litellm_params: { <<: *cortex, model: snowflake/llama4-maverick }\n"
    return changed.replace("litellm_settings:", f"{row}    model_info: {{ <<: *info }}\n\nlitellm_settings:", 1)


@pytest.fixture(scope="module")
def route(running: SetUp) -> Iterator[SetUp]:
    with running.template(to_snowflake):
        yield running


def newest(route: SetUp, since: int = 0) -> list[JSON]:
    """The requests that Cortex got, from number `since` on, without the refresher's question for models."""
    return [record for record in route.stub.requests if record["route"] != "sql"][since:]


def test_the_running_proxy_follows_an_edited_row_to_the_other_route(route: SetUp) -> None:
    answer = route.ask("[[text: hello]]", system=[text("a " * 5000, cache_control=MARK)])
    assert answer.json()["content"] == [text("hello")]
    asked = newest(route)[-1]
    assert asked["path"] == MESSAGES
    assert asked["headers"]["x-snowflake-authorization-token-type"] == "KEYPAIR_JWT"
    assert "x-api-key" not in asked["headers"]
    assert route.master_key not in json.dumps(asked)


@pytest.mark.parametrize("stream", [True, False])
def test_usage_comes_through_whole(route: SetUp, stream: bool) -> None:
    first = [text(f"{stream} " + "b " * 5000, cache_control=MARK)]
    charged, answer = {}, httpx.Response(500)
    for _ in range(2):
        answer = route.ask("[[text: counted]]", system=first, stream=stream)
        charged = newest(route)[-1]["usage"]
        usage = events(answer)[-2]["usage"] if stream else answer.json()["usage"]
        assert {
            "input": usage["input_tokens"],
            "cache_write": usage["cache_creation_input_tokens"],
            "cache_read": usage["cache_read_input_tokens"],
            "output": usage["output_tokens"],
        } == charged
    assert charged["cache_read"] > 2000
    if stream:
        assert events(answer)[0]["message"]["usage"]["cache_read_input_tokens"] == charged["cache_read"]


def test_an_unheard_of_body_is_answered_and_what_was_dropped_is_said_once(route: SetUp) -> None:
    asked = body(
        user(text("hi", novelty=1), {"type": "container_upload", "file_id": "f"}),
        tools=[{**TOOL, "novelty": True}],
        novelty={"a": 1},
        metadata={"user_id": "of this machine"},
        cache_control=MARK,
        thinking={"type": "adaptive", "novelty": 1},
    )
    for _ in range(2):
        answer = route.post(asked, **{"anthropic-beta": "novelty-2027-01-01,claude-code-20250219"})
        assert answer.status_code == 200, answer.text
    assert "metadata" not in newest(route)[-1]["body"]
    log = route.log("claude_proxy.py")
    for line in ("field novelty", "tool field novelty", "beta novelty-2027-01-01"):
        assert log.count(f"adapted for Cortex: {line} dropped") == 1


def test_a_row_for_a_model_that_this_api_does_not_have_says_what_to_write(route: SetUp) -> None:
    answer = route.ask("hi", model="mistaken")
    assert answer.status_code == 400
    assert "openai/llama4-maverick" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_a_new_token_is_taken_on_the_next_request_and_open_streams_go_on(route: SetUp) -> None:
    before = len(newest(route))
    with httpx.Client(trust_env=False, timeout=30) as client:
        asked = {**body(user(text("[[hold: 4]] [[stream: 20]]"))), "stream": True}
        headers = {"Authorization": f"Bearer {route.master_key}"}
        with client.stream("POST", route.url + "/v1/messages", json=asked, headers=headers) as answer:
            held = route.stub.wait_for(lambda record: record["number"] >= before and record.get("held"))
            settings = load_settings(route.environ)
            token = sign(settings, time.time() - 10).value
            config = route.config.read_text()
            old = next(line for line in config.splitlines() if "api_key: eyJ" in line).split()[-1]
            write_private(route.config, config.replace(old, token))
            assert route.ask("[[text: next]]").status_code == 200
            route.stub.release()
            whole = answer.read().decode()
    assert "message_stop" in whole
    assert held["token_id"] != newest(route)[-1]["token_id"]
    assert newest(route)[-1]["iat"] < held["iat"]


def test_a_refused_token_is_replaced_on_the_next_request(route: SetUp) -> None:
    assert route.ask("hi").status_code == 200
    first = newest(route)[-1]["token_id"]
    route.stub.fault("bad_token", times=1, route="messages")
    assert route.ask("hi").status_code == 401
    assert route.ask("hi").status_code == 200
    assert newest(route)[-1]["token_id"] != first


REMEDY = {
    "throttled": (429, "busy"),
    "not_in_region": (400, "CORTEX_ENABLED_CROSS_REGION"),
    "bad_token": (401, "auto_refresh.py --public-key"),
    "budget": (402, "administrator"),
    "no_role": (403, "GRANT DATABASE ROLE"),
    "trial": (403, "Trial accounts"),
    "network_policy": (403, "NETWORK POLICY"),
    "model_not_allowed": (403, "CORTEX_MODELS_ALLOWLIST"),
    "too_many": (429, "limits how much"),
    "internal": (500, "/compact"),
    "inference_timeout": (503, "too long"),
}


@pytest.mark.parametrize(
    ("fault", "stream"), [*((fault, True) for fault in REMEDY), ("throttled", False), ("bad_token", False)]
)
def test_each_error_of_cortex_comes_with_its_remedy_as_on_the_chat_route(
    route: SetUp, fault: str, stream: bool
) -> None:
    assert route.ask("hi").status_code == 200  # Cortex takes this token, so a 401 may pass
    before = len(newest(route))
    route.stub.fault(fault, times=1, route="messages")
    answer = route.ask("hi", stream=stream)
    status, words = REMEDY[fault]
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert FAULTS[fault][1]["message"].partition("{")[0] in answer.json()["error"]["message"]
    assert words in answer.json()["error"]["message"]
    if status != 401:  # (final only if the token before was refused too)
        assert ("x-should-retry" in answer.headers) == (status in {400, 402, 403})
    assert len(newest(route)) == before + 1


@pytest.mark.parametrize(
    ("fault", "settings", "stream"),
    [
        ("cut", {"after": 0}, True),
        ("cut", {"after": 4}, True),
        ("cut", {"after": 4, "clean": True}, True),
        ("cut", {}, False),
        ("broken_sse", {"after": 4}, True),
        *((fault, {}, stream) for fault in ("html", "broken_json", "drop") for stream in (True, False)),
    ],
)
def test_an_answer_that_is_not_whole_never_looks_complete(
    route: SetUp, fault: str, settings: JSON, stream: bool
) -> None:
    route.stub.fault(fault, times=1, route="messages", **settings)
    answer = route.ask("[[stream: 30]]", stream=stream)
    if answer.status_code == 200:
        kinds = [event["type"] for event in events(answer)]
        assert kinds[-1] == "error"
        assert "message_stop" not in kinds
    else:
        assert answer.status_code == 502
        assert answer.json()["type"] == "error"
        assert "x-should-retry" not in answer.headers


def test_a_client_that_goes_away_ends_the_call_to_cortex(route: SetUp) -> None:
    before = len(newest(route))
    with httpx.Client(trust_env=False, timeout=30) as client:
        asked = {**body(user(text("[[stream: 400 0.05]]"))), "stream": True}
        headers = {"Authorization": f"Bearer {route.master_key}"}
        with client.stream("POST", route.url + "/v1/messages", json=asked, headers=headers) as answer:
            next(answer.iter_bytes())
    route.stub.wait_for(lambda record: record["number"] >= before and record.get("aborted"), 5)


def test_a_session_goes_on_when_cortex_does_not_take_its_signatures(route: SetUp) -> None:
    asked = body(
        user(text("go")),
        says({**thought("hm"), "signature": "of another account"}, text("ok")),
        user(text("[[text: on]]")),
    )
    assert route.post(asked).json()["content"] == [text("on")]
    assert "thinking" not in said(newest(route)[-1]["body"])
    asked["messages"][-1] = user(text("[[error: drop]] [[text: on]]"))
    assert "broke off" in route.post(asked).json()["error"]["message"]  # what the second try says


def tools(*names: str) -> str:
    calls = " ; ".join(f'Bash {{"command": "echo {name}"}}' for name in names)
    return f"[[tools: {calls}]]"


@pytest.mark.parametrize("model", ["claude-sonnet-4-6", "claude-sonnet-4-5"], ids=["adaptive", "with a budget"])
def test_parallel_tools_pictures_and_thinking_in_one_session(route: SetUp, tmp_path: Path, model: str) -> None:
    before = len(newest(route))
    picture = tmp_path / "dot.png"
    picture.write_bytes(base64.b64decode(A_PIXEL))
    session = " ".join(
        [
            f"[[thinking: two]] {tools('one', 'two')}",
            f"[[thinking: three]] {tools('three', 'four', 'five')}",
            f"[[thinking: five]] {tools('a', 'b', 'c', 'd', 'e')}",
            f'[[tools: Read {{"file_path": "{picture}"}}]]',
            "[[thinking: done]] [[text: all done]]",
        ]
    )
    done = route.claude(session, "--model", model, "--allowedTools", "Bash,Read")
    assert done["result"] == "all done"
    asked = [record for record in newest(route, before) if record["body"].get("tools")]
    assert [record["status"] for record in asked] == [200] * 5
    assert {record["path"] for record in asked} == {MESSAGES}

    last = asked[-1]["body"]
    kinds = [[block["type"] for block in message["content"]] for message in last["messages"]]
    assert [kind for kind in kinds if "tool_use" in kind] == [
        ["thinking", "tool_use", "tool_use"],
        ["thinking", *["tool_use"] * 3],
        ["thinking", *["tool_use"] * 5],
        ["thinking", "tool_use"],
    ]
    assert [kind.count("tool_result") for kind in kinds if "tool_result" in kind] == [2, 3, 5, 1]
    thoughts = [block for message in last["messages"] for block in message["content"] if block["type"] == "thinking"]
    assert thoughts[0] == thought("two")
    assert last["thinking"]["type"] == ("adaptive" if model == "claude-sonnet-4-6" else "enabled")

    results: list[JSON] = []
    for record in asked[1:]:  # the newest result is always marked, whichever of the parallel results it is
        results = [block for block in record["body"]["messages"][-1]["content"] if block["type"] == "tool_result"]
        assert ["cache_control" in block for block in results] == [*[False] * (len(results) - 1), True]
    assert [block["type"] for block in results[-1]["content"]].count("image") == 1
    assert all(record["usage"]["cache_read"] > 10_000 for record in asked[1:])
    usage = done["usage"]
    for name, key in (
        ("input", "input_tokens"),
        ("cache_read", "cache_read_input_tokens"),
        ("output", "output_tokens"),
    ):
        assert usage[key] == sum(record["usage"][name] for record in asked)


A_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


def test_claude_code_repeats_a_turn_that_was_cut(route: SetUp) -> None:
    for clean in (False, True):
        route.stub.fault("cut", times=1, main=True, route="messages", after=4, clean=clean)
        done = route.claude(f"[[stream: 30]] clean={clean}")
        assert done["result"].split() == [f"w{number}" for number in range(30)]


def test_what_cortex_refuses_costs_one_retry_that_nobody_sees_and_is_remembered(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This needs a set-up of its own, because its proxy remembers these refusals until it ends."""
    monkeypatch.setattr(cortex_messages_rules, "TOP", cortex_messages_rules.TOP - {"top_k", "thinking"})
    monkeypatch.setattr(cortex_messages_rules, "BETAS", frozenset[str]())
    set_up.start("auto_refresh.py")
    set_up.start_proxy()
    asked: JSON = {"top_k": 3, "output_config": {"effort": "low"}, "model": "claude-opus-4-6"}
    with set_up.template(to_snowflake):
        answers = [set_up.ask("hi", **asked) for _ in range(4)]
        done = set_up.claude("[[text: through]]", "--model", "claude-sonnet-4-6")
    assert [answer.status_code for answer in answers] == [503, 503, 200, 200]
    assert "beta effort-2025-11-24" in answers[0].json()["error"]["message"]
    assert "field top_k" in answers[1].json()["error"]["message"]
    assert all("x-should-retry" not in answer.headers for answer in answers)
    assert done["result"] == "through"
    assert [record["status"] for record in newest(set_up, 4)] == [400, 200]
    assert set_up.log("claude_proxy.py").count("Cortex refused") == 3
