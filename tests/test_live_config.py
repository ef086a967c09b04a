"""bundle/proxy/live_config.py: whatever happens to the file or the clock, a request carries a live token."""

from __future__ import annotations

import time

import pytest

from bundle.errors import ConfigError
from bundle.proxy.live_config import Exchange, LiveConfig, clock_trouble, current_exchange
from bundle.refresher import refresh
from bundle.settings import load_settings
from bundle.tokens import sign, token_times
from tests.day import HOUR
from tests.set_up import SetUp


class Now:
    """A clock that the test sets, and a configuration that the refresher has written."""

    def __init__(self, set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in set_up.environ.items():
            monkeypatch.setenv(name, value)
        self.time = time.time()
        self.set_up = set_up
        self.live = LiveConfig(set_up.config, lambda: self.time)
        refresh(load_settings(), self.time)
        self.written = self.live.token()


@pytest.fixture
def now(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> Now:
    return Now(set_up, monkeypatch)


@pytest.mark.keeps("live-token")
def test_a_broken_edit_of_the_settings_does_not_end_the_session_when_the_token_ends(now: Now) -> None:
    now.live.settings = load_settings()
    (now.set_up.folder / ".env").write_bytes(b"\xff\xfe not text")
    with pytest.raises(ConfigError):
        load_settings()
    now.time += 2 * HOUR
    assert token_times(now.live.token())[0] == int(now.time)


def test_a_token_that_cannot_be_replaced_is_used_to_its_last_minute_and_then_the_remedy_is_said(now: Now) -> None:
    now.set_up.key_path.chmod(0o644)
    now.time += HOUR - 30
    assert now.live.token() == now.written
    now.time += 30
    with pytest.raises(ConfigError, match="chmod 600"):
        now.live.token()


@pytest.mark.parametrize("jump", [-8 * HOUR, -5, 8 * HOUR])
def test_whatever_the_clock_does_the_token_is_of_its_time(now: Now, jump: float) -> None:
    now.time += jump
    issued, expires = token_times(now.live.token())
    assert issued <= now.time < expires


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff", b"model_list: [", b"[1, 2]", b"text", b"model_list: [text]", b"model_list: 5", b"a: 2001-99-99"],
)
def test_a_file_that_something_else_wrote_changes_nothing(now: Now, content: bytes) -> None:
    now.set_up.config.write_bytes(content)
    assert not now.live.reload()
    assert now.live.token() == now.written


@pytest.mark.parametrize(
    ("ahead", "age", "said"),
    [
        (HOUR, 0, "60 minutes ahead of Snowflake's, which takes no token from the future (394302)"),
        (-2 * HOUR, 0, "120 minutes behind Snowflake's, for which this token has ended (394303)"),
        (5, 0, None),  # we do not know what difference Snowflake accepts
        (HOUR / 2, HOUR * 3 / 4, None),  # the clock is wrong, but this token was not refused for that
        (0, HOUR + 10, None),  # the machine slept during the request: the token has ended on both clocks
    ],
)
def test_a_wrong_clock_is_told_from_a_wrong_key(now: Now, ahead: float, age: float, said: str | None) -> None:
    token = sign(load_settings(), now.time - age).value
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now.time - ahead))
    call = Exchange()
    reset = current_exchange.set(call)
    now.live.refuse(token, date)
    current_exchange.reset(reset)
    if said is None:
        assert call.trouble is None
    else:
        assert call.trouble is not None
        assert said in call.trouble
        assert "timedatectl set-ntp true" in call.trouble
    assert clock_trouble(token, now.time, "no date at all") is None


@pytest.mark.keeps("new-token-after-401")
@pytest.mark.parametrize("age", [0, HOUR / 2])
def test_a_401_is_tried_once_more_with_another_token_however_new_the_first_was(now: Now, age: float) -> None:
    now.time += age
    assert not now.live.refuse(now.live.token())
    now.time += 2
    second = now.live.token()
    assert second != now.written
    assert now.live.refuse(second)
    now.time += 2
    assert now.live.refuse(now.live.token())


@pytest.mark.keeps("new-token-after-401")
def test_a_token_that_was_taken_since_may_be_refused_by_a_passing_fault(now: Now) -> None:
    for _ in range(3):
        now.time += 2
        token = now.live.token()
        assert not now.live.refuse(token)
        now.time += 2
        now.live.accept(now.live.token())


def test_a_second_try_is_one_of_the_next_two_minutes(now: Now) -> None:
    assert not now.live.refuse(now.live.token())
    now.time += 10 * 60
    assert not now.live.refuse(now.live.token())
