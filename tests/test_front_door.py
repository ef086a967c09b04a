"""The front door by itself: whom it refuses, in which words, and what it writes into the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundle.errors import printable, redact
from bundle.proxy.front_door import (
    LITELLM_ROUTES,
    MODEL_HEADER,
    OWN_ROUTES,
    REFUSALS_A_MINUTE,
    REFUSED_HEADER,
    FrontDoor,
    _told,
    refusal,
)
from bundle.proxy.live_config import Exchange, LiveConfig
from bundle.proxy.replies import ErrorAnswer
from bundle.proxy.server import keep_routes

KEY = "sk-the-key-of-this-proxy-0123456789"
PORT = 8001
GOOD = {
    b"host": b"127.0.0.1:8001",
    b"authorization": f"Bearer {KEY}".encode(),
    b"content-type": b"application/json",
}


def refused(method: str = "POST", path: str = "/v1/messages", **headers: str | None) -> ErrorAnswer | None:
    """What the door answers to a good request with these headers changed (None: left out)."""
    given = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items() if value}
    kept = {name: value for name, value in GOOD.items() if name.decode().replace("-", "_") not in headers}
    return refusal(method, path, {**kept, **given}, key=KEY, port=PORT)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/messages"), ("POST", "/messages/count_tokens"), ("GET", "/models")]
)
def test_a_base_url_that_ends_in_v1_is_named_with_the_right_one(method: str, path: str) -> None:
    found = refused(method, f"/v1/v1{path}")
    assert found is not None
    assert (found.status, found.final) == (400, True)
    assert found.message == "ANTHROPIC_BASE_URL must not end in /v1. Set it to http://127.0.0.1:8001"


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "localhost:8001", "LOCALHOST:8001", "[::1]:8001"])
def test_claude_code_gets_in_under_each_name_of_this_machine(host: str) -> None:
    assert refused(host=host) is None


@pytest.mark.keeps("no-web-page")
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8001",
        "127.0.0.1",
        "127.0.0.1:80",
        "127.0.0.1.evil.example:8001",
        "0.0.0.0:8001",
        "",
    ],
)
def test_another_host_name_is_refused(host: str) -> None:
    for method, path in LITELLM_ROUTES | OWN_ROUTES:
        found = refused(method, path, host=host or None)
        assert found is not None
        assert found.status == 403


@pytest.mark.keeps("no-web-page")
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8001"},  # we serve no page, also on our own port
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_no_web_page_is_answered(headers: dict[str, str]) -> None:
    for method, path in LITELLM_ROUTES | OWN_ROUTES:
        found = refused(method, path, **headers)
        assert found is not None
        assert found.status == 403


@pytest.mark.keeps("no-web-page")
@pytest.mark.parametrize(
    "content", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
)
def test_a_body_that_is_not_json_is_refused(content: str | None) -> None:
    found = refused(content_type=content)
    assert found is not None
    assert found.status == 415
    assert refused(content_type="Application/JSON; charset=utf-8") is None


@pytest.mark.keeps("key-is-needed")
@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": None},
        {"authorization": ""},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer sk-1234"},
        {"authorization": "Bearer sk-ant-oat01-a-login-of-claude-ai"},
        {"authorization": "Bearer \xff\xfe"},
        {"authorization": None, "x_api_key": "wrong"},
    ],
)
def test_a_wrong_or_missing_key_is_401(headers: dict[str, str | None]) -> None:
    for method, path in (("POST", "/v1/messages"), ("GET", "/v1/models")):
        found = refused(method, path, **headers)
        assert found is not None
        assert (found.status, found.kind, found.final) == (401, "authentication_error", True)
        assert KEY not in found.message


def test_the_key_opens_as_bearer_and_as_api_key() -> None:
    assert refused() is None
    assert refused(authorization=f"bearer {KEY}") is None
    assert refused(authorization=None, x_api_key=KEY) is None


@pytest.mark.keeps("few-routes")
@pytest.mark.parametrize(
    "path",
    ["/", "/v1/messages/", "//v1/messages", "/v1/messages/../../key/generate", "/V1/messages", "/v1/messages\x00", "*"],
)
def test_a_path_that_only_looks_like_a_served_one_is_404(path: str) -> None:
    found = refused("POST", path)
    assert found is not None
    assert found.status == 404


@pytest.mark.keeps("log-limit")
def test_the_log_is_not_flooded_by_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    door = FrontDoor(lambda *_: None, key=KEY, port=PORT, config=None)  # type: ignore[arg-type]
    for number in range(1000):
        door._log_refusal(f"refused GET /{number}")
    assert len(capsys.readouterr().out.splitlines()) == REFUSALS_A_MINUTE + 1


@pytest.mark.keeps("log-limit")
def test_what_others_send_cannot_write_lines_into_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    door = FrontDoor(lambda *_: None, key=KEY, port=PORT, config=None)  # type: ignore[arg-type]
    door._log_refusal("refused GET /\nready on\x1b[2J\r\x9b1m eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJBIn0.c2ln" + "x" * 9000)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert "[token]" in line
    assert len(line) <= 500


@pytest.mark.keeps("log-limit")
def test_a_refusal_repeats_little_of_what_was_sent() -> None:
    for found in (refused("GET", "/" + "eyJ" * 20_000), refused(host="evil\x1b[2J" + "x" * 60_000)):
        assert found is not None
        assert found.message.isprintable()
        assert len(found.message) < 200


@pytest.mark.keeps("few-routes")
def test_litellm_itself_keeps_no_other_route_behind_the_door() -> None:
    # This is a second lock: also without the front door, LiteLLM's key management is not reachable.
    class Route:
        def __init__(self, path: str) -> None:
            self.path = path

    class Included:
        def __init__(self, *routes: Any) -> None:
            self.original_router = type("Router", (), {"routes": list(routes)})()

    routes = [Route("/key/generate"), Route("/v1/messages"), Included(Route("/ui")), Included(Route("/v1/messages"))]
    keep_routes(routes, {"/v1/messages"})
    assert [getattr(route, "path", "included") for route in routes] == ["/v1/messages", "included"]


@pytest.mark.keeps("errors-without-tokens")
def test_a_token_that_cortex_itself_puts_into_its_words_is_taken_out() -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJNWU9SRyJ9.c2lnbmF0dXJl"
    assert token not in redact(f"JWT token is invalid: {token}")
    assert token not in printable(f"JWT token is invalid: {token}")


@pytest.mark.keeps("errors-without-tokens")
def test_the_words_about_a_refused_model_are_one_safe_header() -> None:
    config = LiveConfig(Path("/no/such/file"))
    exchange = Exchange(model="claude-opus-4-8", row={"id": "a", "newest": ["claude-opus-5", "claude-opus-4-8"]})
    words = "unknown model\r\nset-cookie: a=b eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJBIn0.c2ln ☃" + "x" * 9000
    config.refused.refuse("claude-opus-5", exchange.row, [], (400, words))
    told = dict(_told(exchange, config))
    assert told[MODEL_HEADER] == b"claude-opus-4-8"
    assert told[REFUSED_HEADER].startswith(b"400 unknown model set-cookie: a=b [token] ?xxx")
    assert len(told[REFUSED_HEADER]) < 600
    assert dict(_told(Exchange(), config)) == {}


def test_who_answers_is_told_in_headers_and_a_refusal_only_while_it_is_remembered() -> None:
    config = LiveConfig(Path("/no/such/file"))
    info = {"id": "x", "newest": ["claude-opus-5", "claude-opus-4-8"]}
    exchange = Exchange(model="claude-opus-4-8", row=info)
    assert _told(exchange, config) == [(MODEL_HEADER, b"claude-opus-4-8")], "forgotten while the answer came"
    config.refused.refuse("claude-opus-5", info, [], (400, "unknown model"))
    assert _told(exchange, config)[1] == (REFUSED_HEADER, b"400 unknown model")
    config.refused.refuse("claude-opus-5", info, [], (400, "\n "))
    assert _told(exchange, config)[1] == (REFUSED_HEADER, b"400"), "a header must not end with a space"
