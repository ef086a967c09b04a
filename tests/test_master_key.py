"""The proxy's own key: each way to it ends in one check, no empty one opens the door, and nobody is locked out."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bundle.checks.finding import read_installation
from bundle.errors import ConfigError
from bundle.proxy.front_door import FrontDoor, has_key, refusal
from bundle.refresher import refresh
from bundle.render import render
from bundle.settings import Settings, load_settings, master_key, saved_key
from tests.set_up import BUNDLE, SetUp, wait_until
from tests.test_render import GENERAL, ROW, VALUES
from tests.user import put

GOOD = "sk-the-key-of-this-proxy-0123456789"
WEAK = {
    "one letter": "k",
    "19 characters": "k" * 19,
    "blanks": " " * 40,
    "a blank at its end": "k" * 30 + " ",
    "a tab": "k" * 20 + "\t" + "k" * 20,
    "two lines": "k" * 20 + "\n" + "k" * 20,
    "an umlaut": "ü" * 30,
    "a zero": "k" * 20 + "\0",
    "no text": "\ud800" * 30,
}


@pytest.mark.keeps("key-is-random")
@pytest.mark.parametrize("key", ["", *WEAK.values()], ids=["empty", *WEAK])
def test_the_door_is_not_built_with_a_key_that_protects_nothing(key: str) -> None:
    with pytest.raises(ConfigError, match="at least 20 printable ASCII characters"):
        FrontDoor(lambda *_: None, key=key, port=1, config=None)  # type: ignore[arg-type]


@pytest.mark.keeps("key-is-random")
@pytest.mark.parametrize("key", WEAK.values(), ids=WEAK)
def test_every_way_to_a_key_refuses_a_weak_one_with_the_place_where_it_stands(settings: Settings, key: str) -> None:
    with pytest.raises(ConfigError, match="the key in LITELLM_MASTER_KEY"):
        master_key(replace(settings, given_master_key=key))
    put(settings.folder / ".master_key", key.strip().encode("utf-8", "surrogatepass"))
    if key.strip() and key != WEAK["a blank at its end"]:  # an editor may leave blanks around the key
        with pytest.raises(ConfigError, match=r"the key in .*\.master_key"):
            master_key(settings)


def test_a_key_in_the_env_file_is_checked_too_and_the_template_holds_none(environ: dict[str, str]) -> None:
    folder = load_settings(environ).folder
    put(folder / ".env", "LITELLM_MASTER_KEY=sk-1234\n")
    with pytest.raises(ConfigError, match="LITELLM_MASTER_KEY"):
        master_key(load_settings(environ))
    put(folder / ".env", f"LITELLM_MASTER_KEY={GOOD}\n")
    assert master_key(load_settings(environ)) == GOOD
    # The door and LiteLLM would have two different keys, and nobody would get in.
    for own in ("sk-1234", GOOD, "''", "os.environ/KEY", "'${LITELLM_MASTER_KEY}x'"):
        template = f"model_list:\n{ROW % ('a', 'openai/x')}\ngeneral_settings: {{master_key: {own}}}\n"
        with pytest.raises(ConfigError, match=r"belongs into \.env, as LITELLM_MASTER_KEY"):
            render(template, VALUES)
    assert render(f"model_list:\n{ROW % ('a', 'openai/x')}\n{GENERAL}", VALUES)


@pytest.mark.keeps("key-is-random")
@pytest.mark.parametrize("content", [b"", b"\n", b" \t\r\n"])
def test_an_empty_key_file_gets_a_new_random_key_and_says_so(
    settings: Settings, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = settings.folder / ".master_key"
    for _ in range(20):  # refresher and proxy start at the same time, and must have the same key
        put(path, content)
        assert saved_key(settings) == ""
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: master_key(settings), range(8))) == {saved_key(settings)}
    assert len(master_key(settings)) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = capsys.readouterr()
    assert (said.out, "was empty: it has a new random key" in said.err) == ("", True)
    assert "point_claude.py" in said.err
    assert master_key(settings) not in said.err


def test_looking_makes_no_key(settings: Settings, environ: dict[str, str]) -> None:
    path = put(settings.folder / ".master_key", b"")
    assert read_installation(environ, time.time()).master_key == ""
    assert path.read_bytes() == b""


HEADERS = st.one_of(
    st.none(),
    st.sampled_from([b"", b" ", b"Bearer", b"Bearer ", b"bearer\t", b"Basic ", b"\xff", b"None", b"null", b"\0"]),
    st.binary(max_size=60),
)
KEYS = st.from_regex(r"[!-~][ -~]{18,30}[!-~]", fullmatch=True)


@pytest.mark.keeps("key-is-needed")
@given(key=KEYS, bearer=HEADERS, api_key=HEADERS, scheme=st.sampled_from([b"", b"Bearer ", b"bearer  ", b"Basic "]))
@example(key=GOOD, bearer=GOOD[:-1].encode(), api_key=None, scheme=b"Bearer ")
@example(key=GOOD, bearer=f"{GOOD}{GOOD}".encode(), api_key=None, scheme=b"Bearer ")
@example(key=GOOD, bearer=f"Bearer {GOOD}".encode(), api_key=None, scheme=b"Bearer ")
@example(key=GOOD, bearer=GOOD.upper().encode(), api_key=GOOD.upper().encode(), scheme=b"Bearer ")
@example(key=GOOD, bearer=b"", api_key=b"", scheme=b"Bearer ")
def test_no_pair_of_headers_opens_the_door_without_the_whole_key(
    key: str, bearer: bytes | None, api_key: bytes | None, scheme: bytes
) -> None:
    given_headers = {b"authorization": None if bearer is None else scheme + bearer, b"x-api-key": api_key}
    headers = {name: value for name, value in given_headers.items() if value is not None}
    if any(value.strip().removeprefix(scheme).strip() == key.encode() for value in headers.values()):
        return
    headers |= {b"host": b"127.0.0.1:1", b"content-type": b"application/json"}
    for method, path in (("POST", "/v1/messages"), ("GET", "/v1/models"), ("POST", "/v1/messages/count_tokens")):
        found = refusal(method, path, headers, key=key, port=1)
        assert found is not None
        assert found.status == 401


@pytest.mark.keeps("key-is-needed")
@given(key=KEYS, other=HEADERS)
def test_the_whole_key_opens_the_door_and_a_wrong_bearer_is_not_helped_by_a_second_header(
    key: str, other: bytes | None
) -> None:
    more = {} if other is None else {b"x-api-key": other}
    assert has_key({b"authorization": b"Bearer " + key.encode(), **more}, key)
    assert has_key({b"x-api-key": key.encode()}, key)
    assert not has_key({b"authorization": b"Bearer wrong", b"x-api-key": key.encode()}, key)
    assert not has_key({b"authorization": b"Bearer ", b"x-api-key": b""}, "")


@pytest.mark.real
@pytest.mark.keeps("key-is-needed")
def test_an_emptied_key_file_lets_nobody_in_and_the_user_in_again_after_a_restart(set_up: SetUp) -> None:
    set_up.start("auto_refresh.py")
    wait_until(set_up.config.exists, 60)
    old, path = set_up.master_key, set_up.folder / ".master_key"
    body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    tried: list[dict[str, str]] = [
        {},
        {"x-api-key": ""},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {old}"},
    ]
    path.write_text("")
    set_up.start_proxy()
    assert wait_until(lambda: set_up.master_key) != old
    for headers in tried:
        answer = httpx.post(f"{set_up.url}/v1/messages", json=body, headers=headers, trust_env=False, timeout=60)
        assert (answer.status_code, json.loads(answer.text)["error"]["type"]) == (401, "authentication_error")
    assert set_up.ask("hello").status_code == 200
    assert ".master_key was empty" in set_up.log("claude_proxy.py") + set_up.log("auto_refresh.py")
    path.write_text("sk-1234\n")
    waited = set_up.run("tests/first_answer.py")
    assert (waited.returncode, "Remove that key" in waited.stdout, waited.stderr) == (1, True, "")
    done = subprocess.run(
        [sys.executable, str(BUNDLE / "claude_proxy.py")],
        env=set_up.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Remove that key" in done.stderr) == (78, True)


@pytest.mark.real
def test_a_proxy_waits_for_the_configuration_with_its_own_key(set_up: SetUp) -> None:
    # LiteLLM would refuse each request with the key that the door takes.
    refresh(load_settings({**set_up.environ, "LITELLM_MASTER_KEY": GOOD}), time.time())
    set_up.start("claude_proxy.py")
    set_up.wait_for("claude_proxy.py", "it has another key than this process")
    set_up.start("auto_refresh.py")
    set_up.wait_for("claude_proxy.py", "ready on")
    assert set_up.ask("hello").status_code == 200
