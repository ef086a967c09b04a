"""The stand-in as a process: controlled over HTTP, as the demo, for measurements, and with wrong arguments."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.cortex_stub import CHAT, DEMO_NOTE, MESSAGES, CortexStub
from tests.set_up import BUNDLE
from tests.stub.sending import OTHER_PEM, PEM, chat, events, native, post, token

SCRIPT = str(BUNDLE / "tests" / "cortex_stub.py")


@contextlib.contextmanager
def process(tmp_path: Path, *arguments: str) -> Iterator[str]:
    """The stand-in as a process, in a folder that is not the project's; its URL."""
    key = tmp_path / "key.pub"
    key.write_text(PEM)
    command = [sys.executable, SCRIPT, "--account", "org-acc", "--user", "me", "--public-key", str(key)]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline().strip()
            assert line.startswith("listening on http://127.0.0.1:")
            yield line.removeprefix("listening on ")
        finally:
            running.send_signal(signal.SIGTERM)
            assert running.wait(10) == 0


def test_as_a_process_it_is_scripted_faulted_and_read_over_http(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    bearer = {"Authorization": f"Bearer {token()}"}
    with (
        process(tmp_path, "--log", str(log)) as url,
        httpx.Client(base_url=url, headers=bearer) as client,
    ):
        client.post("/_stub/script", json=["from the script"]).raise_for_status()
        assert client.post(CHAT, json=chat()).json()["choices"][0]["message"]["content"] == "from the script"
        client.post("/_stub/faults", json={"name": "budget", "times": 1}).raise_for_status()
        assert client.post(CHAT, json=chat()).status_code == 402
        client.post("/_stub/options", json={"claude_stop": "refused"}).raise_for_status()
        assert client.post(CHAT, json=chat(stop="x")).status_code == 400
        client.post("/_stub/set", json={"skew": -3600}).raise_for_status()
        assert client.post(CHAT, json=chat()).status_code == 401
        client.post("/_stub/set", json={"skew": 0}).raise_for_status()
        client.post("/_stub/key", json={"public_key": OTHER_PEM}).raise_for_status()
        assert client.post(CHAT, json=chat()).status_code == 401
        assert [list(client.get("/_stub/failures").json().values())[at][:6] for at in (0, 1)] == ["394302", "394304"]
        assert client.get("/_stub/totals").json()["requests"] == 1
        assert len(client.get("/_stub/requests?since=3").json()["requests"]) == 2
        for path, body in (("faults", {"name": "x"}), ("set", {"url": "x"}), ("options", {"x": 1}), ("script", 7)):
            assert client.post(f"/_stub/{path}", json=body).status_code == 400
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 402, 400, 401, 401]
    assert bearer["Authorization"].split(".")[-1] not in log.read_text()
    assert os.stat(log).st_mode & 0o077 == 0  # noqa: PTH116


def test_the_demo_says_on_every_answer_that_it_is_no_model(tmp_path: Path) -> None:
    bearer = {"Authorization": f"Bearer {token()}"}
    with process(tmp_path, "--demo") as url, httpx.Client(base_url=url, headers=bearer) as client:
        for text in ("hello", "[[text: so]]", "[[tools: Bash]]"):
            answer = client.post(CHAT, json=chat(text)).json()["choices"][0]["message"]["content"]
            assert answer.startswith(DEMO_NOTE)
        assert client.get("/_stub/requests").status_code == 404
        assert client.post(CHAT, json=chat(max_tokens=1)).status_code == 400


def test_for_a_bench_it_answers_without_rules_and_without_keeping_bodies() -> None:
    with CortexStub("org-acc", "me", [PEM], bench=True) as stub:
        assert post(stub, CHAT, chat(max_tokens=1)).status_code == 200
        assert len(events(post(stub, CHAT, chat("[[stream: 200]]", stream=True)))) == 201
        assert events(post(stub, MESSAGES, native(stream=True)))[-1]["type"] == "message_stop"
        assert post(stub, CHAT, chat(), "nonsense").status_code == 401
        assert not any("body" in record for record in stub.requests)


def test_a_wrong_key_file_or_a_taken_port_is_one_clear_line(tmp_path: Path, stub: CortexStub) -> None:
    bad, good = tmp_path / "bad.pub", tmp_path / "good.pub"
    bad.write_text("nonsense")
    good.write_text(PEM)
    for path, port, status in ((bad, 0, 2), (tmp_path / "none", 0, 1), (good, stub.port, 1)):
        command = [sys.executable, SCRIPT, "--account", "A", "--user", "U", "--public-key", str(path)]
        ended = subprocess.run([*command, "--port", str(port)], capture_output=True, text=True, timeout=30, check=False)
        assert ended.returncode == status
        assert ended.stderr.startswith("cortex_stub: ")
        assert ended.stderr.count("\n") == 1
