"""The refresher's promises: settings, key, claims, rendering, writing, and when it signs anew."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import auto_refresh
from bundle import refresher as refresher_module
from bundle.account import parse_account, parse_host
from bundle.errors import ConfigError, WriteError
from bundle.files import Stamp
from bundle.refresher import Refresher, Written, due, read_state, refresh, retry_delay
from bundle.render import render, render_config, template_rows
from bundle.settings import CLAUDE_ROUTES, Settings, load_settings, master_key
from bundle.tokens import claims, fingerprint, load_key, public_der, register_statement, sign
from tests.conftest import SetUp, copy_bundle, drop_root_powers, wait_until

BUNDLE = Path(auto_refresh.__file__).parent
NOW = 1_800_000_000.7

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: Any, passphrase: str | None = None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


def put(path: Path, content: bytes | str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    put(tmp_path / ".ssh" / "snowflake_key.p8", pem(KEY))
    return tmp_path


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    """A user who has set account and user, and a key in the usual place."""
    return {
        "HOME": str(home),
        "CORTEX_HOME": str(home),
        "SNOWFLAKE_ACCOUNT": "myorg-my_acct",
        "SNOWFLAKE_USER": "jane",
        "SNOWFLAKE_PRIVATE_KEY_PATH": str(home / ".ssh" / "snowflake_key.p8"),
    }


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    return load_settings(environ)


def run(
    environ: dict[str, str],
    *arguments: str,
    script: Path = BUNDLE / "auto_refresh.py",
    start: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**environ, "PATH": os.environ["PATH"]},
        preexec_fn=start,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---------------------------------------------------------------------------------------------------------- settings


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


def test_constants_edited_in_the_script_configure_it(home: Path) -> None:
    script = copy_bundle(home / "bundle") / "auto_refresh.py"
    put(script, script.read_text().replace("YOUR-ACCOUNT", "myorg-edited").replace('"YOUR_USER"', '"me"'))
    done = run({"HOME": str(home)}, "--once", script=script)
    assert done.returncode == 0, done.stderr
    assert "https://myorg-edited.snowflakecomputing.com/api/v2" in (script.parent / "litellm_config.yaml").read_text()


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


@pytest.mark.parametrize(
    ("text", "account", "host"),
    [
        ("myorg-myacct", "MYORG-MYACCT", "myorg-myacct.snowflakecomputing.com"),
        ("MyOrg-My_Acct", "MYORG-MY_ACCT", "myorg-my-acct.snowflakecomputing.com"),
        ("myorg.myacct", "MYORG-MYACCT", "myorg-myacct.snowflakecomputing.com"),
        ("xy12345", "XY12345", "xy12345.snowflakecomputing.com"),
        ("xy12345.eu-central-1", "XY12345", "xy12345.eu-central-1.snowflakecomputing.com"),
        ("xy12345.west-europe.azure", "XY12345", "xy12345.west-europe.azure.snowflakecomputing.com"),
        ("acme-x1.global", "ACME", "acme-x1.global.snowflakecomputing.com"),
        ("https://myorg-my-acct.snowflakecomputing.com", "MYORG-MY-ACCT", "myorg-my-acct.snowflakecomputing.com"),
        (
            "https://myorg-a.privatelink.snowflakecomputing.com/",
            "MYORG-A",
            "myorg-a.privatelink.snowflakecomputing.com",
        ),
        ("ab123.snowflakecomputing.cn", "AB123", "ab123.snowflakecomputing.cn"),
        ("https://app.snowflake.com/myorg/my_acct/#/homepage", "MYORG-MY_ACCT", "myorg-my-acct.snowflakecomputing.com"),
        ("https://app.snowflake.com/eu-central-1/xy12345/w", "XY12345", "xy12345.eu-central-1.snowflakecomputing.com"),
    ],
)
def test_an_account_is_understood_however_it_is_pasted(text: str, account: str, host: str) -> None:
    assert parse_account(text) == (account, host)


@pytest.mark.parametrize("text", ["acme.eu-central-1", "xy12345.prod"])
def test_an_account_that_can_be_read_in_two_ways_is_refused_with_both(text: str) -> None:
    head, tail = text.split(".")
    with pytest.raises(ConfigError, match="two ways") as caught:
        parse_account(text)
    assert f"{head}-{tail}" in str(caught.value)
    assert f"{head}.{tail}.aws" in str(caught.value)


@pytest.mark.parametrize("text", ["YOUR-ACCOUNT", "", "my org", "acc$ount", "https://"])
def test_what_is_no_account_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a Snowflake account identifier"):
        parse_account(text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("abc.example.com", "https://abc.example.com"),
        ("https://abc.example.com/", "https://abc.example.com"),
        ("http://127.0.0.1:8003", "http://127.0.0.1:8003"),
        ("http://[::1]:8003", "http://[::1]:8003"),
    ],
)
def test_a_host_may_be_given(text: str, url: str) -> None:
    assert parse_host(text) == url


@pytest.mark.parametrize("text", ["http://abc.example.com", "http://10.0.0.1", "ftp://abc", "abc/def", "a b"])
def test_no_token_travels_unencrypted_or_nowhere(text: str) -> None:
    with pytest.raises(ConfigError, match="SNOWFLAKE_HOST"):
        parse_host(text)


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
    with pytest.raises(ConfigError, match=rf"^CLAUDE_ROUTE is '{word}'; it must be chat .* or messages "):
        load_settings({**environ, "CLAUDE_ROUTE": word})


def test_an_env_file_with_a_secret_must_be_private(environ: dict[str, str], home: Path) -> None:
    put(home / ".env", "PRIVATE_KEY_PASSPHRASE=x\n", 0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_settings(environ)


def test_settings_do_not_print_their_secrets(environ: dict[str, str]) -> None:
    found = load_settings({**environ, "PRIVATE_KEY_PASSPHRASE": "hush", "LITELLM_MASTER_KEY": "sk-quiet"})
    assert "hush" not in repr(found)
    assert "sk-quiet" not in repr(found)


def test_the_master_key_is_random_kept_and_private(settings: Settings) -> None:
    os.umask(0)
    try:
        key = master_key(settings)
    finally:
        os.umask(0o022)
    assert key == master_key(settings)
    assert len(key) > 40
    assert stat.S_IMODE((settings.folder / ".master_key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="too short"):
        master_key(replace(settings, given_master_key="sk-1234"))


# ------------------------------------------------------------------------------------------------------ key and token


def test_the_claims_are_what_snowflake_documents() -> None:
    assert claims("myorg-acct", "jane", "SHA256:abc", NOW) == {
        "iss": "MYORG-ACCT.JANE.SHA256:abc",
        "sub": "MYORG-ACCT.JANE",
        "iat": 1_800_000_000,
        "exp": 1_800_003_600,
    }


def test_the_fingerprint_is_the_one_that_desc_user_shows() -> None:
    der = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert fingerprint(KEY) == "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode()


def test_a_token_is_signed_with_rs256_by_the_key(settings: Settings) -> None:
    token = sign(settings, NOW)
    assert jwt.get_unverified_header(token.value)["alg"] == "RS256"
    decoded = jwt.decode(
        token.value, KEY.public_key(), algorithms=["RS256"], options={"verify_iat": False, "verify_exp": False}
    )
    assert decoded == claims("MYORG-MY_ACCT", "JANE", fingerprint(KEY), NOW)
    assert token.value not in repr(token)


def test_an_encrypted_key_opens_with_its_passphrase(home: Path) -> None:
    path = put(home / "k", pem(KEY, "open sesame"))
    assert load_key(path, "open sesame").private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize(
    ("content", "mode", "passphrase", "said"),
    [
        (None, 0o600, None, "there is no private key"),
        (pem(KEY), 0o640, None, "chmod 600"),
        (pem(KEY), 0o604, None, "chmod 600"),
        (pem(KEY, "right"), 0o600, None, "PRIVATE_KEY_PASSPHRASE="),
        (pem(KEY, "right"), 0o600, "wrong", "does not open it"),
        (b"not a key at all", 0o600, None, "not a PEM private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600, None, "damaged"),
        (
            KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
            0o600,
            None,
            "a public key",
        ),
        (pem(ec.generate_private_key(ec.SECP256R1())), 0o600, None, "not an RSA key"),
        (pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), 0o600, None, "1024 bits"),  # noqa: S505
    ],
)
def test_each_bad_key_has_its_own_message_and_status_78(
    environ: dict[str, str], home: Path, content: bytes | None, mode: int, passphrase: str | None, said: str
) -> None:
    path = home / "bad.p8"
    if content is not None:
        put(path, content, mode)
    secret = {"PRIVATE_KEY_PASSPHRASE": passphrase} if passphrase else {}
    done = run({**environ, "SNOWFLAKE_PRIVATE_KEY_PATH": str(path), **secret}, "--once")
    assert done.returncode == 78
    assert said in done.stderr
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (home / "litellm_config.yaml").exists()


def test_public_key_prints_the_statement_that_registers_it(environ: dict[str, str]) -> None:
    done = run(environ, "--public-key")
    body = base64.b64encode(public_der(KEY)).decode()
    assert f"ALTER USER JANE SET RSA_PUBLIC_KEY='{body}';" in done.stdout
    assert fingerprint(KEY) in done.stdout
    assert "-----" not in done.stdout
    assert 'ALTER USER "JANE@EXAMPLE.COM"' in register_statement("JANE@EXAMPLE.COM", KEY)


# ---------------------------------------------------------------------------------------------------------- rendering

VALUES = {"SNOWFLAKE_JWT": "the.token.here", "LITELLM_MASTER_KEY": "sk-key", "CORTEX_URL": "https://h"}
ROW = "- {model_name: %s, litellm_params: {model: '%s', api_key: '${SNOWFLAKE_JWT}', api_base: '${CORTEX_API_BASE}'}}"
GENERAL = "general_settings: {master_key: '${LITELLM_MASTER_KEY}'}\n"


def rendered(*rows: str, more: str = "") -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(render("model_list:\n" + "\n".join(rows) + "\n" + GENERAL + more, VALUES))
    return document


def test_the_prefix_alone_decides_the_route() -> None:
    document = rendered(ROW % ("a", "openai/x"), ROW % ("b", "snowflake/x"))
    bases = [row["litellm_params"]["api_base"] for row in document["model_list"]]
    assert bases == ["https://h/api/v2/cortex/v1", "https://h/api/v2"]


def test_one_word_changes_the_route_of_all_claude_models_and_of_nothing_else() -> None:
    other = "- {model_name: o, litellm_params: {model: openai/claude-x, api_key: own, api_base: 'https://elsewhere'}}"
    models = ("openai/claude-x", "snowflake/claude-y", "openai/openai-gpt-5", "openai/gemini-claude")
    text = "model_list:\n" + "\n".join([*(ROW % (model, model) for model in models), other]) + "\n" + GENERAL

    def rows(word: str) -> list[tuple[str, str]]:
        params = [row["litellm_params"] for row in yaml.safe_load(render(text, VALUES, word))["model_list"]]
        return [(param["model"], param["api_base"].removeprefix("https://h/api/v2")) for param in params]

    chat = [
        ("openai/claude-x", "/cortex/v1"),
        ("snowflake/claude-y", ""),
        ("openai/openai-gpt-5", "/cortex/v1"),
        ("openai/gemini-claude", "/cortex/v1"),
        ("openai/claude-x", "https://elsewhere"),
    ]
    assert rows("chat") == chat
    assert render(text, VALUES) == render(text, VALUES, "chat")
    assert rows("messages") == [("snowflake/claude-x", ""), *chat[1:]]
    # The proxy follows rows by their ids.
    ids = [yaml.safe_load(render(text, VALUES, word))["model_list"][0]["model_info"]["id"] for word in CLAUDE_ROUTES]
    assert ids[0] != ids[1]


def test_the_shipped_rows_of_claude_models_follow_the_word(settings: Settings) -> None:
    for word, provider in CLAUDE_ROUTES.items():
        rendered = render_config(replace(settings, claude_route=word), sign(settings, NOW))
        models = {row["litellm_params"]["model"] for row in yaml.safe_load(rendered)["model_list"]}
        assert {model.partition("/")[0] for model in models} == {provider}
        assert models == {row["litellm_params"]["model"] for row in template_rows(settings, word)}


@pytest.mark.real
def test_a_route_that_is_written_into_env_is_that_of_the_next_request_without_a_restart(running: SetUp) -> None:
    env_file, paths = running.folder / ".env", {"chat": "/chat/completions", "messages": "/messages"}

    def asked() -> str:
        before = len(running.stub.requests)
        assert running.ask("hello").status_code == 200
        return str(running.stub.requests[before]["path"])

    assert asked().endswith(paths["chat"])
    try:
        for word in ("messages", "chat"):
            put(env_file, f"CLAUDE_ROUTE={word}\n")
            wait_until(lambda: asked().endswith(paths[word]), 15)  # noqa: B023 - called at once
    finally:
        env_file.unlink()


def test_a_value_cannot_change_the_structure() -> None:
    nasty = {**VALUES, "LITELLM_MASTER_KEY": 'x"}\nmodel_list: [] #: &a *b'}
    document = yaml.safe_load(render("model_list:\n" + ROW % ("a", "openai/x") + "\n" + GENERAL, nasty))
    assert document["general_settings"]["master_key"] == nasty["LITELLM_MASTER_KEY"]
    assert len(document["model_list"]) == 1


def test_a_row_keeps_its_id_over_new_tokens_and_changes_it_with_its_content() -> None:
    before, edited = rendered(ROW % ("a", "openai/x")), rendered(ROW % ("a", "openai/y"))
    text = "model_list:\n" + ROW % ("a", "openai/x") + "\n" + GENERAL
    renewed = yaml.safe_load(render(text, {**VALUES, "SNOWFLAKE_JWT": "another"}))
    ids = [document["model_list"][0]["model_info"]["id"] for document in (before, renewed, edited)]
    assert ids[0] == ids[1] != ids[2]


def test_only_rows_with_the_token_are_cortex() -> None:
    other = "- {model_name: o, litellm_params: {model: openai/x, api_key: own, api_base: 'https://elsewhere'}}"
    document = rendered(ROW % ("a", "openai/x"), other)
    assert [row["model_info"]["cortex"] for row in document["model_list"]] == [True, False]
    assert document["model_list"][1]["litellm_params"] == {
        "model": "openai/x",
        "api_key": "own",
        "api_base": "https://elsewhere",
    }


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("model_list: [", "not valid YAML"),
        ("- a", "must be a mapping"),
        (GENERAL, "no rows"),
        ("model_list: [{model_name: a}]\n" + GENERAL, "row 1 of model_list"),
        ("model_list:\n" + ROW % ("a", "openai/x"), "master_key"),
        (
            "model_list:\n" + ROW % ("a", "opnai/x") + "\n" + GENERAL,
            r"row 1 \(a\): a model on Cortex starts with openai/",
        ),
        (
            "model_list:\n" + ROW[:-1] % ("a", "x") + ", model_info: {max_output_tokens: lots}}\n" + GENERAL,
            "whole number",
        ),
        ("model_list:\n" + ROW % ("a", "openai/${NOPE}") + "\n" + GENERAL, r"unknown placeholder \$\{NOPE\}"),
        ("model_list:\n" + ROW % ("a", "openai/${}") + "\n" + GENERAL, r"unknown placeholder \$\{\}"),
    ],
)
def test_a_broken_template_is_refused_with_what_is_wrong(template: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        render(template, VALUES)


def test_the_shipped_template_gives_every_family_a_catch_all_and_the_settings_that_are_needed(
    settings: Settings,
) -> None:
    document = yaml.safe_load(render_config(settings, sign(settings, NOW)))
    rows = {row["model_name"]: row for row in document["model_list"]}
    assert rows["claude-sonnet-4-5-20250929"]["litellm_params"]["model"] == "openai/claude-sonnet-4-5"
    assert rows["claude-haiku-4-5-20251001"]["litellm_params"]["model"] == "openai/claude-haiku-4-5"
    assert {"claude-opus-*", "claude-sonnet-*", "claude-haiku-*", "claude-*"} <= rows.keys()
    assert all(row["model_info"]["max_output_tokens"] and row["model_info"]["cortex"] for row in rows.values())
    assert all(row["model_info"]["supports_reasoning"] is False for row in rows.values())
    assert document["litellm_settings"]["use_chat_completions_url_for_anthropic_messages"] is True
    assert document["router_settings"] == {"disable_cooldowns": True, "num_retries": 0}
    assert not [key for key in document if key.startswith("x-")]


def test_every_commented_example_of_the_template_renders(settings: Settings) -> None:
    text = settings.template_path.read_text()
    text = re.sub(r"^  # (?=- model_name|  litellm_params|  model_info)", "  ", text, flags=re.MULTILINE)
    document = yaml.safe_load(render(text, VALUES))
    models = {row["litellm_params"]["model"] for row in document["model_list"]}
    assert {"openai/openai-gpt-4.1", "openai/gemini-3-pro", "openai/llama4-maverick"} <= models


# ------------------------------------------------------------------------------------------------------------ writing


def test_no_secret_is_ever_readable_by_others_even_with_umask_0(settings: Settings) -> None:
    old = os.umask(0)
    try:
        refresh(settings, time.time())
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in settings.folder.iterdir() if path.is_file()}
    assert modes == {"litellm_config.yaml": 0o600, ".master_key": 0o600}


def test_a_reader_sees_the_old_file_or_the_new_one(settings: Settings) -> None:
    # Whoever holds the old file open keeps reading the old text: it was replaced, not rewritten.
    refresh(settings, NOW)
    with settings.config_path.open() as reader:
        first = reader.read(100)
        refresh(settings, NOW + 60)
        whole = first + reader.read()
    assert yaml.safe_load(whole)["model_list"]
    assert whole != settings.config_path.read_text()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(settings, NOW)
    before = settings.config_path.read_bytes()

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(WriteError, match="No space left"):
        refresh(settings, NOW + 60)
    assert settings.config_path.read_bytes() == before
    assert not list(settings.folder.glob(".litellm_config*"))


# ---------------------------------------------------------------------------------------------------------------- due

CONFIG = (("litellm_config.yaml", 1, 1, 1),)
SOURCES = ((".env", 1, 1, 1), ("k.p8", 1, 1, 1))
LAST = Written(issued_at=1000, expires_at=4600, refresh_seconds=3000, sources=SOURCES, config=CONFIG)


@pytest.mark.parametrize(
    ("now", "sources", "config", "reason"),
    [
        (3999, SOURCES, CONFIG, None),
        (4000, SOURCES, CONFIG, "50 minutes old"),
        (40_000, SOURCES, CONFIG, "minutes old"),  # the laptop slept through the night
        (999, SOURCES, CONFIG, "clock went back"),
        (2000, SOURCES, (), "deleted"),
        (2000, SOURCES, (("litellm_config.yaml", 2, 1, 1),), "edits belong in"),
        (2000, ((".env", 1, 1, 1), ("k.p8", 2, 1, 1)), CONFIG, "k.p8 changed"),
        (2000, SOURCES[:1], CONFIG, "k.p8 changed"),
    ],
)
def test_a_refresh_is_due_by_the_wall_clock_and_by_what_changed(
    now: float, sources: Stamp, config: Stamp, reason: str | None
) -> None:
    found = due(now, LAST, sources, config)
    assert found is None if reason is None else found is not None and reason in found


def test_it_waits_longer_after_each_failure_up_to_a_minute() -> None:
    delays = [retry_delay(failures, 0.5) for failures in (1, 2, 3, 10, 10_000)]
    assert delays == [1, 2, 4, 60, 60]
    assert retry_delay(3, 0.0) < 4 < retry_delay(3, 1.0)


# --------------------------------------------------------------------------------------------------------------- loop


class World:
    """A refresher whose clock the test moves."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ, self.now, self.lines = environ, NOW, list[str]()
        self.refresher = Refresher(lambda: load_settings(self.environ), lambda: self.now, self.lines.append)
        self.refresher.refresh(self.now, "the refresher has started")
        self.config = self.refresher.settings.config_path

    def after(self, seconds: float) -> bool:
        self.now += seconds
        return self.refresher.step()

    def token(self) -> str:
        return str(yaml.safe_load(self.config.read_text())["model_list"][0]["litellm_params"]["api_key"])


@pytest.fixture
def world(environ: dict[str, str]) -> World:
    return World(environ)


def test_it_signs_after_fifty_minutes_and_not_before(world: World) -> None:
    first = world.token()
    assert not world.after(2998)
    assert world.after(3)
    assert world.token() != first


def test_a_changed_key_is_used_at_the_next_look(world: World, home: Path) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    put(home / ".ssh" / "snowflake_key.p8", pem(other))
    assert world.after(2)
    assert read_state(home)["key_fingerprint"] == fingerprint(other)
    jwt.decode(
        world.token(), other.public_key(), algorithms=["RS256"], options={"verify_iat": False, "verify_exp": False}
    )


def test_a_config_altered_by_hand_is_written_anew_and_said(world: World) -> None:
    world.config.write_text("model_list: [my own]\n")
    assert world.after(2)
    assert "edits belong in litellm_config.template.yaml" in world.lines[-1]
    assert world.token()


@pytest.mark.parametrize("what", ["deleted", "truncated"])
def test_a_config_that_is_lost_comes_back(world: World, what: str) -> None:
    if what == "deleted":
        world.config.unlink()
    else:
        world.config.write_text("")
    assert world.after(2)
    assert world.token()


def test_a_failing_refresh_keeps_the_last_good_configuration_and_says_so_once(world: World, home: Path) -> None:
    before = world.config.read_bytes()
    key = home / ".ssh" / "snowflake_key.p8"
    key.rename(home / "away")
    assert not any(world.after(2) for _ in range(10))
    assert world.config.read_bytes() == before
    assert len([line for line in world.lines if "the last good configuration stays" in line]) == 1
    assert "there is no private key" in str(read_state(home)["last_error"])
    (home / "away").rename(key)
    world.after(120)
    assert read_state(home)["last_error"] is None


def test_it_warns_louder_when_the_token_is_about_to_end(world: World, home: Path) -> None:
    (home / ".ssh" / "snowflake_key.p8").unlink()
    world.after(3100)
    assert world.lines[-1].startswith("ERROR: no new token, and the last one ends in 8 minutes")


def test_whatever_happens_in_a_step_the_loop_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*_: object) -> None:
        raise ValueError("something nobody thought of")

    monkeypatch.setattr(refresher_module, "sign", surprise)
    assert not world.after(3100)
    assert "something nobody thought of" in world.lines[-1]
    monkeypatch.undo()
    assert world.after(120)


def test_a_clock_that_goes_back_gives_a_token_of_the_new_time(world: World) -> None:
    assert world.after(-7200)
    assert read_state(world.refresher.settings.folder)["issued"] == int(NOW) - 7200


def test_the_state_file_is_private_and_holds_no_token(world: World, home: Path) -> None:
    path = home / ".refresher.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert world.token() not in path.read_text()
    assert "eyJ" not in path.read_text()


def test_no_line_of_the_log_holds_a_token(world: World) -> None:
    world.after(3001)
    assert world.lines
    assert not [line for line in world.lines if "eyJ" in line]


# ------------------------------------------------------------------------------------------------------- as a process


@pytest.fixture
def refresher(environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = start(environ)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def start(environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", str(BUNDLE / "auto_refresh.py")],
        env={**environ, "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_with_status_0(refresher: subprocess.Popen[str], number: signal.Signals) -> None:
    assert "new token" in line_of(refresher)
    refresher.send_signal(number)
    assert refresher.wait(timeout=10) == 0


def test_a_hangup_refreshes_now(refresher: subprocess.Popen[str]) -> None:
    assert "has started" in line_of(refresher)
    refresher.send_signal(signal.SIGHUP)
    assert "SIGHUP" in line_of(refresher)


def test_a_second_refresher_waits_and_takes_over(refresher: subprocess.Popen[str], environ: dict[str, str]) -> None:
    line_of(refresher)
    second = start(environ)
    try:
        assert f"pid {refresher.pid}" in line_of(second)
        refresher.kill()  # not even a chance to clean up
        refresher.wait(timeout=10)
        assert "has started" in line_of(second)
    finally:
        second.kill()
        second.communicate()


def test_once_beside_a_running_refresher_checks_and_writes_nothing(
    refresher: subprocess.Popen[str], environ: dict[str, str], home: Path
) -> None:
    line_of(refresher)
    before = (home / "litellm_config.yaml").read_bytes()
    done = run(environ, "--once")
    assert done.returncode == 0
    assert f"kill -HUP {refresher.pid}" in done.stdout
    assert (home / "litellm_config.yaml").read_bytes() == before


def test_leftovers_of_a_killed_refresher_are_removed(environ: dict[str, str], home: Path) -> None:
    leftover = put(home / ".litellm_config.yaml.abc.tmp", "half a token")
    assert run(environ, "--once").returncode == 0
    assert not leftover.exists()


def test_status_tells_a_live_token_from_none(environ: dict[str, str]) -> None:
    assert run(environ, "--status").returncode == 1
    World(environ).refresher.refresh(time.time(), "now")
    done = run(environ, "--status")
    assert done.returncode == 0
    assert "59 minutes left" in done.stdout
    shown = json.loads(run(environ, "--status", "--json").stdout)
    assert shown["expires"] - shown["issued"] == 3600
    assert "eyJ" not in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"SNOWFLAKE_ACCOUNT": ""}, "no Snowflake account configured"),
        ({"SNOWFLAKE_ACCOUNT": "", "SNOWFLAKE_USER": ""}, "no Snowflake account and user configured"),
        ({"SNOWFLAKE_ACCOUNT": "YOUR-ACCOUNT"}, "not a Snowflake account identifier"),
        ({"SNOWFLAKE_HOST": "http://example.com"}, "unencrypted"),
    ],
)
def test_a_mistake_in_the_settings_ends_it_with_status_78_and_one_message(
    environ: dict[str, str], change: dict[str, str], said: str
) -> None:
    done = run({**environ, **change})
    assert done.returncode == 78
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_not_writable_is_named(environ: dict[str, str], home: Path) -> None:
    home.chmod(0o500)
    try:
        done = run(environ, "--once", start=drop_root_powers)
    finally:
        home.chmod(0o700)
    assert done.returncode == 78
    assert "Permission denied" in done.stderr
