"""bundle/network.py: requests reach Snowflake whatever the variables say, or one message names the variable."""

from __future__ import annotations

import os

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.checks.connections import snowflake
from bundle.errors import ConfigError
from bundle.network import company_proxy, make_readable, proxy_for
from tests.checked import findings
from tests.company_proxy import CompanyProxy
from tests.set_up import SetUp, wait_until

CORTEX = "https://acct.snowflakecomputing.com"
ENTRIES = st.sampled_from(
    [
        "localhost",
        "127.0.0.1",
        "::1",
        "::1/128",
        "[::1]",
        "fe80::/10",
        "10.0.0.0/8",
        "fe80::1%eth0",
        "*.corp",
        "<local>",
        "*",
    ]
)

pytestmark = pytest.mark.usefixtures("nobody_s_environment")


@given(st.lists(ENTRIES | st.text(max_size=8)))
def test_no_entry_of_no_proxy_can_end_the_proxy(entries: list[str]) -> None:
    text = ",".join(entries).replace("\0", "").encode("utf-8", "replace").decode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NO_PROXY", text)
        patched.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        make_readable(os.environ, CORTEX)
        httpx.Client(verify=False).close()  # noqa: S501 - asks nobody; certificates take long to read


def test_what_no_proxy_excepts_stays_excepted() -> None:
    environ = {"no_proxy": " localhost, 127.0.0.1,::1/128,fe80::/10,[::1],10.0.0.0/8,.corp.example,host:8080"}
    make_readable(environ, CORTEX)
    assert environ == {"no_proxy": "localhost,127.0.0.1,::1,::1,10.0.0.0/8,.corp.example,host:8080"}


@pytest.mark.parametrize(
    ("value", "used"),
    [
        ("socks://127.0.0.1:1080/", "socks5://127.0.0.1:1080/"),
        ("socks5h://jane:p@[::1]:1080", "socks5h://jane:p@[::1]:1080"),
        ("SOCKS5://proxy.corp", "socks5://proxy.corp"),
        ("proxy.corp:3128", "http://proxy.corp:3128"),
    ],
)
def test_every_usual_form_of_a_proxy_is_read(monkeypatch: pytest.MonkeyPatch, value: str, used: str) -> None:
    monkeypatch.setenv("all_proxy", value)
    assert proxy_for(CORTEX) == used
    environ = {"all_proxy": value}
    make_readable(environ, CORTEX)
    assert environ["all_proxy"] == used
    assert ("DISABLE_AIOHTTP_TRANSPORT" in environ) == used.startswith("socks")
    httpx.Proxy(used)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("socks4://jane:hunter2@127.0.0.1:1080", "HTTPS_PROXY names a SOCKS 4 proxy (127.0.0.1:1080)"),
        ("http://jane:hunter2@proxy.corp:99999", "HTTPS_PROXY is not the address of a proxy: http://proxy.corp:99999"),
        ("ftp://proxy.corp", "HTTPS_PROXY is not the address of a proxy: ftp://proxy.corp"),
        ("http://", "HTTPS_PROXY is not the address of a proxy: http://"),
        ("http://proxy corp:3128", "HTTPS_PROXY is not the address of a proxy: http://proxy corp:3128"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, value: str, says: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ConfigError) as refused:
        make_readable({"HTTPS_PROXY": value}, CORTEX)
    assert str(refused.value).splitlines()[0].startswith(says)
    assert "unset HTTPS_PROXY" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_proxy_that_no_request_needs_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"HTTPS_PROXY": "http://proxy.corp:3128", "ALL_PROXY": "socks4://127.0.0.1:1080", "http_proxy": "?"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    make_readable(environ, CORTEX)
    assert environ == {"HTTPS_PROXY": "http://proxy.corp:3128"}
    monkeypatch.setenv("NO_PROXY", "snowflakecomputing.com")
    assert (proxy_for(CORTEX), company_proxy(CORTEX)) == ("", "")


@pytest.mark.parametrize(
    ("name", "scheme"), [("HTTPS_PROXY", "http"), ("ALL_PROXY", "socks"), ("all_proxy", "socks5h")]
)
def test_the_tools_reach_snowflake_through_every_kind_of_proxy(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    with CompanyProxy() as company:
        monkeypatch.setenv(name, f"{scheme}://127.0.0.1:{company.port}")
        monkeypatch.setenv("NO_PROXY", "localhost,::1/128,fe80::/10")
        # (The stand-in has no TLS: the proxy has passed the request on, and that is what counts here.)
        host = findings(set_up, snowflake, SNOWFLAKE_HOST=f"https://cortex.example:{set_up.stub.port}")["Host"]
        assert company.targets == [f"cortex.example:{set_up.stub.port}"]
    assert "cortex.example" in host.found


def test_a_proxy_that_the_tools_cannot_use_is_named_by_doctor_and_usage(set_up: SetUp) -> None:
    set_up.environ |= {"SNOWFLAKE_HOST": "https://cortex.example", "ALL_PROXY": "socks4a://127.0.0.1:1080"}
    for script in ("doctor.py", "usage.py"):
        done = set_up.run(script)
        assert done.returncode != 0
        assert "ALL_PROXY names a SOCKS 4 proxy (127.0.0.1:1080)" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.real
def test_the_proxy_answers_on_both_routes_whatever_the_variables_of_a_company_say(set_up: SetUp) -> None:
    with CompanyProxy() as company:
        socks, http = f"socks://127.0.0.1:{company.port}", f"127.0.0.1:{company.port}"
        for environ in (
            {"ALL_PROXY": socks, "NO_PROXY": "localhost,::1/128,[::1],fe80::/10,<local>"},
            {"HTTP_PROXY": http, "ALL_PROXY": "socks4://127.0.0.1:1", "no_proxy": "localhost,::1/128"},
        ):
            company.targets.clear()
            set_up.environ["CLAUDE_ROUTE"] = "chat"
            set_up.refresh()
            set_up.start_proxy(**environ)
            for route in ("chat", "messages"):
                if route == "messages":
                    set_up.environ["CLAUDE_ROUTE"], log = route, set_up.log("claude_proxy.py").count("models: ")
                    set_up.refresh()
                    wait_until(lambda: set_up.log("claude_proxy.py").count("models: ") > log, 20)  # noqa: B023
                for stream in (False, True):
                    answer = set_up.ask("hello", "claude-sonnet-4-6", stream=stream)
                    assert answer.status_code == 200, answer.text
                    assert set_up.stub.requests[-1]["route"] == route
                set_up.stub.close_port()
                message = set_up.ask("hello", "claude-sonnet-4-6").json()["error"]["message"]
                assert "Snowflake Cortex cannot be reached, or broke off" in message
                set_up.stub.open_port()
            set_up.stop("claude_proxy.py")
            assert set(company.targets) == {f"127.0.0.1:{set_up.stub.port}"}


@pytest.mark.real
def test_a_proxy_that_cannot_be_used_ends_the_start_with_one_message(set_up: SetUp) -> None:
    done = set_up.run("claude_proxy.py", ALL_PROXY="socks4://127.0.0.1:1080")
    assert done.returncode == 78
    assert done.stderr.startswith("claude_proxy.py: ALL_PROXY names a SOCKS 4 proxy (127.0.0.1:1080).")
    assert "Traceback" not in done.stderr
