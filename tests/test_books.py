"""The proxy's books while it runs: what a line of the ledger says, which answers have one, and the day's limit."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict

import httpx
import pytest

from bundle.cortex.usage import Used
from bundle.ledger import FOLDER, Line, ledger_files, read_lines
from bundle.spending import FILE
from tests.claude_home import on_messages_route
from tests.day import PROXY, SECONDS, Day
from tests.set_up import SetUp, wait_until

pytestmark = pytest.mark.real

SESSION = "x-claude-code-session-id"
DEAR = "[100000 tokens more]"  # with claude-sonnet-4-5, 30 cents times 1.1 for regional routing
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def books(day: Day) -> Day:
    """The set-up with an empty ledger."""
    day.post({"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": HELLO}, **{SESSION: "the-last-one-before"})
    wait_until(lambda: any(line.session == "the-last-one-before" for line in read_lines(day.folder)), SECONDS)
    for path in ledger_files(day.folder):
        path.unlink()
    return day


def lines(day: Day, number: int) -> list[Line]:
    """The lines of the ledger, when there are so many."""

    def found() -> list[Line]:
        there = [*read_lines(day.folder)]
        return there if len(there) >= number else []

    there: list[Line] = wait_until(found, SECONDS, lambda: day.log(PROXY)[-2000:])
    assert len(there) == number
    return there


@pytest.mark.keeps("ledger")
@pytest.mark.parametrize("route", ["chat", "messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_line_says_model_tokens_and_time_and_nothing_of_what_was_said(
    running: SetUp, route: str, stream: bool
) -> None:
    tool = {"name": "secret_tool", "description": "of /home/jane", "input_schema": {"type": "object", "properties": {}}}
    session, before = str(uuid.uuid4()), len(running.stub.requests)
    body = {"model": "claude-opus-9-9", "max_tokens": 300, "stream": stream, "tools": [tool]}
    content = "jane's plan [[thinking: hidden]] [[text: the answer]]"
    with running.template(on_messages_route) if route == "messages" else nullcontext():
        answer = running.post({**body, "messages": [{"role": "user", "content": content}]}, **{SESSION: session})
    assert answer.status_code == 200
    line = line_of(running, session)
    asked = running.stub.requests[before]
    used = {kind: asked["usage"][kind] for kind in ("input", "cache_read", "cache_write", "output")}
    assert asdict(line).items() >= used.items()
    assert (line.asked, line.model) == ("claude-opus-9-9", asked["model"])
    assert (line.session, line.route, line.status) == (session, route, 200)
    assert line.model != line.asked
    assert 0 < (line.first_ms or 0) <= (line.ms or 0) < SECONDS * 1000
    file = ledger_files(running.folder)[-1]
    for path in (file, running.folder / FILE):
        text = path.read_text()
        assert not [word for word in ("jane", "secret", "hidden", "the answer") if word in text]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_each_answer_of_cortex_has_a_line_and_nothing_else_has_one(books: Day) -> None:
    books.stub.fault("no_role", times=1)
    assert books.ask("hello").status_code == 403
    (refused,) = lines(books, 1)
    assert (refused.status, refused.used) == (403, Used())
    books.post({"model": "claude-sonnet-4-5", "messages": HELLO}, "/v1/messages/count_tokens")
    assert books.post({"model": "claude-sonnet-4-5", "messages": "no list"}).status_code == 400
    books.stub.close_port()
    assert books.ask("hello").status_code == 502
    books.stub.open_port()
    assert books.ask("hello", model="no-such-model").status_code == 400
    books.stub.fault("cut", after=2, times=1)
    books.ask("hello", stream=True)
    assert books.ask("hello").status_code == 200
    _, cut, good = lines(books, 3)
    assert (cut.status, cut.used) == (502, None)
    assert good.used is not None


def line_of(set_up: SetUp, session: str) -> Line:
    def found() -> Line | None:
        return next((line for line in read_lines(set_up.folder) if line.session == session), None)

    line: Line = wait_until(found, SECONDS, lambda: set_up.log(PROXY)[-2000:])
    return line


@pytest.mark.parametrize("route", ["chat", "messages"])
def test_of_an_answer_that_the_user_has_stopped_only_what_cortex_has_said_is_in_the_line(
    running: SetUp, route: str
) -> None:
    session, before = str(uuid.uuid4()), len(running.stub.requests)
    body = {"model": "claude-sonnet-4-5", "max_tokens": 100, "stream": True}
    messages = [{"role": "user", "content": "[[hold: 2]] [[text: one two three]]"}]
    headers = {"Authorization": f"Bearer {running.master_key}", SESSION: session}
    with (
        running.template(on_messages_route) if route == "messages" else nullcontext(),
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream(
            "POST", f"{running.url}/v1/messages", json={**body, "messages": messages}, headers=headers
        ) as answer,
    ):
        pieces = answer.iter_bytes()
        next(pieces)
        wait_until(lambda: any(record.get("held") for record in running.stub.requests[before:]), 10)
    line = line_of(running, session)
    running.stub.release()
    charged = next(record["usage"] for record in running.stub.requests[before:] if record.get("held"))
    assert (line.status, line.output, line.model) == (499, None, "claude-sonnet-4-5")
    assert line.input == (charged["input"] if route == "messages" else None)


def test_the_time_to_the_first_byte_is_that_of_cortex(running: SetUp) -> None:
    session = str(uuid.uuid4())
    running.stub.fault("slow_start", times=1, seconds=0.7)
    body = {"model": "claude-sonnet-4-5", "max_tokens": 100, "stream": True, "messages": HELLO}
    assert running.post(body, **{SESSION: session}).status_code == 200
    line = line_of(running, session)
    assert 700 <= (line.first_ms or 0) <= (line.ms or 0)


def test_what_comes_after_an_answer_in_the_same_connection_gives_no_second_line(running: SetUp) -> None:
    session = str(uuid.uuid4())

    def request(path: str) -> bytes:
        body = json.dumps({"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": HELLO})
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {running.master_key}\r\n{SESSION}: {session}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as connection:
        connection.sendall(request("/v1/messages") + request("/v1/messages/count_tokens") + request("/v1/nothing"))
        data = b""
        while data.count(b"HTTP/1.1 ") < 3 or b"There is no POST" not in data:
            piece = connection.recv(65536)
            assert piece, data
            data += piece
    line_of(running, session)
    assert running.ask("hello").status_code == 200
    last = str(uuid.uuid4())
    running.post({"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": HELLO}, **{SESSION: last})
    line_of(running, last)
    assert [line.status for line in read_lines(running.folder) if line.session == session] == [200]


def test_a_proxy_that_is_stopped_writes_the_lines_of_its_last_answers(books: Day) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: books.ask(f"question {number}"), range(8)))
    books.processes[PROXY].send_signal(signal.SIGINT)  # as PM2 does
    assert books.processes[PROXY].wait(timeout=20) == 0
    assert {answer.status_code for answer in answers} == {200}
    lines(books, 8)


@pytest.mark.keeps("ledger-bounds")
def test_a_ledger_that_cannot_be_written_costs_no_answer_and_is_said_once(books: Day) -> None:
    folder, log = books.folder / FOLDER, len(books.log(PROXY))
    folder.rename(books.folder / "aside")
    try:
        folder.write_text("no folder")
        assert [books.ask("hello").status_code for _ in range(3)] == [200] * 3
        said = books.said(PROXY, "the ledger is not written", log)
        assert f"{folder}: File exists" in said
        assert "their lines are lost" in said
    finally:
        folder.unlink()
        (books.folder / "aside").rename(folder)
    assert books.ask("hello").status_code == 200
    said = books.said(PROXY, "is written again", log)
    assert said.count("is not written") == 1
    lost = re.search(r"is written again; ([123]) lines are lost", said)
    assert lost
    lines(books, 4 - int(lost[1]))


def test_the_ledger_can_be_switched_off_and_each_request_can_have_a_line_in_the_log(books: Day) -> None:
    log = len(books.log(PROXY))
    books.env_file.write_text(f"{books.settings}LEDGER=off\nLOG_REQUESTS=1\n")
    answer = books.ask("hello")
    said = books.said(PROXY, "request ", log)
    assert answer.headers["request-id"] in said
    usage = books.stub.requests[-1]["usage"]
    assert f"claude-sonnet-4-5 200 ({usage['input']} in, 0 read, 0 written, {usage['output']} out)" in said
    assert not [*read_lines(books.folder)]


@pytest.mark.keeps("day-s-limit")
def test_the_day_s_limit_warns_then_refuses_and_ends_at_midnight_or_with_the_setting(books: Day) -> None:
    log = len(books.log(PROXY))

    def limit(dollars: str) -> None:
        books.env_file.write_text(f"{books.settings}BUDGET_USD_PER_DAY={dollars}\n")

    limit("0.60")
    books.move_clock(24 * 3600)  # a day on which nothing was spent yet
    assert books.ask(DEAR).status_code == 200
    lines(books, 1)
    assert "WARNING" not in books.log(PROXY)[log:]
    limit("0.40")
    assert books.ask("hello").status_code == 200
    assert "$0.33 of $0.40 are spent today (BUDGET_USD_PER_DAY in" in books.said(PROXY, "WARNING", log)
    assert books.ask(DEAR).status_code == 200
    lines(books, 3)
    answer = wait_until(lambda: (told := books.ask("hello")).status_code == 402 and told, SECONDS)
    error = answer.json()["error"]
    assert (error["type"], answer.headers["x-should-retry"]) == ("billing_error", "false")
    assert "$0.66 of $0.40" in error["message"]
    assert f"BUDGET_USD_PER_DAY in {books.env_file}, line 3" in error["message"]
    assert "$0.66 of $0.40" in books.claude("hello")["result"]
    assert books.log(PROXY)[log:].count("WARNING") == 1
    limit("0.90")
    assert books.ask("hello").status_code == 200  # at once
    limit("0.40")
    assert books.ask("hello").status_code == 402
    spent = json.loads((books.folder / FILE).read_text())
    books.move_clock(24 * 3600)
    assert books.ask("hello").status_code == 200
    wait_until(lambda: json.loads((books.folder / FILE).read_text())["day"] > spent["day"], SECONDS)
