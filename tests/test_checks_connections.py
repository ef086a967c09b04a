"""bundle/checks/connections.py: Snowflake, the proxy and Claude Code, each fault with its remedy."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bundle import claude_settings, proof
from bundle.bootstrap import BUNDLE, make, script
from bundle.checks import connections
from bundle.checks.connections import claude, proxy, reachable_from_outside, snowflake, stand_ins
from bundle.checks.finding import Finding, read_installation
from bundle.cortex.errors import explain
from bundle.settings import load_settings, master_key
from bundle.tokens import fingerprint, register_statement
from tests.checked import SECRET, FakeProxy, Stranger, findings, serving
from tests.cortex_stub import FAULTS
from tests.ports import free_port
from tests.set_up import USER, SetUp, wait_until

pytestmark = pytest.mark.usefixtures("nobody_s_environment")


# ------------------------------------------------------------------------------------------------------------ Snowflake


def test_a_key_that_is_not_registered_is_named_with_the_statement_to_run(set_up: SetUp) -> None:
    set_up.stub.register_key(None)
    login = findings(set_up, snowflake)["Login"]
    assert login.state == "fail"
    assert register_statement(USER, set_up.key) in login.fix
    assert fingerprint(set_up.key) in login.fix
    (failure,) = set_up.stub.login_failures
    assert f"SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('{failure}');" in login.fix


@pytest.mark.parametrize("wrong", [{"SNOWFLAKE_ACCOUNT": "OTHER-ACCT"}, {"SNOWFLAKE_USER": "JOHN"}])
def test_a_wrong_account_or_user_is_named(set_up: SetUp, wrong: dict[str, str]) -> None:
    login = findings(set_up, snowflake, **wrong)["Login"]
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
    clock = findings(set_up, snowflake)["Clock"]
    assert clock.state == state
    assert words in clock.found
    assert ("ntp" in clock.fix) == (state != "ok")


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"not_in_region", "too_long"}))
def test_each_error_of_snowflake_is_named_with_its_remedy(set_up: SetUp, fault: str) -> None:
    status, body = FAULTS[fault]
    set_up.stub.fault(fault)
    login = findings(set_up, snowflake)["Login"]
    if status == 401:
        assert (login.state, "ALTER USER" in login.fix) == ("fail", True)
        return
    told = explain(status, json.dumps(body).replace("{model}", ""), BUNDLE)
    assert login.state == ("warn" if told.retry else "fail")
    assert f"{login.found}\n{login.fix}".strip() == told.message


@pytest.mark.parametrize(("status", "body"), [(200, "<html>log in</html>"), (404, '{"message": "Not Found"}')])
def test_a_server_that_is_not_cortex_is_named(set_up: SetUp, status: int, body: str) -> None:
    login = connections.login(status, body, read_installation(set_up.environ, 0).settings)
    assert (login.state, "is not Cortex" in login.found) == ("fail", True)


def test_a_host_that_does_not_answer_is_named(set_up: SetUp) -> None:
    set_up.stub.close_port()
    host = findings(set_up, snowflake)
    assert list(host) == ["Host"]
    assert (host["Host"].state, "firewall" in host["Host"].fix) == ("fail", True)


def test_a_host_that_does_not_exist_is_named(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    host = findings(set_up, snowflake, SNOWFLAKE_HOST="nowhere.snowflakecomputing.com")["Host"]
    assert (host.state, host.found) == ("fail", "there is no host nowhere.snowflakecomputing.com")
    assert "SNOWFLAKE_HOST" in host.fix


def test_a_certificate_of_a_company_s_own_is_named(set_up: SetUp, tmp_path: Path) -> None:
    with serving(tls_server(tmp_path)) as port:
        host = findings(set_up, snowflake, SNOWFLAKE_HOST=f"https://localhost:{port}")["Host"]
    assert (host.state, "certificate of localhost is not trusted" in host.found) == ("fail", True)
    assert "SSL_CERT_FILE" in host.fix


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
        host = findings(set_up, snowflake, SNOWFLAKE_HOST="https://acct.snowflakecomputing.com")["Host"]
    assert (host.state, where in host.found) == ("fail", True)
    assert "NO_PROXY=acct.snowflakecomputing.com" in host.fix
    assert "hunter2" not in f"{host}"


def test_a_company_proxy_does_not_count_for_a_host_that_is_excepted(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert findings(set_up, snowflake)["Host"].found == "127.0.0.1 answers directly"


def test_without_a_key_the_way_to_snowflake_is_still_looked_at(set_up: SetUp) -> None:
    set_up.key_path.unlink()
    found = findings(set_up, snowflake)
    assert {name: finding.state for name, finding in found.items()} == {"Host": "ok", "Clock": "ok", "Login": "skip"}


# ---------------------------------------------------------------------------------------------------------------- proxy


def test_a_port_on_which_nothing_listens_is_named(set_up: SetUp) -> None:
    found = findings(set_up, proxy)
    listener = found["Listener"]
    assert (listener.found, listener.fix) == (f"nothing listens on 127.0.0.1:{set_up.port}", make("start"))


def test_a_port_that_another_program_holds_is_named_with_its_owner(set_up: SetUp) -> None:
    with serving(http.server.HTTPServer(("127.0.0.1", set_up.port), Stranger)):
        found = findings(set_up, proxy)["Port"]
    assert (found.state, f"(pid {os.getpid()})" in found.found) == ("fail", True)
    assert "PROXY_PORT" in found.fix


def test_a_proxy_that_is_still_starting_is_no_fault(set_up: SetUp, tmp_path: Path) -> None:
    script = tmp_path / "claude_proxy.py"
    script.write_text(
        "import socket, time\n"
        f"listener = socket.create_server(('127.0.0.1', {set_up.port}))\n"
        "connection, _ = listener.accept()\nconnection.close()\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, script.name], cwd=tmp_path)
    try:
        # Until the process listens, nothing is found.
        found = wait_until(lambda: [one for one in findings(set_up, proxy).values() if "nothing" not in one.found])[0]
    finally:
        process.kill()
        process.wait()
    assert (found.state, "does not answer yet" in found.found) == ("warn", True)


def test_a_key_that_the_running_proxy_does_not_take_is_named(healthy: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "port_owner", lambda _: "python claude_proxy.py (pid 1)")
    assert findings(healthy, proxy)["Key"].state == "ok"
    found = findings(healthy, proxy, LITELLM_MASTER_KEY=SECRET)["Key"]
    # PM2 does not pass this variable to the proxy, so a new start would not help.
    assert (found.state, found.fix.startswith("unset LITELLM_MASTER_KEY")) == ("fail", True)
    assert SECRET not in found.found


def test_a_company_proxy_does_not_stand_before_our_own(healthy: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    assert {finding.state for finding in findings(healthy, proxy).values()} == {"ok"}


def test_a_proxy_that_others_can_reach_is_named(set_up: SetUp) -> None:
    set_up.refresh()
    with serving(FakeProxy(set_up.port, set_up.master_key, address="0.0.0.0")):  # noqa: S104 - that is the fault
        if not reachable_from_outside(set_up.port):
            pytest.skip("this machine has no address but loopback")
        found = findings(set_up, proxy)["Address"]
    assert (found.state, "anybody in your network" in found.found) == ("fail", True)


# ---------------------------------------------------------------------------------------------------------- Claude Code


def point(set_up: SetUp, **env: str) -> Finding:
    """Let the user's settings set these variables for Claude Code, and return the finding."""
    path = set_up.folder / ".claude" / "settings.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"env": env}))
    return findings(set_up, claude)["Goes to"]


def test_it_says_where_a_plain_claude_goes(set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(set_up, claude)["Goes to"].state == "ok"
    key = master_key(load_settings(set_up.environ))
    ours = {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{set_up.port}/", "ANTHROPIC_AUTH_TOKEN": key}
    assert point(set_up, **ours) == Finding("Goes to", "ok", "the proxy")
    lost = point(set_up, **{**ours, "ANTHROPIC_AUTH_TOKEN": SECRET})
    assert (lost.state, lost.fix) == ("warn", script("point_claude.py"))
    assert SECRET not in lost.found
    monkeypatch.setattr(claude_settings, "MANAGED", tmp_path)
    (tmp_path / "managed-settings.json").write_text(json.dumps({"env": {"ANTHROPIC_BASE_URL": "https://g.example"}}))
    managed = point(set_up, **ours)
    assert (managed.state, "manages this machine" in managed.fix) == ("fail", True)


def test_a_settings_file_that_is_broken_is_named(
    set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude" / "settings.json").write_text("{broken")
    monkeypatch.chdir(tmp_path)
    found = findings(set_up, claude)["Settings"]
    assert (found.state, str(tmp_path) in found.found) == ("fail", True)


def test_claude_code_that_is_not_installed_is_named(
    set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUNDLE", tmp_path)
    found = findings(set_up, claude, PATH=str(tmp_path))["Version"]
    assert (found.state, found.fix) == ("fail", make("install"))


def test_an_older_model_that_answers_in_place_of_a_refused_one_is_named(set_up: SetUp) -> None:
    set_up.refresh()
    server = FakeProxy(set_up.port, set_up.master_key)
    assert not stand_ins(read_installation(set_up.environ, time.time())), "without a proxy nothing is known"
    server.answering = {"claude-opus-latest": "claude-opus-4-8", "claude-sonnet-latest": "", "claude-haiku-latest": ""}
    server.answering |= {"claude-latest": "claude-sonnet-5", "claude-haiku-latest": "claude-haiku-4-5"}
    with serving(server):
        said = stand_ins(read_installation(set_up.environ, time.time()))
        found = [
            finding for finding in proxy(read_installation(set_up.environ, time.time())) if finding.name == "Model"
        ]
        status = set_up.run("doctor.py", "--status").stdout
    assert said == [
        "claude-opus-*: claude-opus-4-8 answers, because Cortex has refused claude-opus-5",
        "claude-sonnet-*: no model answers. Cortex has refused claude-sonnet-5 and all older ones",
    ]
    assert [(finding.state, finding.found) for finding in found] == [("warn", sentence) for sentence in said]
    assert f"warning:  {said[0]}" in status


def test_a_start_model_that_no_row_answers_for_is_a_fault_of_doctor_and_stops_a_start(set_up: SetUp) -> None:
    found = findings(set_up, claude, CLAUDE_START_MODEL="opsu")["Settings"]
    assert (found.state, found.found.startswith("CLAUDE_START_MODEL is 'opsu'")) == ("fail", True)
    done = set_up.run("start.py", CLAUDE_START_MODEL="opsu")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("start.py: CLAUDE_START_MODEL is 'opsu'")
    assert not (set_up.folder / "pm2").exists()
