"""First-time set-up with a programmatic access token: who may not register a key pastes one, and it is never shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bundle.settings import load_settings
from bundle.tokens import token_now
from configure import make_key_pair
from tests.cortex_stub import CortexStub
from tests.set_up import ACCOUNT, BUNDLE, USER
from tests.terminal import Terminal
from tests.user import new_pat, put

PROMPT = "Paste the token (it is not shown), or press Enter to go on without: "


class Person:
    """A new user at a terminal: an empty HOME, and the stand-in where Snowflake is."""

    def __init__(self, folder: Path, stub: CortexStub, opened: ExitStack) -> None:
        self.state = folder / "state"
        self.state.mkdir()
        self.home = folder / "home"
        self.key = self.home / ".ssh" / "snowflake_key.p8"
        self.env_file = self.state / ".env"
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(self.home), "CORTEX_HOME": str(self.state)}
        self.environ |= {"TERM": "dumb", "SNOWFLAKE_HOST": stub.url}
        self.token = new_pat()
        stub.pats[self.token] = "valid"
        self._opened = opened

    def starts(self, *, knows_account: bool = True) -> Terminal:
        if knows_account:
            self.environ |= {"SNOWFLAKE_ACCOUNT": ACCOUNT, "SNOWFLAKE_USER": USER}
        return self._opened.enter_context(Terminal([sys.executable, str(BUNDLE / "configure.py")], self.environ))

    def sends(self) -> str:
        return token_now(load_settings(self.environ), 0).value


@pytest.fixture
def stub() -> Iterator[CortexStub]:
    with CortexStub(ACCOUNT, USER) as made:
        yield made


@pytest.fixture
def person(tmp_path: Path, stub: CortexStub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    with ExitStack() as opened:
        made = Person(tmp_path, stub, opened)
        monkeypatch.setenv("HOME", str(made.home))
        yield made


def test_who_may_not_run_the_statement_pastes_a_token_and_is_done(person: Person) -> None:
    screen = person.starts(knows_account=False)
    screen.read_until("Account: ")
    screen.type("myorg-myacct")
    screen.read_until("User, or")
    screen.type("jane")
    screen.read_until("Type t and Enter to use a programmatic access token instead.")
    screen.type("t")
    screen.read_until("ALTER USER ADD PROGRAMMATIC ACCESS TOKEN claude_cortex DAYS_TO_EXPIRY = 90;")
    screen.read_until(PROMPT)
    screen.type("too short")
    screen.read_until("what you have pasted is no programmatic access token.")
    screen.read_until(PROMPT, after="is no programmatic")
    screen.type(f"  {person.token} ")
    assert screen.finish() == 0, screen.screen
    for file in (person.key, person.key.with_suffix(".pub")):
        moved = f"Moved {file} to {file.name}.old: a private key that is there counts before an access token.\n"
        assert moved in screen.screen
    assert screen.screen.endswith("Snowflake accepts the programmatic access token of MYORG-MYACCT.JANE.\n")
    assert person.token not in screen.screen
    assert person.env_file.stat().st_mode & 0o777 == 0o600
    assert person.sends() == person.token

    again = person.starts(knows_account=False)
    assert (again.finish(), again.screen) == (0, "")


def test_enter_instead_of_a_token_goes_back_to_the_key(person: Person) -> None:
    screen = person.starts()
    screen.read_until("Type t and Enter")
    screen.type("t")
    screen.read_until(PROMPT)
    screen.type("")
    screen.read_until("Still waiting until Snowflake accepts the key.")
    screen.type("")
    assert screen.finish() == 0, screen.screen
    assert person.key.exists()
    assert not person.env_file.exists()


@pytest.mark.parametrize("state", ["expired", "no policy"])
def test_a_token_that_is_refused_at_a_later_start_is_said_and_another_one_is_asked_for(
    person: Person, stub: CortexStub, state: str
) -> None:
    old = new_pat()
    stub.pats[old] = state
    put(person.env_file, f"# mine\nSNOWFLAKE_PAT='{old}'\n")
    screen = person.starts()
    screen.read_until("Snowflake refuses MYORG-MYACCT.JANE with this programmatic access token")
    screen.read_until("SET NETWORK_POLICY" if state == "no policy" else "SHOW USER PROGRAMMATIC ACCESS TOKENS;")
    screen.read_until(PROMPT)
    screen.type(person.token)
    assert screen.finish() == 0
    assert screen.screen.endswith("Snowflake accepts the programmatic access token of MYORG-MYACCT.JANE.\n")
    assert person.sends() == person.token
    assert person.env_file.read_text().startswith("# mine\n")
    assert not person.key.exists()


def test_a_refused_token_may_stay_and_the_start_goes_on(person: Person, stub: CortexStub) -> None:
    stub.pats[person.token] = "disabled"
    file = put(person.state / "token", person.token)
    person.environ["SNOWFLAKE_PAT_FILE"] = str(file)
    screen = person.starts()
    assert screen.finish() == 0
    assert "Paste" not in screen.screen, "it stands in a file of the user's own"
    assert f"The old one is the file {file} (SNOWFLAKE_PAT_FILE)." in screen.screen
    assert "Continuing. Everything works after Snowflake accepts the token." in screen.screen


def test_a_host_that_is_gone_is_said_and_the_account_can_be_changed(person: Person, stub: CortexStub) -> None:
    put(person.env_file, f"SNOWFLAKE_PAT='{person.token}'\n")
    stub.close_port()
    screen = person.starts()
    screen.read_until("cannot be reached")
    screen.read_until("Change the account or the user? [y/N] ")
    screen.type("")
    assert screen.finish() == 0


@pytest.mark.parametrize("answer", ["", "n"])
def test_a_token_that_only_the_shell_has_is_put_into_env_or_the_start_ends(person: Person, answer: str) -> None:
    person.environ["SNOWFLAKE_PAT"] = person.token
    screen = person.starts()
    screen.read_until("which only you can read? [Y/n] ")
    screen.type(answer)
    assert screen.finish() == (0 if answer == "" else 78)
    del person.environ["SNOWFLAKE_PAT"]
    if answer == "":
        assert person.sends() == person.token
    else:
        assert 'printf "SNOWFLAKE_PAT=' in screen.screen
        assert not person.env_file.exists()
    assert person.token not in screen.screen


def test_a_key_that_a_setting_names_is_not_moved_and_the_setting_is_named(person: Person) -> None:
    person.environ["SNOWFLAKE_PRIVATE_KEY_PATH"] = str(person.home / "mine.p8")
    make_key_pair(person.home / "mine.p8")
    screen = person.starts()
    screen.read_until("Type t and Enter")
    screen.type("t")
    screen.read_until("SNOWFLAKE_PRIVATE_KEY_PATH in the environment names a private key, and that counts first.")
    screen.type("")
    assert screen.finish() == 0
    assert (person.home / "mine.p8").exists()
