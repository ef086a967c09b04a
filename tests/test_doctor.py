"""The doctor names each fault with what mends it, shows no secret, starts nothing, and is green when all is well."""

from __future__ import annotations

import contextlib
import datetime
import functools
import http.server
import itertools
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import auto_refresh
import claude_check
import doctor
import point_claude
from doctor import Finding, Probe, examine, look
from patches import apply_patch
from patches.cortex_errors import explain
from tests.conftest import ACCOUNT, BUNDLE, TOKEN, USER, SetUp, free_port, wait_until
from tests.cortex_stub import FAULTS
from tests.terminal import Terminal

Check = Callable[[doctor.Setup], Iterator[Finding]]
SECRET = "sk-a-key-that-nobody-may-see-0123456789"


@pytest.fixture(autouse=True)
def nobody_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(point_claude, "MANAGED", Path("/no/such/folder"))


def findings(set_up: SetUp, check: Check, **environ: str) -> dict[str, Finding]:
    """What one check finds, by name."""
    return {finding.name: finding for finding in check(look({**set_up.environ, **environ}, time.time()))}


# -------------------------------------------------------------------------------------------------- what stands in


class FakeProxy(http.server.ThreadingHTTPServer):
    """Answers as the proxy does, as far as the doctor asks; by model, `refused` is what an error says, `said` a text
    in place of "OK"."""

    daemon_threads = True

    def __init__(self, port: int, key: str, *, address: str = "127.0.0.1") -> None:
        self.key, self.asked = key, list[Any]()
        self.refused: dict[str, str] = {}
        self.said: dict[str, str] = {}
        super().__init__((address, port), FakeAnswers)


class FakeAnswers(http.server.BaseHTTPRequestHandler):
    server: FakeProxy

    def log_message(self, *_: object) -> None:
        pass

    def _say(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health/liveliness":
            self._say(200, "I'm alive!")
        else:
            self._say(200 if self.headers["Authorization"] == f"Bearer {self.server.key}" else 401, {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        if refused := self.server.refused.get(asked["model"]):
            self._say(403, {"error": {"message": refused}})
            return
        text = {"type": "text_delta", "text": self.server.said.get(asked["model"], "OK")}
        events = ({"type": "content_block_delta", "delta": text}, {"type": "message_stop"})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events))


class Stranger(http.server.BaseHTTPRequestHandler):
    """Some other program's web server; `GREETING` is its status."""

    GREETING = 404

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.GREETING)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_CONNECT = answer  # noqa: N815


@contextlib.contextmanager
def serving(server: http.server.HTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.02), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def pm2_row(name: str, script: str, **facts: Any) -> dict[str, Any]:
    """A row as `pm2 jlist` prints it, with a secret in it where PM2 keeps environments."""
    usual = {
        "status": "online",
        "restart_time": 0,
        "pm_uptime": (time.time() - 7300) * 1000,
        "pm_exec_path": str(BUNDLE / script),
        "exec_interpreter": doctor.interpreter(),
        "env": dict.fromkeys(["SNOWFLAKE_PRIVATE_KEY_PATH", "A_TOKEN_FILE", "MAX_TOKENS", "token-refresher"], SECRET),
    }
    return {"name": name, "monit": {"memory": 40 * 2**20}, "pm2_env": {**usual, **facts}}


ROWS = [pm2_row("token-refresher", "auto_refresh.py"), pm2_row("claude-proxy", "claude_proxy.py")]


@pytest.fixture
def healthy(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> Iterator[SetUp]:
    """A set-up in which all is well, with a stand-in for the two running processes."""
    done = set_up.run("auto_refresh.py", "--once")
    assert done.returncode == 0, done.stderr
    apply_patch.apply()  # as every start does; on a new machine nothing has started yet
    monkeypatch.setattr(doctor, "pm2_processes", lambda _: ROWS)
    monkeypatch.chdir(set_up.folder)
    with serving(FakeProxy(set_up.port, set_up.master_key)):
        yield set_up


# ---------------------------------------------------------------------------------------------------------- the whole


def test_a_healthy_set_up_is_all_green(healthy: SetUp) -> None:
    found = examine(look(healthy.environ, time.time()), live=True)
    assert [finding for finding in found if finding.state != "ok"] == []
    assert list(dict.fromkeys(finding.group for finding in found)) == [*doctor.CHECKS, "Models"]


def test_looking_changes_nothing(set_up: SetUp) -> None:
    before = sorted(set_up.folder.rglob("*"))
    examine(look(set_up.environ, time.time()))
    assert sorted(set_up.folder.rglob("*")) == before


def test_without_a_configuration_one_thing_fails_for_it_and_the_rest_waits(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path)}
    found = examine(look(environ, time.time()))
    account = next(finding for finding in found if finding.name == "Account")
    assert account.state == "fail"
    assert "SNOWFLAKE_ACCOUNT" in account.mend
    waiting = {finding.group for finding in found if finding.state == "skip"}
    assert waiting == {"Key", "Configuration", "Proxy", "Claude Code", "Snowflake"}


def test_a_check_that_breaks_hides_nothing_else(healthy: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: doctor.Setup) -> Iterator[Finding]:
        yield Finding("Before", "ok", "found")
        raise RuntimeError("a bug")

    monkeypatch.setattr(doctor, "CHECKS", {"Broken": (broken,), "Key": (doctor.private_key,)})
    found = examine(look(healthy.environ, time.time()))
    assert [(finding.name, finding.state) for finding in found] == [
        ("Before", "ok"),
        ("Broken", "fail"),
        ("Private key", "ok"),
        ("Fingerprint", "ok"),
    ]


def test_the_exit_status_and_json_are_for_scripts_and_hold_no_secret(set_up: SetUp) -> None:
    assert set_up.run("auto_refresh.py", "--once").returncode == 0
    done = set_up.run("doctor.py", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False), done.stderr
    assert {"name", "state", "found", "mend", "group"} == set(report["findings"][0])
    assert "nothing listens" in done.stdout
    for shown in (done.stdout + done.stderr, set_up.run("doctor.py").stdout):
        assert not TOKEN.search(shown)
        assert set_up.master_key not in shown
        assert "\033" not in shown


def test_prose_is_wrapped_to_the_terminal_and_what_is_copied_is_not() -> None:
    command = "ALTER USER ME SET RSA_PUBLIC_KEY='" + "A" * 392 + "';"
    page = doctor.page([Finding("Login", "fail", "word " * 40, command, "Snowflake")], 40, colour=False)
    assert command in page
    assert all(len(line) <= 40 for line in page.splitlines() if "ALTER" not in line and "mend" not in line)
    assert "1 to mend" in page
    assert "\033[31mFAIL\033[0m" in doctor.page([Finding("a", "fail", "b", "", "c")], 80, colour=True)


# ---------------------------------------------------------------------------------------------------------- Snowflake


def test_a_key_that_is_not_registered_is_named_with_the_statement_to_run(set_up: SetUp) -> None:
    set_up.stub.register_key(None)
    login = findings(set_up, doctor.snowflake)["Login"]
    assert login.state == "fail"
    assert auto_refresh.register_statement(USER, set_up.key) in login.mend
    assert auto_refresh.fingerprint(set_up.key) in login.mend
    (failure,) = set_up.stub.login_failures
    assert f"SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('{failure}');" in login.mend


@pytest.mark.parametrize("wrong", [{"SNOWFLAKE_ACCOUNT": "OTHER-ACCT"}, {"SNOWFLAKE_USER": "JOHN"}])
def test_a_wrong_account_or_user_is_named(set_up: SetUp, wrong: dict[str, str]) -> None:
    login = findings(set_up, doctor.snowflake, **wrong)["Login"]
    assert login.state == "fail"
    assert next(iter(wrong.values())) in login.found


@pytest.mark.parametrize(
    ("skew", "state", "words"),
    [
        (3700, "fail", "61 minutes behind"),
        (-3700, "fail", "61 minutes ahead of"),
        (100, "warn", "behind"),
        (5, "ok", ""),
    ],
)
def test_a_clock_that_differs_from_snowflake_s_is_named(set_up: SetUp, skew: float, state: str, words: str) -> None:
    set_up.stub.skew = skew
    clock = findings(set_up, doctor.snowflake)["Clock"]
    assert clock.state == state
    assert words in clock.found
    assert ("ntp" in clock.mend) == (state != "ok")


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"not_in_region", "too_long"}))
def test_each_error_of_snowflake_is_named_with_its_remedy(set_up: SetUp, fault: str) -> None:
    status, body = FAULTS[fault]
    set_up.stub.fault(fault)
    login = findings(set_up, doctor.snowflake)["Login"]
    if status == 401:
        assert (login.state, "ALTER USER" in login.mend) == ("fail", True)
        return
    told = explain(status, json.dumps(body).replace("{model}", ""))
    assert login.state == ("warn" if told.retry else "fail")
    assert f"{login.found}\n{login.mend}".strip() == told.message


@pytest.mark.parametrize("answer", [Probe(200, "<html>log in</html>", 0), Probe(404, '{"message": "Not Found"}', 0)])
def test_a_server_that_is_not_cortex_is_named(set_up: SetUp, answer: Probe) -> None:
    login = doctor.login(answer, look(set_up.environ, 0).settings)
    assert (login.state, "is not Cortex" in login.found) == ("fail", True)


def test_a_host_that_does_not_answer_is_named(set_up: SetUp) -> None:
    set_up.stub.close_port()
    host = findings(set_up, doctor.snowflake)
    assert list(host) == ["Host"]
    assert (host["Host"].state, "firewall" in host["Host"].mend) == ("fail", True)


def test_a_host_that_does_not_exist_is_named(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    host = findings(set_up, doctor.snowflake, SNOWFLAKE_HOST="nowhere.snowflakecomputing.com")["Host"]
    assert (host.state, host.found) == ("fail", "there is no host nowhere.snowflakecomputing.com")
    assert "SNOWFLAKE_ACCOUNT" in host.mend


def test_a_certificate_of_a_company_s_own_is_named(set_up: SetUp, tmp_path: Path) -> None:
    with serving(tls_server(tmp_path)) as port:
        host = findings(set_up, doctor.snowflake, SNOWFLAKE_HOST=f"https://localhost:{port}")["Host"]
    assert (host.state, "certificate of localhost is not trusted" in host.found) == ("fail", True)
    assert "SSL_CERT_FILE" in host.mend


def tls_server(folder: Path) -> http.server.HTTPServer:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    class Quiet(http.server.HTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            return context.wrap_socket(connection, server_side=True), address

    return Quiet(("127.0.0.1", 0), Stranger)


@pytest.mark.parametrize("listening", [True, False])
def test_a_company_proxy_in_the_way_is_named_without_its_password(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch, listening: bool
) -> None:
    class Demanding(Stranger):
        GREETING = 407

    with serving(http.server.HTTPServer(("127.0.0.1", 0), Demanding)) as port:
        where = f"127.0.0.1:{port if listening else free_port()}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://jane:hunter2@{where}")
        host = findings(set_up, doctor.snowflake, SNOWFLAKE_HOST="https://acct.snowflakecomputing.com")["Host"]
    assert (host.state, where in host.found) == ("fail", True)
    assert "NO_PROXY=acct.snowflakecomputing.com" in host.mend
    assert "hunter2" not in f"{host}"


def test_a_company_proxy_does_not_count_for_a_host_that_is_excepted(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert findings(set_up, doctor.snowflake)["Host"].found == "127.0.0.1 answers directly"


# ------------------------------------------------------------------------------------------------ models, with --live


def test_each_distinct_model_is_asked_once_and_a_family_under_a_made_up_name(set_up: SetUp) -> None:
    assert set_up.run("auto_refresh.py", "--once").returncode == 0
    server = FakeProxy(set_up.port, set_up.master_key)
    server.refused = {"claude-opus-4-7": "Opus is not in your region.\nALTER ACCOUNT …", "claude-opus-4-5": "No."}
    with serving(server):
        found = findings(set_up, doctor.models)
    rows = yaml.safe_load(set_up.config.read_text())["model_list"]
    assert set(found) == {row["litellm_params"]["model"] for row in rows}
    assert len(server.asked) == len(found)
    # Each as Claude Code asks: whatever a bare request would pass by has to be in it.
    assert all({"tools", "thinking", "system", "stream", "metadata"} <= asked.keys() for asked in server.asked)
    assert found["openai/claude-sonnet-4-6"].state == "ok"
    # Claude Code asks for the family's model by itself; the other one is only offered.
    assert found["openai/claude-opus-4-7"].state == "fail"
    assert found["openai/claude-opus-4-7"].mend == "ALTER ACCOUNT …"
    assert found["openai/claude-opus-4-5"].state == "warn"


def test_a_model_behind_nothing_but_a_wildcard_is_asked_too(set_up: SetUp) -> None:
    row = {"model_name": "claude-opus-*", "litellm_params": {"model": "openai/new"}}
    set_up.config.write_text(yaml.dump({"model_list": [row]}))
    server = FakeProxy(set_up.port, "-")
    with serving(server):
        assert findings(set_up, doctor.models)["openai/new"].state == "ok"
    assert server.asked[0]["model"] == "claude-opus-doctor"


def test_an_answer_without_content_is_none(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set_up.run("auto_refresh.py", "--once").returncode == 0
    monkeypatch.setattr(claude_check, "PAUSES", (0,))
    server = FakeProxy(set_up.port, set_up.master_key)
    server.said["claude-haiku-4-5-20251001"] = ""
    with serving(server):
        found = findings(set_up, doctor.models)["openai/claude-haiku-4-5"]
    assert (found.state, found.found) == ("fail", "an answer without content")
    assert len([asked for asked in server.asked if "haiku" in asked["model"]]) == 2


def test_without_a_proxy_no_model_is_blamed(set_up: SetUp) -> None:
    assert set_up.run("auto_refresh.py", "--once").returncode == 0
    assert findings(set_up, doctor.models) == {"Models": Finding("Models", "skip", "the proxy does not answer")}


# --------------------------------------------------------------------------------------------- machine, key, settings


def test_releases_that_steal_or_are_open_are_refused() -> None:
    for version in ("1.82.8", "1.107.0"):
        assert "every key" in doctor.litellm_release(version).found
    assert doctor.litellm_release("1.83.9").state == "fail"
    other, ours = doctor.litellm_release("1.199.0"), doctor.litellm_release(apply_patch.MADE_FOR)
    assert (other.state, "requirements.txt" in other.mend) == ("warn", True)
    assert ours.state == "ok"


def test_a_missing_node_and_a_missing_pm2_are_named(
    set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "pm2_program", lambda _: str(tmp_path / "pm2"))
    found = findings(set_up, doctor.programs, PATH=str(tmp_path))
    assert (found["Node.js"].state, found["PM2"].state) == ("fail", "fail")
    assert (found["PM2"].mend, "nodejs.org" in found["Node.js"].mend) == ("make install", True)


def test_an_old_node_is_named(set_up: SetUp, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\necho v16.20.2\n")
    node.chmod(0o755)
    found = findings(set_up, doctor.programs, PATH=f"{tmp_path}:{os.environ['PATH']}")["Node.js"]
    assert (found.state, found.found) == ("fail", "16.20.2")


def test_another_interpreter_than_pm2_s_is_named(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "interpreter", lambda: "/usr/local/bin/python3")
    found = findings(set_up, doctor.programs)["Python"]
    assert (found.state, found.mend) == ("warn", "Look with that: /usr/local/bin/python3 doctor.py")


def test_a_full_disk_is_named(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    assert findings(set_up, doctor.machine)["Disk"].state == "fail"


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_named(set_up: SetUp, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "company.pem"
    if content:
        file.write_text(content)
    found = findings(set_up, doctor.machine, SSL_CERT_FILE=str(file))["Certificates"]
    assert (found.state, "unset SSL_CERT_FILE" in found.mend) == ("fail", True)


def test_a_key_that_cannot_be_used_is_named_with_its_remedy(set_up: SetUp) -> None:
    def key() -> Finding:
        return next(f for f in examine(look(set_up.environ, time.time())) if f.group == "Key")

    set_up.key_path.chmod(0o644)
    assert (key().state, key().mend) == ("fail", f"Mend it with: chmod 600 {set_up.key_path}")
    set_up.key_path.chmod(0o600)
    set_up.write_key(rsa.generate_private_key(public_exponent=65537, key_size=1024))  # noqa: S505 - that is the fault
    assert (key().state, "1024 bits" in key().found) == ("fail", True)
    set_up.key_path.unlink()
    assert (key().state, "openssl" in key().mend) == ("fail", True)


def test_without_a_key_the_way_to_snowflake_is_still_looked_at(set_up: SetUp) -> None:
    set_up.key_path.unlink()
    found = findings(set_up, doctor.snowflake)
    assert {name: finding.state for name, finding in found.items()} == {"Host": "ok", "Clock": "ok", "Login": "skip"}


def test_an_account_that_the_running_refresher_does_not_use_is_named(set_up: SetUp) -> None:
    (set_up.folder / ".refresher.json").write_text(json.dumps({"account": "OTHER-ACCT", "user": USER}))
    found = findings(set_up, doctor.account)
    assert found["Account"].state == "ok"
    assert (found["In use"].state, "OTHER-ACCT.JANE" in found["In use"].found) == ("warn", True)


@pytest.mark.parametrize(
    ("edit", "state", "words"),
    [
        (lambda text: text + "\n\t{", "fail", "not valid YAML"),
        (lambda text: text.replace("${SNOWFLAKE_JWT}", "${SNOWFLAKE_TOKEN}"), "fail", "SNOWFLAKE_TOKEN"),
        (
            lambda text: text.replace("model_name: claude-opus-4-5", "model_name: claude-opus-4-6"),
            "warn",
            "takes turns",
        ),
    ],
)
def test_a_template_with_a_mistake_is_named(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch, edit: Callable[[str], str], state: str, words: str
) -> None:
    template = set_up.folder / "litellm_config.template.yaml"
    template.write_text(edit((BUNDLE / template.name).read_text()))
    monkeypatch.setattr(auto_refresh, "BUNDLE", set_up.folder)
    monkeypatch.setattr(doctor, "CHECKS", {"Configuration": (doctor.template,)})
    (found,) = examine(look(set_up.environ, time.time()))
    assert (found.state, words in found.found) == (state, True)


def test_a_secret_that_others_can_read_is_named(healthy: SetUp) -> None:
    healthy.config.chmod(0o640)
    found = findings(healthy, doctor.secret_files)["Secrets"]
    assert (found.state, found.mend) == ("fail", f"chmod 600 {healthy.config}")


# ------------------------------------------------------------------------------------------------ processes and patch


def test_a_pm2_that_does_not_run_is_named_and_not_started(set_up: SetUp) -> None:
    home = set_up.folder / "pm2"
    home.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:  # what a daemon that was killed leaves behind
        dead.bind(str(home / "rpc.sock"))
    found = findings(set_up, doctor.processes)
    assert (found["PM2"].state, found["PM2"].mend) == ("fail", "make start")
    assert [path.name for path in home.iterdir()] == ["rpc.sock"]


def test_pm2_s_list_is_read_behind_whatever_it_says_first(
    set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, home = tmp_path / "fake-pm2", set_up.folder / "pm2"
    fake.write_text(f"#!/bin/sh\necho '>>>> In-memory PM2 is out-of-date'\necho '{json.dumps(ROWS)}'\n")
    fake.chmod(0o755)
    home.mkdir()
    monkeypatch.setattr(doctor, "pm2_program", lambda _: str(fake))
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(home / "rpc.sock"))
        daemon.listen()
        found = findings(set_up, doctor.processes)
    assert found["claude-proxy"] == Finding("claude-proxy", "ok", "online for 2 hours, 0 restarts, 40 MB")
    assert SECRET not in f"{found}"


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"status": "errored"}, "fail", "port 8001 is taken by nc"),
        ({"status": "launching"}, "warn", "starting"),
        ({"restart_time": 7, "pm_uptime": time.time() * 1000}, "warn", "7 restarts"),
        ({"restart_time": 7}, "ok", "7 restarts"),
        ({"pm_exec_path": "/old/claude_proxy.py"}, "fail", "another copy: /old/claude_proxy.py"),
        ({"exec_interpreter": "/old/bin/python"}, "warn", "/old/bin/python"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": SECRET, "A": "1"}}, "warn", "PM2 has AWS_SECRET_ACCESS_KEY of a shell"),
        (
            {"env": {"SNOWFLAKE_PRIVATE_KEY_RAW": SECRET, "GITHUB_PAT": "1"}},
            "warn",
            "GITHUB_PAT, SNOWFLAKE_PRIVATE_KEY",
        ),
    ],
)
def test_a_process_that_is_not_well_is_named(set_up: SetUp, facts: dict[str, Any], state: str, words: str) -> None:
    logs = set_up.folder / "logs"
    logs.mkdir()
    (logs / "claude-proxy.log").write_text("2026-01-01T00:00:00: claude_proxy.py: port 8001 is taken by nc (pid 1)\n\n")
    row = pm2_row("claude-proxy", "claude_proxy.py", **facts)
    found = doctor.process("claude-proxy", row, look(set_up.environ, time.time()))
    assert (found.state, words in found.found, bool(found.mend)) == (state, True, state != "ok")
    assert SECRET not in f"{found}"


def test_a_process_that_pm2_does_not_know_is_named(healthy: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "pm2_processes", lambda _: ROWS[:1])
    found = findings(healthy, doctor.processes)
    assert (found["token-refresher"].state, found["claude-proxy"].state) == ("ok", "fail")
    assert found["claude-proxy"].mend == "make start"


def test_a_pm2_daemon_of_another_version_is_named_and_left_alone(healthy: SetUp) -> None:
    home = Path(healthy.environ["PM2_HOME"])
    home.mkdir(exist_ok=True)
    for version, state in (("6.0.8", "warn"), (doctor.pm2_version(healthy.environ), None)):
        with (home / "pm2.log").open("a") as log:
            log.write(f"2026-01-01T00:00:00: PM2 log: PM2 version          : {version}\n")
        found = findings(healthy, doctor.processes).get("PM2")
        assert (found.state if found else None) == state
        assert not found or ("6.0.8" in found.found and "pm2 update" in found.mend)


def test_the_demo_s_processes_are_found_under_their_own_names() -> None:
    row = pm2_row("demo-claude-proxy", "claude_proxy.py")
    assert doctor.find_process([ROWS[0], row], "claude-proxy") == row


def test_a_token_that_is_missing_or_dead_is_named_and_so_is_the_refresher_s_error(healthy: SetUp) -> None:
    later = look(healthy.environ, time.time() + 2 * 3600)
    (dead,) = doctor.token(later)
    assert (dead.state, "ended" in dead.found, "make start" in dead.mend) == ("fail", True, True)
    (healthy.folder / ".refresher.json").write_text(json.dumps({"last_error": "disk full.\nCheck with: df"}))
    healthy.config.unlink()
    found = findings(healthy, doctor.token)
    assert found["Token"].found == "there is none yet"
    assert (found["Refresher"].state, found["Refresher"].mend) == ("fail", "Check with: df")


@pytest.mark.parametrize("state", ["pristine", "patched", "moved"])
def test_the_patch_is_looked_for_in_the_code_that_runs(
    set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    installed = apply_patch._find()
    assert installed is not None
    source = apply_patch.without_block(installed.path.read_bytes())
    shipped = apply_patch.digest(source)
    if state == "patched":
        source = apply_patch.with_block(source, apply_patch.find_calls(source))
    elif state == "moved":
        source = source.replace(b"def astreaming", b"def other").replace(b"make_openai_chat_completion_request", b"ask")
        shipped = apply_patch.digest(source)
    copy = tmp_path / "openai.py"
    copy.write_bytes(source)
    monkeypatch.setattr(apply_patch, "_find", lambda: installed._replace(path=copy, shipped=shipped))
    (found,) = findings(set_up, doctor.patch).values()
    assert found.state == ("ok" if state == "patched" else "fail")
    assert bool(found.mend) == (state != "patched")


# ------------------------------------------------------------------------------------------------------------- proxy


def test_a_port_on_which_nothing_listens_is_named(set_up: SetUp) -> None:
    found = findings(set_up, doctor.proxy)
    assert (found["Port"].found, found["Port"].mend) == (f"nothing listens on 127.0.0.1:{set_up.port}", "make start")


def test_a_port_that_another_program_holds_is_named_with_its_owner(set_up: SetUp) -> None:
    with serving(http.server.HTTPServer(("127.0.0.1", set_up.port), Stranger)):
        found = findings(set_up, doctor.proxy)["Port"]
    assert (found.state, f"(pid {os.getpid()})" in found.found) == ("fail", True)
    assert "PROXY_PORT" in found.mend


def test_a_proxy_that_is_still_starting_is_no_fault(set_up: SetUp, tmp_path: Path) -> None:
    script = tmp_path / "claude_proxy.py"
    script.write_text(
        "import socket, time\n"
        f"listener = socket.create_server(('127.0.0.1', {set_up.port}))\n"
        "connection, _ = listener.accept()\nconnection.close()\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, script.name], cwd=tmp_path)
    try:
        # The list is empty until the process listens.
        found = wait_until(
            lambda: [one for one in findings(set_up, doctor.proxy).values() if "nothing" not in one.found]
        )[0]
    finally:
        process.kill()
        process.wait()
    assert (found.state, "does not answer yet" in found.found) == ("warn", True)


def test_a_key_that_the_running_proxy_does_not_take_is_named(healthy: SetUp) -> None:
    found = findings(healthy, doctor.proxy, LITELLM_MASTER_KEY=SECRET)["Key"]
    # PM2 does not hand it on to the proxy: starting anew would change nothing.
    assert (found.state, found.mend.startswith("unset LITELLM_MASTER_KEY")) == ("fail", True)
    assert SECRET not in found.found


def test_a_company_proxy_does_not_stand_before_our_own(healthy: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    assert {finding.state for finding in findings(healthy, doctor.proxy).values()} == {"ok"}


def test_a_proxy_that_others_can_reach_is_named(set_up: SetUp) -> None:
    with serving(FakeProxy(set_up.port, "-", address="0.0.0.0")):  # noqa: S104 - that is the fault
        if not doctor.reachable_from_outside(set_up.port):
            pytest.skip("this machine has no address but loopback")
        found = findings(set_up, doctor.proxy)["Address"]
    assert (found.state, "anybody in your network" in found.found) == ("fail", True)


# ------------------------------------------------------------------------------------------------------- Claude Code


def point(set_up: SetUp, **env: str) -> Finding:
    """What is said when the user's settings set these variables for Claude Code."""
    path = set_up.folder / ".claude" / "settings.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"env": env}))
    return findings(set_up, doctor.claude)["Goes to"]


def test_it_says_where_a_plain_claude_goes(set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(set_up, doctor.claude)["Goes to"].state == "ok"
    key = look(set_up.environ, time.time()).master_key
    ours = {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{set_up.port}/", "ANTHROPIC_AUTH_TOKEN": key}
    assert point(set_up, **ours) == Finding("Goes to", "ok", "the proxy")
    lost = point(set_up, **{**ours, "ANTHROPIC_AUTH_TOKEN": SECRET})
    assert (lost.state, lost.mend) == ("warn", "python3 point_claude.py")
    assert SECRET not in lost.found
    monkeypatch.setattr(point_claude, "MANAGED", tmp_path)
    (tmp_path / "managed-settings.json").write_text(json.dumps({"env": {"ANTHROPIC_BASE_URL": "https://g.example"}}))
    managed = point(set_up, **ours)
    assert (managed.state, "manages this machine" in managed.mend) == ("fail", True)


def test_a_settings_file_that_is_broken_is_named(
    set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude" / "settings.json").write_text("{broken")
    monkeypatch.chdir(tmp_path)
    found = findings(set_up, doctor.claude)["Settings"]
    assert (found.state, str(tmp_path) in found.found) == ("fail", True)


def test_claude_code_that_is_not_installed_is_named(
    set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "BUNDLE", tmp_path)
    found = findings(set_up, doctor.claude, PATH=str(tmp_path))["Version"]
    assert (found.state, found.mend) == ("fail", "make install")


# ------------------------------------------------------------------------------------------------------------ status


def test_the_status_screen_says_token_processes_last_error_and_how_to_go_on(healthy: SetUp) -> None:
    now = int(time.time())
    state = {"issued": now, "expires": now + 3600, "next_refresh": now + 3000, "account": ACCOUNT, "user": USER}
    (healthy.folder / ".refresher.json").write_text(json.dumps({**state, "key_fingerprint": "SHA256:x"}))
    (healthy.folder / "logs").mkdir()
    (healthy.folder / "logs" / "claude-proxy.log").write_text("ready\nerror 402 to Claude Code: budget\nready\n")
    screen, good = doctor.status(look(healthy.environ, now))
    assert good
    for words in (
        "60 minutes left",
        "next:",
        "online for 2 hours",
        "make claude",
    ):
        assert words in screen
    assert "last error: error 402 to Claude Code: budget" in screen
    assert SECRET not in screen


def test_the_status_of_a_set_up_that_does_not_run_points_to_the_doctor(set_up: SetUp) -> None:
    done = set_up.run("doctor.py", "--status")
    assert done.returncode == 1
    assert "make doctor" in done.stdout
    assert "none yet" in done.stdout


# ------------------------------------------------------------------- a route that refuses, with the real proxy


class Refusing(SetUp):
    """A running set-up whose Cortex refuses a field of Claude Code's on one of the routes, as its `.env` names it."""

    def refuse(self, field: str, env_file: str = "") -> None:
        """Cortex refuses this field from now on; `.env` holds these lines, and the proxy has taken them up."""
        self.stub.set_options(refused_fields=(field,))
        self.env_file.unlink(missing_ok=True)
        if env_file:
            self.env_file.write_text(env_file)
            self.env_file.chmod(0o600)
        wanted = "messages" if "messages" in env_file else "chat/completions"
        wait_until(lambda: self.path().endswith(wanted), 20)

    @property
    def env_file(self) -> Path:
        return self.folder / ".env"

    def path(self) -> str:
        """Where a request goes now."""
        before = len(self.stub.requests)
        self.ask("hello", "claude-haiku-4-5")
        return str(self.stub.requests[before]["path"])

    def at_a_terminal(self) -> Terminal:
        command = [sys.executable, str(BUNDLE / "doctor.py"), "--wait"]
        return Terminal(command, {**self.environ, "TERM": "dumb"}, cwd=self.folder, columns=200)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Refusing]:
    made = Refusing(tmp_path_factory.mktemp("refusing"))
    made.start("auto_refresh.py")
    made.start_proxy()
    yield made
    made.close()


ALL = "claude-haiku-4-5, claude-opus-4-7, claude-sonnet-4-6"
ALL_ANSWER = "claude-haiku-4-5, claude-opus-4-7 and claude-sonnet-4-6 on Snowflake Cortex answer.\n"
REFUSED_ON_CHAT = "claude-haiku-4-5: Cortex refuses `reasoning` on chat completions and takes it on the Messages API"
REFUSED_ON_MESSAGES = "claude-haiku-4-5: Cortex refuses `thinking` on the Messages API and takes it on chat completions"


@pytest.mark.real
def test_a_start_is_not_good_when_only_the_other_route_takes_claude_code_and_says_so_in_one_line(
    refusing: Refusing,
) -> None:
    refusing.refuse("reasoning")
    done = refusing.run("doctor.py", "--wait")
    line, where, remedy = done.stdout.splitlines()
    assert (done.returncode, line, remedy) == (1, f"{REFUSED_ON_CHAT}.", "CLAUDE_ROUTE=messages")
    assert str(refusing.env_file) in where
    assert not refusing.env_file.exists()
    # So does the doctor, of each model.
    found = json.loads(refusing.run("doctor.py", "--live", "--json").stdout)["findings"]
    asked = {finding["name"]: finding for finding in found if finding["group"] == "Models"}
    assert {finding["state"] for finding in asked.values()} == {"warn"}
    assert asked["openai/claude-haiku-4-5"]["found"] == REFUSED_ON_CHAT.partition(": ")[2]
    assert not TOKEN.search(done.stdout)


@pytest.mark.real
@pytest.mark.parametrize("answer", ["", "y"])
def test_yes_changes_the_route_and_the_start_ends_well(refusing: Refusing, answer: str) -> None:
    refusing.refuse("reasoning", "# mine\nexport OTHER='a b'\n")
    with refusing.at_a_terminal() as person:
        person.read_until("Switch to it? [Y/n] ")
        person.type(answer)
        assert person.finish() == 0, person.screen
    assert person.screen.count(REFUSED_ON_CHAT) == 1
    assert "Warning" not in person.screen
    assert person.screen.endswith(ALL_ANSWER)
    assert refusing.env_file.read_text() == "# mine\nexport OTHER='a b'\nCLAUDE_ROUTE=messages\n"
    assert stat.S_IMODE(refusing.env_file.stat().st_mode) == 0o600
    assert refusing.path().endswith("/messages")


@pytest.mark.real
def test_no_keeps_the_route_and_is_not_asked_again(refusing: Refusing) -> None:
    refusing.refuse("reasoning")
    with refusing.at_a_terminal() as person:
        person.read_until("Switch to it? [Y/n] ")
        person.type("n")
        assert person.finish() == 0, person.screen
    assert f"Warning: {ALL}: {REFUSED_ON_CHAT.partition(': ')[2]}" in person.screen
    assert person.screen.endswith(ALL_ANSWER)
    assert refusing.env_file.read_text().splitlines()[-1] == "CLAUDE_ROUTE=chat"
    assert stat.S_IMODE(refusing.env_file.stat().st_mode) == 0o600
    with refusing.at_a_terminal() as again:
        assert again.finish() == 0, again.screen
    assert "Switch" not in again.screen
    assert f"Warning: {ALL}: {REFUSED_ON_CHAT.partition(': ')[2]}" in again.screen


@pytest.mark.real
def test_a_route_that_the_user_has_chosen_is_kept_with_a_warning_the_other_way_round_too(refusing: Refusing) -> None:
    refusing.refuse("thinking", "CLAUDE_ROUTE=messages\n")
    done = refusing.run("doctor.py", "--wait")
    assert done.returncode == 0, done.stdout
    assert f"Warning: {ALL}: {REFUSED_ON_MESSAGES.partition(': ')[2]}\n" in done.stdout
    assert "\nCLAUDE_ROUTE=chat\n" in done.stdout
    assert refusing.env_file.read_text() == "CLAUDE_ROUTE=messages\n"
    in_the_shell = refusing.run("doctor.py", "--wait", CLAUDE_ROUTE="messages")
    assert "\nexport CLAUDE_ROUTE=chat\nmake stop start\n" in in_the_shell.stdout


@pytest.mark.real
def test_a_route_that_answers_nothing_at_all_is_no_good_start_also_where_it_is_kept(refusing: Refusing) -> None:
    refusing.refuse("max_completion_tokens")  # a field of chat completions that nothing can be sent without
    said = "on chat completions and takes that on the Messages API."
    with refusing.at_a_terminal() as person:
        person.read_until("Switch to it? [Y/n] ")
        person.type("maybe")
        person.read_until("[Y/n] maybe\nSwitch to it? [Y/n] ")
        person.type("\x04")
        assert person.finish() == 1
    assert said in person.screen
    assert person.screen.endswith("\nCLAUDE_ROUTE=messages\n")
    assert not refusing.env_file.exists()
    with refusing.at_a_terminal() as person:
        person.read_until("Switch to it? [Y/n] ")
        person.type("n")
        assert person.finish() == 1
    assert "So Claude Code gets no answer." in person.screen
    done = refusing.run("doctor.py", "--wait")  # asked once, and chosen: now it is one of the things that are wrong
    assert (done.returncode, "on Snowflake Cortex" in done.stdout) == (1, False)
    assert said.rstrip(".") in " ".join(done.stdout.split())


@pytest.mark.real
def test_a_start_is_not_good_when_both_routes_refuse_claude_code(refusing: Refusing) -> None:
    refusing.refuse("max_tokens", "CLAUDE_ROUTE=messages\n")  # a field that no request can do without
    refusing.stub.set_options(refused_fields=("max_tokens", "max_completion_tokens"))
    done = refusing.run("doctor.py", "--wait")
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "on the Messages API, and on chat completions: max_completion_tokens is not supported" in said
    assert "on Snowflake Cortex" not in said


WHOLE, IN_PART, NONE = (claude_check.Report(answers, "") for answers in ("whole", "in part", "no"))
BETTER, BETTER_THAN_NONE = (
    claude_check.Report(answers, "", "", claude_check.MESSAGES) for answers in ("in part", "no")
)


@pytest.mark.parametrize(
    ("reports", "model"),
    [
        ([BETTER, BETTER, BETTER], "a"),
        ([NONE, BETTER_THAN_NONE, BETTER], "b"),  # the first is not in the region
        ([BETTER, WHOLE], None),
        ([BETTER, IN_PART], None),
        ([NONE, NONE], None),
        ([WHOLE], None),
    ],
)
def test_the_other_route_is_offered_only_where_no_model_loses_by_it(
    reports: list[claude_check.Report], model: str | None
) -> None:
    found = doctor.better_for_all(dict(zip("abc", reports, strict=False)))
    assert found == ((model, claude_check.MESSAGES) if model else None)


@pytest.mark.real
def test_a_model_that_does_not_answer_is_named_at_the_start_and_is_no_reason_to_fail(refusing: Refusing) -> None:
    refusing.refuse("user", "CLAUDE_ROUTE=chat\n")  # which is never sent
    refusing.stub.missing_models = frozenset({"claude-opus-4-7"})
    try:
        done = refusing.run("doctor.py", "--wait")
    finally:
        refusing.stub.missing_models = frozenset()
    assert done.returncode == 0
    assert "Warning: claude-opus-4-7: Snowflake Cortex: model claude-opus-4-7 is not available" in done.stdout
    assert "CORTEX_ENABLED_CROSS_REGION" in done.stdout
    assert done.stdout.endswith("claude-haiku-4-5 and claude-sonnet-4-6 on Snowflake Cortex answer.\n")


def test_a_start_with_a_word_that_is_no_route_says_which_there_are(set_up: SetUp) -> None:
    done = set_up.run("doctor.py", "--wait", CLAUDE_ROUTE="snowflake")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("CLAUDE_ROUTE is 'snowflake'; it must be chat ")


def test_a_refresher_that_does_not_take_up_the_new_route_is_named(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set_up.run("auto_refresh.py", "--once").returncode == 0
    monkeypatch.setattr(doctor, "SWITCH_SECONDS", 0)
    setup = look(set_up.environ, time.time())
    assert not doctor.switched(setup, "snowflake/claude-haiku-4-5", "claude-haiku-*")
    assert "make stop start" in capsys.readouterr().out


def test_an_answer_that_still_came_by_the_old_route_is_not_the_last_word(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set_up.run("auto_refresh.py", "--once").returncode == 0
    whole = claude_check.Report("whole", "answers")
    coming = itertools.chain([claude_check.Report("in part", "the old one")], itertools.repeat(whole))
    monkeypatch.setattr(doctor, "check_model", lambda *_: next(coming))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    setup = look(set_up.environ, time.time())
    assert doctor.switched(setup, "openai/claude-haiku-4-5", "claude-haiku-*")
    assert capsys.readouterr().out == ALL_ANSWER


# -------------------------------------------------------------------------------------------------- with the real PM2


@pytest.mark.real
def test_the_real_bundle_under_the_real_pm2_is_all_green_and_every_model_answers(set_up: SetUp) -> None:
    pm2 = str(BUNDLE / "node_modules" / ".bin" / "pm2")
    try:
        started = set_up.run(pm2, "start", str(BUNDLE / "ecosystem.config.js"))
        assert started.returncode == 0, started.stdout + started.stderr
        done = set_up.run("doctor.py", "--live", "--json")
        wrong = [finding for finding in json.loads(done.stdout)["findings"] if finding["state"] != "ok"]
        assert (done.returncode, wrong) == (0, [])
        status = set_up.run("doctor.py", "--status")
        assert (status.returncode, status.stdout.count("online for")) == (0, 2)
        set_up.stub.fault("no_role")
        refused = json.loads(set_up.run("doctor.py", "--live", "--json").stdout)["findings"]
        assert {finding["state"] for finding in refused if finding["group"] == "Models"} == {"fail", "warn"}
        assert set_up.run(pm2, "stop", "token-refresher").returncode == 0
        stopped = json.loads(set_up.run("doctor.py", "--json").stdout)["findings"]
        assert [f["state"] for f in stopped if f["name"] == "token-refresher"] == ["fail"]
    finally:
        set_up.run(pm2, "kill")
