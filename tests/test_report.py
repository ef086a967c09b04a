"""`make report`: a file that helps, and that names nobody."""

from __future__ import annotations

import getpass
import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import report as script
from bundle.checks import report as doctor
from bundle.checks.finding import Finding, read_installation
from bundle.report import LINE, LINES, account_names, assigned, safe, without_prompts
from bundle.settings import NAMES
from tests.set_up import BUNDLE, SetUp
from tests.terminal import Terminal
from tests.user import put

pytestmark = pytest.mark.usefixtures("nobody_s_environment")

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJBQ01FIn0.c2lnbmF0dXJl"
ID = "01b2c3d4-0102-4abc-8def-0123456789ab"
PEM_LINE = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
# Each kind of secret, with the text that is planted and the words that must not be in the file.
PLANTED = {
    "account": ("acmeorg-prod_eu", ["acmeorg", "prod_eu", "prod-eu"]),
    "user": ("wanda.smith", ["wanda", "smith"]),
    "host": ("cortex.acme-net.invalid", ["acme-net"]),
    "key file": ("~/hidden-vault/flake.p8", ["hidden-vault", "flake.p8"]),
    "passphrase": ("open  se%same/1'2\"3", ["sesame", "se%same", "se%25same"]),
    "master key": ("a master key of words 42", ["master key of words", "of%20words"]),
    "warehouse": ("WINE_WH", ["wine_wh"]),
    "token": (TOKEN, TOKEN.split(".")),
    "fingerprint": ("SHA256:dGhpcyBpcyBhIGZpbmdlcnByaW50IG9mIGEga2V5IQ=", ["dGhpcyBp"]),
    "key": (f"-----BEGIN PRIVATE KEY-----\n{PEM_LINE}\nshortEnd==\n-----END PRIVATE KEY-----", [PEM_LINE, "shortEnd"]),
    "e-mail": ("wendy@mail.example.org", ["wendy", "mail.example"]),
    "id": (ID, [ID]),
    "request": ("req_011CSHoEeqs5C35K2UUqR7Fy", ["011CSHo"]),
    "another host": ("umbrella-x1.eu-west-1.snowflakecomputing.com", ["umbrella"]),
    "folder of another program": ("/srv/skunkworks/plans.txt", ["skunkworks"]),
    "folder with a space": ("'/data/big plan/x'", ["big plan"]),
    "machine": ("wopr-17.lan.invalid", ["wopr-17"]),
    "login": ("zaphod", ["zaphod"]),
    "company proxy": ("http://trillian:h2g2-pw@gate.megadodo.invalid:3128", ["trillian", "h2g2", "megadodo"]),
    "address": ("10.11.12.13", ["10.11.12.13"]),
    "address of IPv6": ("2001:db8::17", ["2001:db8"]),
    "unknown variable": ("fourty-two-secrets", ["fourty"]),
    "prompt": ('{"content": "launch the rocket at dawn"}', ["rocket", "dawn"]),
}
HELPS = (
    "2026-11-25T10:00:00: ready on http://127.0.0.1:8001",
    "POST /v1/messages 429",
    'File "/usr/lib/python3.11/ssl.py"',
)


def plant(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a set-up that holds each secret: in `.env`, connections, logs, state and doctor's findings."""
    text = {kind: planted for kind, (planted, _) in PLANTED.items()}
    folder = set_up.folder
    put(
        folder / ".env",
        f"SNOWFLAKE_ACCOUNT={text['account']}\nexport SNOWFLAKE_USER='{text['user']}'\n"
        f"SNOWFLAKE_HOST={text['host']}\nSNOWFLAKE_PRIVATE_KEY_PATH={text['key file']}\n"
        f"PRIVATE_KEY_PASSPHRASE={text['passphrase']}\nCLAUDE_ROUTE=messages\n"
        f"SOMETHING={text['unknown variable']}\n",
    )
    put(folder / ".snowflake" / "connections.toml", f'[default]\nwarehouse = "{text["warehouse"]}"\n')
    put(folder / ".master_key", text["master key"])
    monkeypatch.setattr(socket, "gethostname", lambda: text["machine"])
    monkeypatch.setattr(getpass, "getuser", lambda: text["login"])
    lines = [f"error 400: {each} and {each!r}" for each in text.values()]
    lines += [f"{text[kind].upper()}" for kind in ("account", "user", "host", "warehouse", "machine", "login")]
    lines += [
        f"2026-11-25T10:00:00: Snowflake Cortex: invalid content: launch the rocket at dawn, by {text['login']}",
        f"see {folder}/x, {BUNDLE}/y, {str(folder).replace('/', '-')} and {str(folder).replace('/', '%2F')}",
        "https://app.snowflake.com/acmeorg/prod_eu/worksheets and ACMEORG.PROD-EU, prod-eu.snowflakecomputing.com",
        "a%20master%20key%20of%20words%2042 open se%25same%2F1%272%223",
    ]
    for name in ("token-refresher", "claude-proxy"):
        put(folder / "logs" / f"{name}.log", "\n".join([*lines, *HELPS]))
    findings = [Finding("x", "fail", each, f"fix {each}", "Planted") for each in text.values()]
    monkeypatch.setattr(doctor, "CHECKS", {**doctor.CHECKS, "Planted": (lambda _: iter(findings),)})
    kept = {name: value for name, value in set_up.environ.items() if not name.startswith("SNOWFLAKE_")}
    return {**kept, "HTTPS_PROXY": text["company proxy"], "LITELLM_MASTER_KEY": text["master key"]}


def planted_in(text: str, set_up: SetUp) -> list[str]:
    words = [word for _, words in PLANTED.values() for word in words]
    words += [str(set_up.folder), str(BUNDLE), set_up.folder.name]
    return [word for word in words if word.lower() in text.lower()]


def test_nothing_that_is_private_is_in_the_file(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    text = script.report(read_installation(plant(set_up, monkeypatch), time.time()))
    assert planted_in(text, set_up) == []
    for helps in ("LiteLLM     1.", "Planted", "[account]", "[user]", "SNOWFLAKE_USER ", "CLAUDE_ROUTE", *HELPS):
        assert helps in text
    assert re.search(r"CLAUDE_ROUTE +set in .env: messages\n", text)
    assert re.search(rf"PROXY_PORT +set in the environment: {set_up.port}\n", text)
    assert re.search(r"PRIVATE_KEY_PASSPHRASE +set in .env\n", text)


def test_it_names_each_setting_and_holds_nothing_of_the_ledger(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = plant(set_up, monkeypatch)
    with (set_up.folder / ".env").open("a") as file:
        file.write("LEDGER=on\nBUDGET_USD_PER_DAY=2.50\nLOG_REQUESTS=hunter2\n")
    put(set_up.folder / "ledger" / "2026-11.jsonl", '{"session":"a-session","asked":"claude-opus-9-9"}\n')
    put(set_up.folder / ".spent.json", '{"sessions":{"a-session":{}}}')
    text = script.report(read_installation(environ, time.time()))
    assert [name for name in NAMES if not re.search(rf"^{name} ", text, re.MULTILINE)] == []
    assert re.search(r"LEDGER +set in .env: on\n", text)
    assert re.search(r"BUDGET_USD_PER_DAY +set in .env: 2.50\n", text)
    assert re.search(r"LOG_REQUESTS +set in .env\n", text)
    assert not re.search("a-session|opus-9-9|hunter2", text)


def test_nothing_private_is_in_it_either_if_the_settings_are_not_valid(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = plant(set_up, monkeypatch)
    env_file = set_up.folder / ".env"
    put(env_file, f"{env_file.read_text()}PROXY_PORT=swordfish7\npasted-into-env\n", mode=0o644)
    put(
        set_up.folder / ".snowflake" / "connections.toml",
        f'a b c\n[home-of-acme]\nwarehouse = {PLANTED["warehouse"][0]}\nuser = "ford',
    )
    with (set_up.folder / "logs" / "claude-proxy.log").open("a") as log:
        log.write("\nswordfish7 and pasted-into-env of home-of-acme, by ford")
    del environ["PROXY_PORT"]
    text = script.report(read_installation(environ, time.time()))
    assert planted_in(text, set_up) == []
    assert not re.search("swordfish7|pasted|home-of-acme|ford", text)
    assert "The settings are not valid" in text


def test_it_is_made_without_settings_without_pm2_and_without_logs(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path)}
    command = [sys.executable, str(BUNDLE / "report.py")]
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, (tmp_path / "cortex-report.md").exists()) == (1, False)
    assert done.stdout.count("There is no log.") == 2
    assert "FAIL Account: no Snowflake account and user configured" in done.stdout
    assert str(tmp_path) not in done.stdout
    assert "there is no terminal to ask" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    done = subprocess.run([*command, "--yes"], env=environ, capture_output=True, text=True, check=True)
    path = tmp_path / "cortex-report.md"
    assert done.stdout == f"{path.read_text()}\nWritten: {path}\n{done.stdout.splitlines()[-1]}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("answer", "written"), [("", True), ("n", False)])
def test_at_a_terminal_the_text_is_shown_before_the_question(tmp_path: Path, answer: str, written: bool) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path)}
    path = tmp_path / "cortex-report.md"
    with Terminal([sys.executable, str(BUNDLE / "report.py")], environ) as terminal:
        terminal.read_until("? [Y/n] ")
        assert "## Doctor" in terminal.screen.partition(f"Write it to {path}? [Y/n] ")[0]
        assert not path.exists()
        terminal.type(answer)
        assert terminal.finish() == 0
        assert path.exists() == written
        assert ("Written: " if written else "Nothing was written.") in terminal.screen


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[32mok\x1b[0m", "ok"),
        ("10:00: bGFzdA==\n10:00: -----END PRIVATE KEY-----\nnext", "[key]\nnext"),
        ("key SHA256:abc+/d=, sk-abcdef123", "key [fingerprint], [key]"),
        ("Authorization: Bearer opaque.1-2_3", "Authorization: Bearer [token]"),
        ("password=hunter2 api_key='x' max_tokens=5", "password=[secret] api_key='[secret]' max_tokens=5"),
        ("via http://ford:prefect@127.0.0.1:1/", "via http://127.0.0.1:1/"),
        ("https://app.snowflake.com/x/y/#/home", "https://app.snowflake.com/[account]"),
        ("{'request_id': 'abc-1'}, 0123456789abcdef01234567", "{'request_id': '[id]'}, [id]"),
        (f"{'aB/' * 14} {'aB1_' * 10}", "[key] [key]"),
        (
            "in ~/secret/x, file:///home/x and /x; ~/.ssh/snowflake_key.p8",
            "in [path], [path] and [path]; ~/.ssh/snowflake_key.p8",
        ),
        ("192.168.1.2:80, [fe80::1]:80, 127.0.0.1, [::1]", "[address]:80, [[address]]:80, 127.0.0.1, [::1]"),
        ("```", "'''"),
    ],
)
def test_what_looks_private_is_taken_out(text: str, shown: str) -> None:
    assert safe(text, {}) == shown


def test_a_short_name_costs_no_letters_of_other_words() -> None:
    text = "a user called A ran: make start, at a_b and \\na"
    assert safe(text, {"a": "user"}) == "[user] user called [user] ran: make start, at [user]_b and \\n[user]"
    assert safe("the user has a [key]", {"user": "user", "key": "account"}) == "the [user] has a [[account]]"


def test_of_two_values_the_longer_one_goes_first() -> None:
    private = {"jane": "user", "/home/jane": "home", "/home/jane/my work": "bundle"}
    assert safe("/home/jane/my work/x /home/jane/z jane", private) == "[bundle]/x [path] [user]"


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("MYORG-MY_ACCT", {"MYORG", "MY_ACCT"}),
        ("https://app.snowflake.com/myorg/acct/#/home", {"myorg", "acct"}),
        ("https://myorg-acct.snowflakecomputing.com", {"myorg-acct", "myorg", "acct"}),
        ("xy12345.eu-central-1.aws", {"xy12345"}),
    ],
)
def test_an_account_is_also_known_by_its_parts(written: str, parts: set[str]) -> None:
    found = account_names(written)
    assert {written, *parts} <= found
    assert not found & {"eu", "https", "com", "snowflake"}


def test_what_helps_stays() -> None:
    for text in (
        "POST /v1/messages?beta=true HTTP/1.1 from 127.0.0.1:51234 at 12:41:05, ::1",
        "/usr/lib/python3.11/site.py and [bundle]/bundle/proxy/server.py, line 17",
        "  429 too many requests; trying again in 1.5 s. Pick: /model",
        "claude-sonnet-4-5-20250929 with LiteLLM 1.106.2; max_tokens=100",
    ):
        assert safe(text, {}) == text
    known = {"invalid", "content"}
    assert without_prompts("Snowflake Cortex: 400 invalid my rocket content", known) == (
        "Snowflake Cortex: 400 invalid … content"
    )


def test_lines_of_any_setting_are_read_also_where_the_file_is_not_valid() -> None:
    text = "export A = 'b c' # d\nE: f\n# G=h\n[connections.i]\nj\n"
    assert set(assigned(text)) >= {("A", "b c"), ("E", "f"), ("", "i"), ("", "j")}
    assert "h" not in {value for _, value in assigned(text)}


def test_the_end_of_a_log_is_enough(tmp_path: Path) -> None:
    put(tmp_path / "logs" / "claude-proxy.log", "\n".join(f"line {number}" for number in range(100_000)))
    lines = script.logs(tmp_path)["The last lines of claude-proxy"].splitlines()
    assert (len(lines), lines[-1]) == (LINES, "line 99999")
    assert len(safe("word " * 10_000, {})) <= LINE + 1


def test_a_long_line_costs_no_time() -> None:
    private = {f"value-{number}": "setting" for number in range(50)}
    for text in ("a" * 40_000, "a." * 20_000, "/" * 40_000, "-----BEGIN " * 4_000, "a@" * 20_000, "1:" * 20_000):
        started = time.monotonic()
        safe(without_prompts(text, set()), private)
        assert time.monotonic() - started < 5
