"""The key pair or a programmatic access token: which one is used, what is refused, and where the token never shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.checks.finding import read_installation
from bundle.credential import KEY_PAIR, PAT, TOKEN_TYPE
from bundle.errors import LINE, ConfigError, clean, printable
from bundle.private import private_values
from bundle.report import safe
from bundle.settings import load_settings
from bundle.tokens import token_now
from tests.cortex_stub import CHAT, MESSAGES, STATEMENTS
from tests.set_up import SetUp, pem, public_pem
from tests.user import KEY, new_pat, put

TOKEN = new_pat()


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Somebody without a key: account and user are all that is set."""
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {"HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path)}
    return {**names, "SNOWFLAKE_ACCOUNT": "myorg-myacct", "SNOWFLAKE_USER": "jane"}


def used(environ: dict[str, str]) -> tuple[str, str]:
    """(type, value) of the token that is sent; the value of a signed one is left out."""
    token = token_now(load_settings(environ), time.time())
    return token.kind, token.value if token.kind == PAT else ""


# ---------------------------------------------------------------------------------------------------- which one is used


def test_a_key_that_is_there_or_named_counts_before_a_token_and_the_note_says_how_to_choose(
    alone: dict[str, str], tmp_path: Path
) -> None:
    env_file = put(tmp_path / ".env", f"SNOWFLAKE_PAT='{TOKEN}'\n")
    assert used(alone) == (PAT, TOKEN)
    assert load_settings(alone).pat_note == ""
    key = put(tmp_path / ".ssh" / "snowflake_key.p8", pem(KEY))
    assert used(alone) == (KEY_PAIR, "")
    note = load_settings(alone).pat_note
    assert note.startswith(f"SNOWFLAKE_PAT in {env_file} is not used, because there is a private key: {key}.\n")
    command = note.partition("key pair: ")[2]
    assert command == f"mv -n {key} {key}.old"
    key.rename(f"{key}.old")
    assert used(alone) == (PAT, TOKEN)

    named = {**alone, "SNOWFLAKE_PRIVATE_KEY_PATH": f"{key}.old"}
    assert used(named) == (KEY_PAIR, "")
    assert load_settings(named).pat_note.endswith("remove SNOWFLAKE_PRIVATE_KEY_PATH in the environment")
    with pytest.raises(ConfigError, match="there is no private key at /no/such"):
        used({**alone, "SNOWFLAKE_PRIVATE_KEY_PATH": "/no/such"})


def test_a_token_is_looked_for_in_env_then_in_its_file_then_in_the_connection_then_in_the_shell(
    alone: dict[str, str], tmp_path: Path
) -> None:
    in_file, in_connection, in_shell = new_pat(), new_pat(), new_pat()
    alone |= {"SNOWFLAKE_PAT": in_shell}
    assert used(alone) == (PAT, in_shell)
    account = 'account = "myorg-myacct"\nuser = "jane"\n'
    put(
        tmp_path / ".snowflake" / "connections.toml",
        f'[default]\n{account}authenticator = "PROGRAMMATIC_ACCESS_TOKEN"\ntoken = "{in_connection}"\n',
    )
    assert used(alone) == (PAT, in_connection)
    alone |= {"SNOWFLAKE_PAT_FILE": str(put(tmp_path / "token", f"{in_file}\n"))}
    assert used(alone) == (PAT, in_file)
    put(tmp_path / ".env", f"SNOWFLAKE_PAT='{TOKEN}'\n")
    assert used(alone) == (PAT, TOKEN), "the shell comes last: PM2 does not give its secrets to the processes"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('authenticator = "PROGRAMMATIC_ACCESS_TOKEN"\ntoken = "{token}"', PAT),
        ('authenticator = "programmatic_access_token"\npassword = "{token}"', PAT),
        ('authenticator = "PROGRAMMATIC_ACCESS_TOKEN"\ntoken_file_path = "{file}"\ntoken = "another"', PAT),
        ('authenticator = "SNOWFLAKE_JWT"\nprivate_key_file = "{key}"\ntoken = "{token}"', KEY_PAIR),
        ('authenticator = "PROGRAMMATIC_ACCESS_TOKEN"\nprivate_key_file = "{key}"\ntoken = "{token}"', KEY_PAIR),
        ('authenticator = "oauth"\ntoken = "{token}"', "no private key"),
        ('password = "{token}"', "no private key"),
    ],
)
def test_a_connection_is_read_as_snowflake_s_own_tools_read_it(
    alone: dict[str, str], tmp_path: Path, table: str, expected: str
) -> None:
    file, key = put(tmp_path / "token", f"{TOKEN}\n"), put(tmp_path / "key.p8", pem(KEY))
    head = '[default]\naccount = "myorg-myacct"\nuser = "jane"\n'
    put(tmp_path / ".snowflake" / "connections.toml", head + table.format(token=TOKEN, file=file, key=key))
    if expected == "no private key":
        with pytest.raises(ConfigError, match=expected):
            used(alone)
    else:
        assert used(alone) == (expected, TOKEN if expected == PAT else "")


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.keeps("private-key")
def test_a_token_that_others_can_read_is_refused_with_the_chmod_that_fixes_it(
    alone: dict[str, str], tmp_path: Path
) -> None:
    file = put(tmp_path / "token", TOKEN, 0o640)
    with pytest.raises(ConfigError, match=rf"other users can read the file {file}.*\n.*chmod 600 {file}"):
        used({**alone, "SNOWFLAKE_PAT_FILE": str(file)})
    table = f'[default]\naccount = "myorg-myacct"\nuser = "jane"\nauthenticator = "{PAT}"\ntoken = "{TOKEN}"\n'
    toml = put(tmp_path / ".snowflake" / "connections.toml", table, 0o644)
    with pytest.raises(ConfigError, match=rf"chmod 600 {toml}"):
        used(alone)
    put(tmp_path / ".env", f"SNOWFLAKE_PAT={TOKEN}\n", 0o604)
    with pytest.raises(ConfigError, match=rf"holds a secret and other users can read it.\n.*chmod 600 {tmp_path}"):
        load_settings(alone)


@pytest.mark.parametrize("text", ["", "short", "two words of which none is long enough", f"{TOKEN}\n{TOKEN}", "é" * 40])
def test_what_cannot_be_a_token_is_refused_and_not_shown(alone: dict[str, str], tmp_path: Path, text: str) -> None:
    file = put(tmp_path / "token", text)
    with pytest.raises(ConfigError, match="is no programmatic access token") as refused:
        used({**alone, "SNOWFLAKE_PAT_FILE": str(file)})
    assert "In Snowsight: " in str(refused.value)
    assert TOKEN not in str(refused.value)


def test_a_token_file_that_is_missing_or_no_file_is_named(alone: dict[str, str], tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "does not exist"), (tmp_path, "cannot read the file")):
        with pytest.raises(ConfigError, match=words):
            used({**alone, "SNOWFLAKE_PAT_FILE": str(path)})


def test_without_any_credential_both_ways_are_named(alone: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        used(alone)
    assert "openssl genrsa 2048" in str(refused.value)
    assert "SNOWFLAKE_PAT=" in str(refused.value)


# --------------------------------------------------------------------------------------------------------- nowhere else


@pytest.mark.keeps("errors-without-tokens")
def test_a_token_without_a_form_is_taken_out_by_its_value_wherever_it_is_cut(
    alone: dict[str, str], tmp_path: Path
) -> None:
    put(tmp_path / ".env", f"SNOWFLAKE_PAT='{TOKEN}'\n")
    assert used(alone) == (PAT, TOKEN)
    for text in (TOKEN, f"Bearer {TOKEN}.", f"x{TOKEN}{TOKEN}y", TOKEN[:-10], f"{'y' * (4 * LINE - 30)}{TOKEN}"):
        for shown in (clean(text), printable(text), printable(text, 10)):
            assert TOKEN[:12] not in shown
    assert TOKEN not in repr(load_settings(alone))
    assert TOKEN not in repr(token_now(load_settings(alone), 0))


def test_a_bug_report_has_no_token_wherever_it_stands(alone: dict[str, str], tmp_path: Path) -> None:
    in_env, in_file, in_connection = new_pat(), new_pat(), new_pat()
    put(tmp_path / ".env", f"SNOWFLAKE_PAT='{in_env}'\n")
    put(tmp_path / ".snowflake" / "connections.toml", f'[default]\ntoken = "{in_connection}"\n')
    private = private_values(read_installation(alone, 0))
    assert in_env not in safe(f"a {in_env} b", private)
    assert in_connection not in safe(f"a{in_connection}b", private)
    (tmp_path / ".env").unlink()
    alone |= {"SNOWFLAKE_PAT_FILE": str(put(tmp_path / "token", in_file))}
    assert in_file not in safe(f"a {in_file} b", private_values(read_installation(alone, 0)))


# --------------------------------------------------------------------------------------------------------- the stand-in


def test_the_stand_in_takes_a_token_that_is_announced_as_what_it_is_or_not_at_all(set_up: SetUp) -> None:
    stub = set_up.stub
    stub.pats[TOKEN] = "valid"
    bodies: dict[str, Any] = {CHAT: {}, MESSAGES: {}, STATEMENTS: {"statement": "SELECT CURRENT_USER()"}}

    def answer(path: str, token: str, kind: str | None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}", **({TOKEN_TYPE: kind} if kind else {})}
        return httpx.post(stub.url + path, json=bodies[path], headers=headers)

    for path in bodies:
        assert answer(path, TOKEN, PAT).status_code != 401
        assert answer(path, TOKEN, None).status_code != 401
    assert answer(CHAT, TOKEN, "OAUTH").json()["code"] == "390303"
    assert answer(CHAT, TOKEN, KEY_PAIR).json()["code"] == "390144"
    stub.pat_as_jwt = True
    assert answer(CHAT, TOKEN, KEY_PAIR).status_code == 400
    assert answer(CHAT, new_pat(), PAT).json()["code"] == "394400"
    signed = token_now(load_settings(set_up.environ), time.time()).value
    stub.register_key(public_pem(set_up.key))
    assert answer(CHAT, signed, PAT).json()["code"] == "394400"
    for own_words, said in ((False, "is invalid"), (True, "has expired")):
        stub.pats[TOKEN], stub.pat_words = "expired", own_words
        assert said in answer(CHAT, TOKEN, PAT).json()["message"]
