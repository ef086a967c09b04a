"""bundle/proof.py: no program but the proxy gets the key or a prompt from our tools, whoever holds the port."""

from __future__ import annotations

import http.server
import json
import shlex
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundle import proof as proof_module
from bundle.bootstrap import make, script
from bundle.checks import first_answer, processes
from bundle.checks.finding import read_installation
from bundle.checks.first_answer import wait_for_answer
from bundle.errors import ConfigError
from bundle.proof import listener, proof
from bundle.proxy.server import take_port
from bundle.settings import load_settings, master_key, renew_key
from bundle.supervisor import SCRIPTS
from tests.checked import SECRET, FakeProxy, answering, head, pm2_row, serving
from tests.ports import free_port
from tests.set_up import SetUp

pytestmark = pytest.mark.usefixtures("nobody_s_environment")
NONCE = b"nonce=" + b"0123456789abcdef" * 4
PROMPT = "the plan that nobody may read"


def test_a_proof_is_for_one_key_one_port_and_one_nonce() -> None:
    one = proof(SECRET, 8001, NONCE)
    others = [proof(SECRET[:-1], 8001, NONCE), proof(SECRET, 8002, NONCE), proof(SECRET, 8001, NONCE[:-1] + b"0")]
    assert one is not None
    assert len({one, *others}) == 4
    assert SECRET.encode() not in one


@pytest.mark.parametrize(
    "query",
    [
        *(b"", b"nonce=", b"nonce=00", NONCE[:-1], NONCE + b"0", NONCE.upper(), NONCE + b"&a=b", b"a=b&" + NONCE),
        *(NONCE + b"\n", NONCE[:-1] + b"\xff", b"nonce=" + b"%30" * 64, b"nonce=" + b"0" * 10**6),
    ],
)
def test_nothing_but_a_nonce_of_ours_is_signed(query: bytes) -> None:
    assert proof(SECRET, 8001, query) is None


def relay(to: int) -> Callable[[socket.socket, bytes], None]:
    """Ask the real proxy on its port, and pass its answer on as one's own."""

    def answer(connection: socket.socket, request: bytes) -> None:
        path = request.split()[1].decode()
        with urllib.request.urlopen(f"http://127.0.0.1:{to}{path}", timeout=5) as real:
            connection.sendall(head(real.read()))

    return answer


def endless(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def dripping(connection: socket.socket, _: bytes) -> None:
    for _number in range(100):
        connection.sendall(b"H")
        time.sleep(0.05)


ANSWERS: dict[str, Callable[[socket.socket, bytes], None]] = {
    "nothing": lambda connection, _: connection.sendall(b""),
    "alive": lambda connection, _: connection.sendall(head(b'"I\'m alive!"')),
    "a proof of nothing": lambda connection, _: connection.sendall(head(proof("", 1, NONCE) or b"")),
    "the nonce": lambda connection, request: connection.sendall(head(request.split()[1])),
    "another host": lambda connection, _: connection.sendall(
        head(b"", "307 Away", "Location: http://127.0.0.1:1/proof\r\n")
    ),
    "endless": endless,
    "dripping": dripping,
    "silence": lambda *_: time.sleep(2),
}


@pytest.mark.keeps("proof-before-key")
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_whoever_has_not_the_key_is_not_taken_for_the_proxy(answer: Callable[[socket.socket, bytes], None]) -> None:
    port = free_port()
    for key in (SECRET, ""):
        with answering(port, answer) as got:
            assert listener(port, key, seconds=0.3).state == "foreign"
        assert SECRET.encode() not in b"".join(got)


@pytest.mark.keeps("proof-before-key")
def test_the_proxy_s_own_answer_is_of_no_use_on_another_port() -> None:
    with serving(FakeProxy(free_port(), SECRET)) as real:
        assert listener(real, SECRET).state == "ours"
        with answering(port := free_port(), relay(real)) as got:
            assert listener(port, SECRET).state == "foreign"
    assert got
    assert listener(real, SECRET).state == "none"


def test_our_own_proxy_that_starts_or_is_old_is_told_from_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof_module, "port_owner", lambda _: "python claude_proxy.py (pid 1)")
    for busy in (b"", head(b"", "503 Service Unavailable")):
        with answering(port := free_port(), lambda connection, _, busy=busy: connection.sendall(busy)):  # type: ignore[misc]
            assert listener(port, SECRET, seconds=0.3).state == "starting"
    port = free_port()
    with answering(port, lambda connection, _: connection.sendall(head(b"", "404 Not Found"))):
        found = listener(port, SECRET)
    assert (found.state, found.fix) == ("another key", make("stop", "start"))


def test_a_listener_that_ends_while_it_is_looked_up_is_no_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def look_up(_: int) -> str:
            server.close()
            return ""

        monkeypatch.setattr(proof_module, "port_owner", look_up)
        assert listener(server.getsockname()[1], SECRET, seconds=0.3).state == "none"
    # Nobody but root can see the name of another user's program.
    monkeypatch.setattr(proof_module, "port_owner", lambda _: "")
    with answering(port := free_port(), ANSWERS["alive"]):
        found = listener(port, SECRET)
    assert (found.state, found.found) == ("foreign", f"port {port} is taken by a program of another user")


class Thief(http.server.BaseHTTPRequestHandler):
    """Another user's program on the port. It answers as the proxy would, and keeps all that it gets."""

    protocol_version = "HTTP/1.1"
    got: list[str] = []  # noqa: RUF012 - one server a test, emptied by its fixture

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.got.append(f"{self.requestline}\n{self.headers}\n{sent}")
        text = {"type": "text_delta", "text": "forged"}
        events = ({"type": "content_block_delta", "delta": text}, {"type": "message_stop"})
        body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
        body = b'"I\'m alive!"' if "liveliness" in self.path else body
        self.wfile.write(head(body))

    do_GET = do_POST = do_HEAD = answer  # noqa: N815


@pytest.fixture
def stolen(set_up: SetUp) -> Iterator[SetUp]:
    """A complete set-up whose port another program holds, and a `claude` that sends its prompt with the key."""
    set_up.refresh()
    claude = set_up.folder / "bin" / "claude"
    claude.parent.mkdir()
    claude.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo 2.0.0; exit; fi\n'
        f'curl -s -H "Authorization: $(cat "$2")" -d "$*" {shlex.quote(set_up.url)}/v1/messages\n'
    )
    claude.chmod(0o755)
    set_up.environ["PATH"] = f"{claude.parent}:{set_up.environ['PATH']}"
    Thief.got = []
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", set_up.port), Thief)):
        yield set_up


@pytest.mark.keeps("proof-before-key")
@pytest.mark.parametrize(
    "command",
    [
        ["doctor.py"],
        ["doctor.py", "--live"],
        ["doctor.py", "--json"],
        ["tests/first_answer.py"],
        ["point_claude.py", "--check"],
        ["point_claude.py", "--run", "-p", PROMPT],
    ],
    ids=" ".join,
)
def test_a_program_that_holds_the_port_gets_neither_key_nor_prompt_from_any_tool(
    stolen: SetUp, command: list[str]
) -> None:
    key = stolen.master_key
    done = stolen.run(*command, seconds=60)
    got = "\n".join(Thief.got)
    assert not [word for word in (key, "uthorization", PROMPT, "messages") if word in got], got
    assert "GET /proof?nonce=" in got
    said = done.stdout + done.stderr
    assert done.returncode not in {0, None}, said
    assert f"port {stolen.port} is taken by" in said
    assert "Traceback" not in said
    # A check only looks. The others renew the key, which a plain `claude` may have sent there.
    renews = command[-1] in {"tests/first_answer.py", PROMPT}
    assert (stolen.master_key != key) is renews
    assert ("point_claude.py" in said) or not renews
    assert stolen.master_key not in said


@pytest.mark.keeps("key-after-a-stranger")
def test_a_proxy_that_finds_its_port_taken_makes_a_new_key_and_says_what_follows(stolen: SetUp) -> None:
    key = stolen.master_key
    done = stolen.run("claude_proxy.py", seconds=60)
    assert done.returncode == 78
    assert stolen.master_key != key
    assert make("stop", "start") in done.stderr
    assert script("point_claude.py") in done.stderr
    own = {**stolen.environ, "LITELLM_MASTER_KEY": SECRET}
    key = stolen.master_key
    with pytest.raises(ConfigError, match="LITELLM_MASTER_KEY: choose another"):
        take_port(load_settings(own))
    assert stolen.master_key == key
    assert Thief.got == []


@pytest.mark.parametrize("name", ["claude-proxy", "token-refresher"])
@pytest.mark.parametrize("status", ["stopped", "errored"])
def test_a_start_has_failed_when_pm2_has_a_process_not_online_whoever_answers(
    healthy: SetUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, status: str
) -> None:
    rows = [pm2_row(each, script, **({"status": status} if each == name else {})) for each, script in SCRIPTS.items()]
    for module in (first_answer, processes):
        monkeypatch.setattr(module, "pm2_processes", lambda _: rows)
    assert not wait_for_answer(read_installation(healthy.environ, time.time()))
    assert f"{name}: {status}" in capsys.readouterr().out


def test_a_renewed_key_is_in_the_configuration_within_seconds_and_no_earlier_refresh_counts(set_up: SetUp) -> None:
    settings = load_settings(set_up.environ)
    set_up.start("auto_refresh.py")
    set_up.wait_for("auto_refresh.py", "has started")
    renew_key(settings)
    set_up.wait_for("auto_refresh.py", "because .master_key changed")
    assert master_key(settings) in Path(settings.config_path).read_text()
    assert set_up.log("auto_refresh.py").count("new token") == 2
