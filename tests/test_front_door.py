"""Nobody else gets in: what the proxy refuses, to whom, in which words, and what nobody ever reads anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.files import write_private
from bundle.proxy.front_door import (
    LITELLM_ROUTES,
    MAX_BODY_BYTES,
    OWN_ROUTES,
    REFUSALS_A_MINUTE,
    ErrorAnswer,
    FrontDoor,
    printable,
    redact,
    refusal,
)
from bundle.proxy.server import keep_routes
from bundle.settings import load_settings
from tests.conftest import BUNDLE, CLAUDE, TOKEN, SetUp, copy_bundle

KEY = "sk-the-key-of-this-proxy-0123456789"
PORT = 8001
GOOD = {
    b"host": b"127.0.0.1:8001",
    b"authorization": f"Bearer {KEY}".encode(),
    b"content-type": b"application/json",
}


def refused(method: str = "POST", path: str = "/v1/messages", **headers: str | None) -> ErrorAnswer | None:
    """The refusal of a good request with other headers (None: without)."""
    given = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items() if value}
    kept = {name: value for name, value in GOOD.items() if name.decode().replace("-", "_") not in headers}
    return refusal(method, path, {**kept, **given}, key=KEY, port=PORT)


# --------------------------------------------------------------------------------------------------- pure: who may pass


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "localhost:8001", "LOCALHOST:8001", "[::1]:8001"])
def test_claude_code_gets_in_under_each_name_of_this_machine(host: str) -> None:
    assert refused(host=host) is None


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
@pytest.mark.parametrize(("method", "path"), sorted(LITELLM_ROUTES | OWN_ROUTES))
def test_nothing_is_served_under_a_foreign_name(host: str, method: str, path: str) -> None:
    found = refused(method, path, host=host or None)
    assert found is not None
    assert found.status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8001"},  # a page can be served on no port of ours
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "same-site"},
    ],
)
@pytest.mark.parametrize(("method", "path"), sorted(LITELLM_ROUTES | OWN_ROUTES))
def test_no_web_page_is_answered(headers: dict[str, str], method: str, path: str) -> None:
    found = refused(method, path, **headers)
    assert found is not None
    assert found.status == 403


@pytest.mark.parametrize(
    "content", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
)
def test_what_a_page_may_post_without_asking_is_refused(content: str | None) -> None:
    found = refused(content_type=content)
    assert found is not None
    assert found.status == 415
    assert refused(content_type="Application/JSON; charset=utf-8") is None


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
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/messages"), ("GET", "/v1/models")])
def test_a_wrong_or_missing_key_is_401(headers: dict[str, str | None], method: str, path: str) -> None:
    found = refused(method, path, **headers)
    assert found is not None
    assert (found.status, found.kind, found.final) == (401, "authentication_error", True)
    assert KEY not in found.message


def test_the_key_opens_as_bearer_and_as_api_key() -> None:
    assert refused() is None
    assert refused(authorization=f"bearer {KEY}") is None
    assert refused(authorization=None, x_api_key=KEY) is None


@pytest.mark.parametrize(
    "path",
    ["/", "/v1/messages/", "//v1/messages", "/v1/messages/../../key/generate", "/V1/messages", "/v1/messages\x00", "*"],
)
def test_a_path_that_only_looks_like_a_served_one_is_404(path: str) -> None:
    found = refused("POST", path)
    assert found is not None
    assert found.status == 404


def test_the_log_is_not_flooded_by_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    door = FrontDoor(lambda *_: None, key=KEY, port=PORT, config=None)  # type: ignore[arg-type]
    for number in range(1000):
        door._say_refused(f"refused GET /{number}")
    assert len(capsys.readouterr().out.splitlines()) == REFUSALS_A_MINUTE + 1


def test_what_others_send_cannot_write_lines_into_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    door = FrontDoor(lambda *_: None, key=KEY, port=PORT, config=None)  # type: ignore[arg-type]
    door._say_refused("refused GET /\nready on\x1b[2J\r\x9b1m eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJBIn0.c2ln" + "x" * 9000)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert "[token]" in line
    assert len(line) <= 500


# --------------------------------------------------------------------------------------------------- over the real port


def exchange(set_up: SetUp, *lines: str, body: bytes = b"", seconds: float = 5) -> bytes:
    """The bytes that come back for a request written by hand."""
    with socket.create_connection(("127.0.0.1", set_up.port), timeout=seconds) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        received = b""
        with contextlib.suppress(TimeoutError):
            while piece := connection.recv(65536):
                received += piece
        return received


def send(set_up: SetUp, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {set_up.master_key}", **more.pop("headers", {})}
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.request(method, set_up.url + path, headers=headers, **more)


def test_it_listens_on_loopback_only_whatever_host_says(running: SetUp) -> None:
    # `running` is what it is; HOST is tried where the socket is made, because LiteLLM reads it as it starts to listen.
    addresses = set()
    with contextlib.suppress(OSError):  # this machine's name may lead nowhere
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1", "127.0.1.1"}:
        with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
            socket.create_connection((address, running.port), timeout=2).close()
    listening = Path("/proc/net/tcp")
    if listening.exists():
        lines = listening.read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
        bound = [line.split()[1] for line in lines if line.split()[3] == "0A"]
        assert [host for host, _, port in (b.partition(":") for b in bound) if int(port, 16) == running.port] == [
            "0100007F"
        ]


def test_a_page_s_preflight_gets_no_permission(running: SetUp) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = send(running, "OPTIONS", "/v1/messages", headers=asked)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("status", "headers", "more"),
    [
        (401, {"Authorization": "Bearer wrong"}, {"json": {}}),
        (401, {"Authorization": ""}, {"json": {}}),
        (403, {"Host": "evil.example"}, {"json": {}}),
        (403, {"Origin": "https://evil.example"}, {"json": {}}),
        (415, {"Content-Type": "text/plain"}, {"content": b"{}"}),
        (400, {"Content-Type": "application/json"}, {"content": b"[" * 100_000}),
        (400, {"Content-Type": "application/json"}, {"content": b"null"}),
        (400, {"Content-Type": "application/json"}, {"content": b""}),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_a_refusal_is_in_anthropic_s_shape_is_final_and_reaches_nobody(
    running: SetUp, path: str, status: int, headers: dict[str, str], more: dict[str, Any]
) -> None:
    before = len(running.stub.requests)
    answer = send(running, "POST", path, headers=headers, **more)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-should-retry"] == "false"
    body = answer.json()
    assert set(body) == {"type", "error"}
    assert (body["type"], set(body["error"])) == ("error", {"type", "message"})
    assert running.master_key not in answer.text
    assert len(running.stub.requests) == before


def test_claude_code_shows_the_refusal_of_a_wrong_key_at_once(running: SetUp) -> None:
    start = time.monotonic()
    done = running.run(
        str(CLAUDE), "-p", "hello", seconds=60, **{**running.claude_env(), "ANTHROPIC_AUTH_TOKEN": "sk-wrong"}
    )
    assert "The key does not match this proxy's" in done.stdout
    assert time.monotonic() - start < 30


def test_a_websocket_is_closed_before_it_opens(running: SetUp) -> None:
    for path in ("/v1/messages", "/v1/realtime", "/"):
        answer = exchange(
            running,
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{running.port}",
            f"Authorization: Bearer {running.master_key}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        assert answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 404"))


@pytest.mark.parametrize(
    "lines",
    [
        ["GET /v1/models HTTP/1.1", "Host: 127.0.0.1:{port}", "Host: evil.example"],
        ["GET http://evil.example/v1/models HTTP/1.1", "Host: 127.0.0.1:{port}"],
        ["GET /v1/models HTTP/1.0"],
        ["CONNECT evil.example:443 HTTP/1.1", "Host: 127.0.0.1:{port}"],
        ["TRACE /v1/models HTTP/1.1", "Host: 127.0.0.1:{port}"],
        ["PRI * HTTP/2.0", "", "SM"],
    ],
)
def test_a_strange_request_is_refused_even_with_the_key(running: SetUp, lines: list[str]) -> None:
    head = [line.format(port=running.port) for line in lines]
    answer = exchange(running, *head, f"Authorization: Bearer {running.master_key}", "Connection: close", seconds=2)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert b'"data"' not in answer


SHOW_ROUTES = """
import json, os
from bundle.proxy.server import LITELLM_ENVIRONMENT
os.environ.update(LITELLM_ENVIRONMENT)
from litellm.proxy.proxy_server import app
from litellm.proxy._lazy_features import LAZY_FEATURES
def found(routes):
    for route in routes:
        yield from found(getattr(getattr(route, "original_router", None), "routes", None) or [])
        if getattr(route, "path", None) is not None:
            yield route.path, sorted(getattr(route, "methods", None) or [])
# What is imported at the first request of its kind only.
lazy = [(path, []) for feature in LAZY_FEATURES for path in (*feature.path_prefixes, *feature.path_suffixes)]
print("ROUTES" + json.dumps([*found(app.router.routes), *lazy]))
"""


@pytest.fixture(scope="module")
def litellm_routes() -> list[tuple[str, list[str]]]:
    """All routes of LiteLLM's own application, as it is installed."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW_ROUTES], cwd=BUNDLE, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    routes: list[tuple[str, list[str]]] = json.loads(done.stdout.rpartition("ROUTES")[2])
    return routes


def test_no_other_route_of_litellm_is_served_not_even_with_the_key(
    running: SetUp, litellm_routes: list[tuple[str, list[str]]]
) -> None:
    paths = {path for path, _ in litellm_routes}
    assert {"/key/generate", "/model/new", "/health", "/chat/completions", "/v1/messages"} <= paths
    assert len(paths) > 300
    before = len(running.stub.requests)
    served = set()
    headers = {"Authorization": f"Bearer {running.master_key}"}
    with httpx.Client(trust_env=False, timeout=30, headers=headers, base_url=running.url) as client:
        for path, methods in litellm_routes:
            for method in sorted({*methods, "GET", "POST"}):
                answer = client.request(method, re.sub(r"\{[^}]*\}", "x", path), json={} if method == "POST" else None)
                if answer.status_code != 404:
                    served.add((method, path))
    # Which of our own paths LiteLLM has as well differs between its releases.
    assert served == {(method, path) for method, path in LITELLM_ROUTES | OWN_ROUTES if path in paths - {"/"}}
    assert served >= LITELLM_ROUTES
    assert len(running.stub.requests) == before


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/ui", "/ui/", "/fallback/login", "/metrics"])
def test_no_page_for_a_browser_is_served(running: SetUp, path: str) -> None:
    assert send(running, "GET", path).status_code == 404


def test_litellm_itself_keeps_no_other_route_behind_the_door() -> None:
    # Two locks: were the door open, LiteLLM's key management would still not be there.
    class Route:
        def __init__(self, path: str) -> None:
            self.path = path

    class Included:
        def __init__(self, *routes: Any) -> None:
            self.original_router = type("Router", (), {"routes": list(routes)})()

    routes = [Route("/key/generate"), Route("/v1/messages"), Included(Route("/ui")), Included(Route("/v1/messages"))]
    keep_routes(routes, {"/v1/messages"})
    assert [getattr(route, "path", "included") for route in routes] == ["/v1/messages", "included"]


# ------------------------------------------------------------------------------------------------------------- bounded

OVER = MAX_BODY_BYTES + 1


def pieces(size: int) -> Iterator[bytes]:
    yield b'{"messages":"'
    for _ in range(size // 65536 + 1):
        yield b"a" * 65536
    yield b'"}'


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_more_than_20_mib_is_refused_in_words(running: SetUp, announced: bool) -> None:
    content: Any = b"".join(pieces(OVER)) if announced else pieces(OVER)
    answer = send(running, "POST", "/v1/messages", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "request_too_large"
    assert "/compact" in answer.json()["error"]["message"]


def test_without_the_key_not_a_byte_of_the_body_is_read(running: SetUp) -> None:
    head = [
        "POST /v1/messages HTTP/1.1",
        f"Host: 127.0.0.1:{running.port}",
        "Content-Type: application/json",
        "Content-Length: 1000000",
    ]
    assert exchange(running, *head, seconds=2).startswith(b"HTTP/1.1 401")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_bodies_that_are_refused_leave_no_memory_behind(running: SetUp) -> None:
    pid = running.processes["claude_proxy.py"].pid

    def resident() -> int:
        return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) // 1024

    send(running, "POST", "/v1/messages", content=pieces(OVER), headers={"Content-Type": "application/json"})
    before = resident()
    for _ in range(8):
        send(running, "POST", "/v1/messages", content=pieces(OVER), headers={"Content-Type": "application/json"})
    assert resident() - before < 40


# ------------------------------------------------------------------------------------------------------------- secrets


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetUp]:
    """Both processes under umask 0, every logger of theirs at its lowest level, and an hour of trouble behind them."""
    folder = tmp_path_factory.mktemp("loud")
    made = SetUp(folder, bundle=copy_bundle(folder / "bundle"))
    (folder / "loud").mkdir()
    (folder / "loud" / "sitecustomize.py").write_text(
        "import logging\n"
        "logging.basicConfig(level=1)\n"
        "logging.Logger.setLevel = logging.Handler.setLevel = lambda self, level: setattr(self, 'level', 1)\n"
        "logging.Logger.getEffectiveLevel = lambda self: 1\n"
        "logging.Logger.isEnabledFor = lambda self, level: True\n"
    )
    made.environ |= {
        "PYTHONPATH": str(folder / "loud"),
        "LITELLM_LOG": "DEBUG",
        "OPENAI_LOG": "debug",
        "HOST": "0.0.0.0",  # noqa: S104 - LiteLLM would obey it
    }
    template = made.bundle / "litellm_config.template.yaml"
    template.write_text(template.read_text().replace("  drop_params: true", "  drop_params: true\n  set_verbose: true"))
    made.before_exec = open_umask
    try:
        made.start("auto_refresh.py")
        made.start_proxy()
        for fault in (None, "bad_token", "html", "broken_json", "internal", "drop", "no_role"):
            if fault:
                made.stub.fault(fault)
            made.ask("hello")
            made.ask("hello", stream=True)
            made.stub.clear_faults()
        made.ask("hello", model="gpt-nobody-knows")
        made.stub.close_port()
        made.ask("hello")
        made.stub.open_port()
        yield made
    finally:
        made.close()


def open_umask() -> None:
    os.umask(0)


@pytest.mark.real
@pytest.mark.parametrize(
    "more",
    [
        {"api_base": "http://127.0.0.1:1"},
        {"base_url": "http://127.0.0.1:1"},
        {"metadata": {"api_base": "http://127.0.0.1:1"}},
        {"fallbacks": [{"model": "claude-haiku-4-5", "api_base": "http://127.0.0.1:1"}]},
        {"model_list": []},
        {"user_config": {"model_list": []}},
    ],
)
def test_a_body_cannot_send_the_token_to_another_server(running: SetUp, more: dict[str, Any]) -> None:
    before = len(running.stub.requests)
    answer = running.ask("hello", **more)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "not allowed in" in answer.json()["error"]["message"]
    assert len(running.stub.requests) == before


@pytest.mark.real
@pytest.mark.parametrize("stream", [True, False])
def test_esc_before_the_first_word_is_no_error(running: SetUp, stream: bool) -> None:
    log, before = len(running.log("claude_proxy.py")), len(running.stub.requests)
    running.stub.fault("slow_start", times=1, seconds=2)
    asked = {"model": "claude-sonnet-4-5", "max_tokens": 9, "stream": stream}
    asked["messages"] = [{"role": "user", "content": "hello"}]
    headers = {"Authorization": f"Bearer {running.master_key}"}
    with httpx.Client(trust_env=False, timeout=1) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{running.url}/v1/messages", json=asked, headers=headers)
    running.stub.wait_for(lambda record: record["number"] >= before and record.get("done"), 10)
    assert running.ask("are you well?").status_code == 200
    assert running.log("claude_proxy.py")[log:] == ""


@pytest.mark.real
def test_no_token_and_no_key_is_in_a_log_at_any_log_level(loud: SetUp) -> None:
    said = loud.log("claude_proxy.py") + loud.log("auto_refresh.py")
    assert len(said) > 100_000, "the loggers were not loud"
    assert not TOKEN.search(said)
    assert loud.master_key not in said
    token = load_settings(loud.environ).config_path.read_text().partition("api_key: ")[2].split()[0]
    assert TOKEN.fullmatch(token)
    assert not [part for part in token.split(".") if part in said]


@pytest.mark.real
def test_no_file_with_a_secret_is_readable_by_others_under_umask_0(loud: SetUp) -> None:
    secret = re.compile(rb"eyJ[\w-]+\.eyJ|PRIVATE KEY|" + re.escape(loud.master_key.encode()))
    with_secret = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in loud.folder.rglob("*")
        if path.is_file() and "bundle" not in path.parts and secret.search(path.read_bytes())
    }
    assert with_secret == dict.fromkeys(["litellm_config.yaml", ".master_key", "snowflake_key.p8"], 0o600)
    for name in (".refresher.json", ".refresher.lock"):
        assert stat.S_IMODE((loud.folder / name).stat().st_mode) == 0o600


@pytest.mark.real
def test_host_in_the_environment_opens_the_port_to_nobody(loud: SetUp) -> None:
    test_it_listens_on_loopback_only_whatever_host_says(loud)


@pytest.mark.real
def test_no_token_is_in_the_status_or_in_ps(loud: SetUp) -> None:
    shown = subprocess.run(["ps", "-Aww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    status = loud.run("auto_refresh.py", "--status").stdout + loud.run("auto_refresh.py", "--status", "--json").stdout
    for text in (shown, status):
        assert not TOKEN.search(text)
        assert loud.master_key not in text


def test_a_temporary_file_is_private_from_its_first_byte_under_umask_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}
    real_fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.update({path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()})
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    old = os.umask(0)
    try:
        write_private(tmp_path / "secret", "a token")
    finally:
        os.umask(old)
    assert any(name.endswith(".tmp") for name in seen)
    assert set(seen.values()) == {0o600}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["bad_token", "html", "broken_json", "internal", "drop", "cut"])
def test_no_token_is_in_the_body_of_an_error(running: SetUp, fault: str, stream: bool) -> None:
    running.stub.fault(fault)
    try:
        answer = running.ask("hello", stream=stream)
    finally:
        running.stub.clear_faults()
    assert "error" in answer.text
    assert not TOKEN.search(answer.text)


def test_a_token_that_cortex_itself_puts_into_its_words_is_taken_out() -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJNWU9SRyJ9.c2lnbmF0dXJl"
    assert token not in redact(f"JWT token is invalid: {token}")
    assert token not in printable(f"JWT token is invalid: {token}")


# ------------------------------------------------------------------------------------------------------- the page of it


def test_every_promise_of_the_security_page_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (?!\*\*|What)(.+) \| (.+) \|$", (BUNDLE / "SECURITY.md").read_text(), re.MULTILINE)
    tests = set(
        re.findall(r"^def (test_\w+)\(", "\n".join(map(Path.read_text, BUNDLE.glob("tests/test_*.py"))), re.MULTILINE)
    )
    targets = set(re.findall(r"^([\w-]+):", (BUNDLE / "Makefile").read_text(), re.MULTILINE))
    assert len(rows) > 15
    for promise, kept_by in rows:
        names = re.findall(r"`(?:make )?([\w-]+)`", kept_by)
        assert names, promise
        assert set(names) <= tests | targets, promise
