"""A running set-up whose user has a programmatic access token in place of a key pair."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundle.credential import KEY_PAIR, PAT, TOKEN_TYPE
from bundle.env_file import set_in_env_file
from tests.set_up import SetUp, pem, public_pem, wait_until
from tests.test_secrets import make_loud, open_umask
from tests.user import new_pat, put

PROXY, REFRESHER = "claude_proxy.py", "auto_refresh.py"
SECONDS = 30


class WithPat(SetUp):
    """A running set-up whose user has a programmatic access token in `.env`, and no key."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stub.register_key(None)
        self.key_path.unlink()
        self.environ.pop("SNOWFLAKE_PRIVATE_KEY_PATH")
        self.usual_key = folder / ".ssh" / "snowflake_key.p8"
        self.env_file = folder / ".env"
        self.given: list[str] = []
        self.give()

    def give(self, state: str = "valid") -> str:
        """Make a token in this state, and put it into `.env`."""
        token = new_pat()
        self.given.append(token)
        self.stub.pats[token] = state
        set_in_env_file(self.env_file, "SNOWFLAKE_PAT", token)
        return token

    def written(self) -> tuple[str, str]:
        """(token, type) of the proxy's configuration."""
        params = yaml.safe_load(self.config.read_text())["model_list"][0]["litellm_params"]
        return params["api_key"], params["extra_headers"][TOKEN_TYPE]

    def followed(self, token: str) -> None:
        wait_until(lambda: self.written()[0] == token, SECONDS, lambda: self.log(REFRESHER))

    def sent(self, **more: Any) -> dict[str, Any]:
        """Ask, and return the request that reached Cortex."""
        first = len(self.stub.requests)
        answer = self.ask("hello", **more)
        assert answer.status_code == 200, answer.text
        return next(record for record in self.stub.requests[first:] if record["route"] in {"chat", "messages"})


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithPat]:
    made = WithPat(tmp_path_factory.mktemp("pat"))
    make_loud(made)
    made.before_exec = open_umask
    try:
        made.start_both()
        yield made
    finally:
        made.close()


@pytest.mark.real
def test_with_a_token_nothing_is_signed_and_the_request_says_what_it_is(user: WithPat) -> None:
    assert user.written() == (user.given[-1], PAT)
    record = user.sent()
    assert (record["route"], record["headers"][TOKEN_TYPE.lower()], record["pat"]) == ("chat", PAT, True)


@pytest.mark.real
def test_a_refused_token_is_final_says_what_to_do_and_is_tried_again_when_it_may_work(user: WithPat) -> None:
    token = user.given[-1]
    for state, remedy in (("expired", "SHOW USER PROGRAMMATIC ACCESS TOKENS;"), ("no policy", "SET NETWORK_POLICY")):
        user.stub.pats[token] = state
        refused = user.ask("hello")
        words = refused.json()["error"]["message"]
        assert (refused.status_code, refused.headers["x-should-retry"]) == (401, "false")
        assert remedy in words
        assert "public-key" not in words
        user.stub.pats[token] = "valid"  # an administrator has enabled it again, or has set a policy
        assert user.sent()["pat"]


@pytest.mark.keeps("live-token")
@pytest.mark.real
def test_a_token_is_replaced_while_requests_go_on_and_none_of_them_fails(user: WithPat) -> None:
    old, statuses, stop = user.given[-1], list[int](), threading.Event()

    def ask_on() -> None:
        while not stop.is_set():
            statuses.append(user.ask("hello").status_code)

    asking = threading.Thread(target=ask_on)
    with user.open_answer() as finish:
        asking.start()
        try:
            new = user.give()
            user.followed(new)
            before = len(statuses)
            wait_until(lambda: len(statuses) > before + 2, SECONDS)
            user.stub.pats[old] = "removed"
            before = len(statuses)
            wait_until(lambda: len(statuses) > before + 2, SECONDS)
        finally:
            stop.set()
            asking.join()
        assert finish() == "one two three"
    assert set(statuses) == {200}


@pytest.mark.real
def test_a_key_that_comes_counts_first_and_without_it_the_token_is_used_again(user: WithPat) -> None:
    user.stub.register_key(public_pem(user.key))
    put(user.usual_key, pem(user.key))
    record = wait_until(lambda: not (sent := user.sent()).get("pat") and sent, SECONDS)
    assert (record["headers"][TOKEN_TYPE.lower()], "iat" in record) == (KEY_PAIR, True)
    user.usual_key.rename(user.usual_key.with_suffix(".old"))
    record = wait_until(lambda: (sent := user.sent()).get("pat") and sent, SECONDS)
    assert record["headers"][TOKEN_TYPE.lower()] == PAT


@pytest.mark.real
def test_the_other_route_says_what_the_token_is_too(user: WithPat) -> None:
    set_in_env_file(user.env_file, "CLAUDE_ROUTE", "messages")
    record = wait_until(lambda: (sent := user.sent())["route"] == "messages" and sent, SECONDS)
    assert (record["headers"][TOKEN_TYPE.lower()], record["pat"]) == (PAT, True)


@pytest.mark.keeps("pat-in-two-files")
@pytest.mark.real
def test_no_token_is_anywhere_but_in_env_and_the_configuration(user: WithPat) -> None:
    """After all of the above, with umask 0 and with loggers at their lowest level."""
    user.sent(stream=True)
    assert len(user.log(PROXY)) > 100_000, "the loggers were not loud"
    with_token = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in user.folder.rglob("*")
        if path.is_file() and any(token.encode() in path.read_bytes() for token in user.given)
    }
    assert with_token == {".env": 0o600, "litellm_config.yaml": 0o600}
    for process in user.processes.values():
        for name in ("environ", "cmdline"):
            known = Path("/proc", str(process.pid), name)
            if known.exists():  # (not on macOS)
                assert not [token for token in user.given if token.encode() in known.read_bytes()]
