"""bundle/settings.py: where each setting comes from, what is refused, and what is never printed."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.errors import ConfigError
from bundle.settings import NAMES, MissingSettingsError, Settings, load_settings, master_key
from tests.set_up import BUNDLE, copy_bundle
from tests.user import put


def test_the_environment_beats_env_file_beats_constants_beats_connection(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path)}
    put(
        tmp_path / ".snowflake" / "connections.toml",
        '[default]\naccount = "from-toml"\nuser = "toml"\nwarehouse = "WH"\n',
    )
    found = load_settings(environ)
    assert (found.account, found.user, found.warehouse) == ("FROM-TOML", "TOML", "WH")
    assert "[default]" in found.origin

    put(tmp_path / ".env", "SNOWFLAKE_ACCOUNT=from-file\nSNOWFLAKE_USER=file\n")
    found = load_settings(environ)
    assert (found.account, found.user, found.warehouse) == ("FROM-FILE", "FILE", None)

    found = load_settings({**environ, "SNOWFLAKE_ACCOUNT": "from-env"})
    assert (found.account, found.user) == ("FROM-ENV", "FILE")


def test_the_named_connection_of_config_toml_is_used(tmp_path: Path) -> None:
    table = '[connections.work]\naccount = "a-b"\nuser = "u"\nprivate_key_file = "~/k.p8"\n'
    config = 'default_connection_name = "work"\n' + table
    put(tmp_path / "sf" / "config.toml", config)
    found = load_settings({"HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path), "SNOWFLAKE_HOME": str(tmp_path / "sf")})
    assert found.account == "A-B"
    assert found.private_key_path.name == "k.p8"


def test_a_connection_of_another_account_lends_nothing(tmp_path: Path) -> None:
    put(
        tmp_path / ".snowflake" / "connections.toml",
        '[default]\naccount = "other"\nuser = "u"\nprivate_key_file = "/k"\n',
    )
    environ = {"HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path), "SNOWFLAKE_ACCOUNT": "a-b", "SNOWFLAKE_USER": "u"}
    assert load_settings(environ).private_key_path.name == "snowflake_key.p8"


@pytest.mark.parametrize(("name", "value"), [("PROXY_PORT", "x"), ("PROXY_PORT", "0"), ("REFRESH_MINUTES", "56")])
def test_a_number_out_of_range_is_refused_by_name(environ: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_settings({**environ, name: value})


def test_the_route_of_claude_models_is_chat_until_the_user_says_another_word(
    environ: dict[str, str], home: Path
) -> None:
    def found(**more: str) -> tuple[str, str]:
        settings = load_settings({**environ, **more})
        return settings.claude_route, settings.claude_route_from

    assert found() == ("chat", "")
    put(home / ".env", "CLAUDE_ROUTE=\n")
    assert found() == ("chat", "")
    put(home / ".env", "CLAUDE_ROUTE=chat\n")
    assert found() == ("chat", ".env")
    assert found(CLAUDE_ROUTE="messages") == ("messages", "the environment")


@pytest.mark.parametrize("word", ["Messages", "snowflake", "openai", "chat completions"])
def test_another_word_for_the_route_is_refused_with_the_two_that_there_are(environ: dict[str, str], word: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^the environment: CLAUDE_ROUTE is '{word}'; it must be chat .* or messages "
    ):
        load_settings({**environ, "CLAUDE_ROUTE": word})


@pytest.mark.parametrize(
    "name", ["PROXY_PORT", "REFRESH_MINUTES", "CLAUDE_ROUTE", "PRICE_FACTOR", "SNOWFLAKE_ACCOUNT", "SNOWFLAKE_HOST"]
)
def test_a_wrong_value_in_the_env_file_is_named_with_file_and_line(
    environ: dict[str, str], home: Path, name: str
) -> None:
    environ.pop(name, None)
    path = put(home / ".env", f"# mine\n{name}='no value / at all'\n")
    with pytest.raises(ConfigError) as refused:
        load_settings(environ)
    assert f"{path}, line 2" in str(refused.value)


@pytest.mark.parametrize("text", ["0", "0.09", "10.1", "-1", "1,1", "1e1", "nan", "10 %", "\u0661"])
def test_a_price_factor_that_is_none_is_refused_with_what_it_must_be(environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=r"^the environment: PRICE_FACTOR is .* a number from 0\.1 to 10"):
        load_settings({**environ, "PRICE_FACTOR": text})


def test_a_price_factor_is_a_number_or_not_set(environ: dict[str, str]) -> None:
    given = ("0.1", "1.1", "2", "10", "")
    assert [load_settings({**environ, "PRICE_FACTOR": each}).price_factor for each in given] == [0.1, 1.1, 2, 10, None]


def test_a_line_of_the_env_file_that_is_no_setting_is_named(environ: dict[str, str], home: Path) -> None:
    path = put(home / ".env", "PROXY_PORT=8001\nSNOWFLAKE_USER: jane\n")
    with pytest.raises(ConfigError, match="line 2: this is not NAME=value") as refused:
        load_settings(environ)
    assert str(refused.value).startswith(str(path))


def test_a_name_that_is_almost_one_of_ours_is_named_with_the_right_one(environ: dict[str, str], home: Path) -> None:
    path = put(home / ".env", "SNOWFLAKE_USR=jane\nSNOWFLAKE_ROLE=x\nMY_OWN=1\nproxy_port=9000\n")
    assert load_settings(environ).notes == (
        f"{path}, line 1: SNOWFLAKE_USR is no setting. Did you mean SNOWFLAKE_USER?",
        f"{path}, line 4: proxy_port is no setting. Did you mean PROXY_PORT?",
    )
    del environ["SNOWFLAKE_USER"]
    with pytest.raises(MissingSettingsError, match=r"no Snowflake user configured.\n.*Did you mean SNOWFLAKE_USER"):
        load_settings(environ)


def test_the_names_of_the_settings_are_those_of_the_example() -> None:
    example = re.findall(r"^#?([A-Z_]+)=", (BUNDLE / ".env.example").read_text(), re.MULTILINE)
    assert sorted(NAMES) == sorted(example)


def test_the_demo_takes_no_setting_of_the_shell() -> None:
    makefile = (BUNDLE / "Makefile").read_text()
    demo = makefile.partition("DEMO_ENV := ")[2].partition("\n\n")[0]
    # (Its account, user and key are its own, so no connection and no other kind of credential is looked for.)
    others = {"SNOWFLAKE_PAT_FILE", "SNOWFLAKE_DEFAULT_CONNECTION_NAME", "SNOWFLAKE_WAREHOUSE"}
    others |= {"CLAUDE_START_MODEL", "CLAUDE_START_EFFORT"}  # a wish of the user's, which the demo can fulfil
    assert [name for name in NAMES if name not in others and f" {name}=" not in demo.replace("\t", " ")] == []


def test_a_connection_is_read_as_snowflake_s_own_tools_write_it(tmp_path: Path) -> None:
    """With the mark that Windows puts at the start of a file, a region, a passphrase, a host with underscores."""
    table = '[default]\naccount = "xy12345"\nregion = "eu-central-1"\nuser = "u"\nprivate_key_passphrase = "hush"\n'
    path = put(tmp_path / ".snowflake" / "connections.toml", f"\ufeff{table}")
    environ = {"HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path)}
    found = load_settings(environ)
    assert (found.account, found.passphrase) == ("XY12345", "hush")
    assert found.base_url == "https://xy12345.eu-central-1.snowflakecomputing.com"
    put(path, table + 'host = "MyOrg-My_Acct.snowflakecomputing.com"\n')
    assert load_settings(environ).base_url == "https://myorg-my-acct.snowflakecomputing.com"
    put(path, table + 'host = "my_host.example.com"\n')
    with pytest.raises(ConfigError, match=r"^`host` of connection \[default\] in .* is 'my_host"):
        load_settings(environ)


@pytest.mark.keeps("private-key")
def test_an_env_file_with_a_secret_must_be_private(environ: dict[str, str], home: Path) -> None:
    put(home / ".env", "PRIVATE_KEY_PASSPHRASE=x\n", 0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_settings(environ)


def test_settings_do_not_print_their_secrets(environ: dict[str, str]) -> None:
    found = load_settings({**environ, "PRIVATE_KEY_PASSPHRASE": "hush", "LITELLM_MASTER_KEY": "sk-quiet"})
    assert "hush" not in repr(found)
    assert "sk-quiet" not in repr(found)


@pytest.mark.keeps("key-is-random")
def test_the_master_key_is_random_kept_and_private(settings: Settings) -> None:
    os.umask(0)
    try:
        key = master_key(settings)
    finally:
        os.umask(0o022)
    assert key == master_key(settings)
    assert len(key) > 40
    assert stat.S_IMODE((settings.folder / ".master_key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="at least 20"):
        master_key(replace(settings, given_master_key="sk-1234"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('ACCOUNT = "MYORG-MYACCT', "this is not valid Python"),
        ("ACCOUNT = MYORG-MYACCT", "ACCOUNT must be text in quotes"),
    ],
)
def test_a_typo_in_the_constants_is_a_message_with_file_and_line_in_every_tool(
    tmp_path: Path, line: str, why: str
) -> None:
    script = copy_bundle(tmp_path / "bundle") / "auto_refresh.py"
    lines = script.read_text().splitlines()
    number = next(number for number, text in enumerate(lines) if text.startswith("ACCOUNT = "))
    script.write_text("\n".join([*lines[:number], line, *lines[number + 1 :], ""]))
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    for tool, *options in (["doctor.py", "--status"], ["usage.py"], ["configure.py"], ["point_claude.py", "--print"]):
        command = [sys.executable, str(script.with_name(tool)), *options]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert f"auto_refresh.py, line {number + 1}: {why}" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode != 0
