"""First-time set-up: what is missing is asked once, in a terminal; nothing that is there is overwritten."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

import configure
from bundle.errors import ConfigError
from bundle.files import write_private
from bundle.settings import load_settings
from bundle.tokens import load_key
from configure import make_key_pair
from tests.cortex_stub import CortexStub
from tests.set_up import ACCOUNT, BUNDLE, USER, pem, public_pem
from tests.terminal import Terminal
from tests.user import KEY, put


@pytest.fixture
def stub() -> Iterator[CortexStub]:
    with CortexStub(ACCOUNT, USER) as made:
        yield made


@pytest.fixture
def environ(tmp_path: Path, stub: CortexStub) -> dict[str, str]:
    """A new user's: an empty HOME, and the stand-in where Snowflake is."""
    state = tmp_path / "state"
    state.mkdir()
    names = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "CORTEX_HOME": str(state), "TERM": "dumb"}
    return {**names, "SNOWFLAKE_HOST": stub.url}


@pytest.fixture
def terminal(environ: dict[str, str]) -> Iterator[Callable[[], Terminal]]:
    with ExitStack() as opened:
        yield lambda: opened.enter_context(Terminal([sys.executable, str(BUNDLE / "configure.py")], environ))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------------------------------------------ from end to end


def test_a_new_user_answers_two_questions_runs_one_statement_and_is_done(
    terminal: Callable[[], Terminal], environ: dict[str, str], stub: CortexStub
) -> None:
    person = terminal()
    person.read_until("Account: ")
    person.type("https://app.snowflake.com/myorg/myacct/#/homepage")
    person.read_until("That is account MYORG-MYACCT at 127.0.0.1:")
    person.read_until("User, or Enter to type the account again: ")
    person.type("jane")
    person.read_until("Waiting until Snowflake accepts the key")
    statement = re.search(r"ALTER USER JANE SET RSA_PUBLIC_KEY='([^']+)';", person.screen)
    assert statement
    stub.register_key(statement[1])
    assert person.finish() == 0
    assert "Snowflake accepts the key of MYORG-MYACCT.JANE." in person.screen
    assert "\033" not in person.screen

    env_file, ssh = Path(environ["CORTEX_HOME"], ".env"), Path(environ["HOME"], ".ssh")
    assert env_file.read_text().splitlines()[1:] == ["SNOWFLAKE_ACCOUNT='MYORG-MYACCT'", "SNOWFLAKE_USER=jane"]
    assert (mode(env_file), mode(ssh), mode(ssh / "snowflake_key.p8")) == (0o600, 0o700, 0o600)
    assert public_pem(load_key(ssh / "snowflake_key.p8", None)) == (ssh / "snowflake_key.pub").read_text()

    again = terminal()
    assert again.finish() == 0
    assert again.screen == ""


def test_what_cannot_be_read_as_an_account_is_explained_and_asked_again(
    terminal: Callable[[], Terminal], environ: dict[str, str]
) -> None:
    person = terminal()
    person.read_until("Account: ")
    person.type("my account")
    person.read_until("is not a Snowflake account identifier")
    person.type("xy12345.eu-west-1")
    person.read_until("That is account XY12345 at 127.0.0.1:")
    person.read_until("User, or")
    assert "SNOWFLAKE_ACCOUNT='xy12345.eu-west-1'\n" in Path(environ["CORTEX_HOME"], ".env").read_text()


def test_an_answer_that_was_given_before_an_interruption_is_not_asked_again(terminal: Callable[[], Terminal]) -> None:
    person = terminal()
    person.read_until("Account: ")
    person.type("my_org-my_acct")
    person.read_until("User, or")
    person.type("\x04")
    assert person.finish() == 130
    again = terminal()
    again.read_until("User, or")
    assert "Account: " not in again.screen


def test_a_connection_of_snowflake_s_own_tools_is_offered(
    terminal: Callable[[], Terminal], environ: dict[str, str]
) -> None:
    home = Path(environ["HOME"], ".snowflake")
    home.mkdir(parents=True)
    (home / "connections.toml").write_text(
        '[other]\naccount = "A-B"\nuser = "X"\n'
        '[half]\naccount = "A-C"\n'
        '[work]\naccount = "MYORG-MYACCT"\nuser = "Jane"\n'
    )
    person = terminal()
    person.read_until("2  work: MYORG-MYACCT as Jane")
    person.read_until("Enter for another account: ")
    assert "half" not in person.screen
    person.type("7")
    person.read_until("Type a number from 1 to 2.")
    person.type("2")
    person.read_until("ALTER USER JANE SET")
    assert "Account: " not in person.screen
    assert load_settings(environ).account == "MYORG-MYACCT"


def test_a_default_connection_with_a_registered_key_is_a_complete_set_up(
    terminal: Callable[[], Terminal], environ: dict[str, str], stub: CortexStub
) -> None:
    home = Path(environ["HOME"], ".snowflake")
    home.mkdir(parents=True)
    key = home / "rsa_key.p8"
    stub.register_key(make_key_pair(key).read_text())
    (home / "connections.toml").write_text(
        f'[default]\naccount = "MYORG-MYACCT"\nuser = "jane"\nprivate_key_file = "{key}"\n'
    )
    person = terminal()
    assert (person.finish(), person.screen) == (0, "")


def test_waiting_ends_with_enter_and_the_start_goes_on(
    terminal: Callable[[], Terminal], environ: dict[str, str]
) -> None:
    environ.update({"SNOWFLAKE_ACCOUNT": ACCOUNT, "SNOWFLAKE_USER": USER})
    person = terminal()
    person.read_until("Press Enter to go on without waiting.")
    person.type("")
    assert person.finish() == 0
    assert f"make -C {BUNDLE} doctor" in person.screen


def test_a_fault_that_no_statement_fixes_is_said_while_waiting(
    terminal: Callable[[], Terminal], environ: dict[str, str], stub: CortexStub
) -> None:
    environ.update({"SNOWFLAKE_ACCOUNT": ACCOUNT, "SNOWFLAKE_USER": USER})
    stub.close_port()
    person = terminal()
    person.read_until("cannot be reached")
    person.read_until("Change the account or the user? [y/N] ")
    person.type("")
    person.read_until("Press Enter to go on without waiting.")
    person.type("")
    assert person.finish() == 0


def test_a_role_without_cortex_is_said_and_not_waited_for(
    terminal: Callable[[], Terminal], environ: dict[str, str], stub: CortexStub
) -> None:
    environ["SNOWFLAKE_ACCOUNT"] = ACCOUNT
    key = Path(environ["HOME"], ".ssh", "snowflake_key.p8")
    stub.register_key(make_key_pair(key).read_text())
    stub.fault("no_role")
    person = terminal()
    person.read_until("User, or")
    person.type(USER)
    person.read_until("Change the account or the user? [y/N] ")
    person.type("")
    assert person.finish() == 0
    assert "ALTER USER" not in person.screen
    assert "CORTEX_USER" in person.screen


def test_a_login_that_is_refused_at_a_later_start_is_said_and_the_user_can_be_changed(
    terminal: Callable[[], Terminal], environ: dict[str, str], stub: CortexStub
) -> None:
    stub.register_key(make_key_pair(Path(environ["HOME"], ".ssh", "snowflake_key.p8")).read_text())
    env_file = Path(environ["CORTEX_HOME"], ".env")
    write_private(env_file, f"SNOWFLAKE_ACCOUNT={ACCOUNT}\nSNOWFLAKE_USER=JANET\n")
    person = terminal()
    person.read_until("Snowflake refuses MYORG-MYACCT.JANET with this key.")
    person.read_until("the statement needs the user's NAME", 20)
    person.read_until("Type c and Enter to change it.")
    person.type("c")
    person.read_until("Account [MYORG-MYACCT]: ")
    person.type("")
    person.read_until("User [JANET]: ")
    person.type("jane")
    assert person.finish() == 0
    assert env_file.read_text() == f"SNOWFLAKE_ACCOUNT={ACCOUNT}\nSNOWFLAKE_USER=jane\n"


def test_a_host_that_is_gone_at_a_later_start_is_said_and_the_start_goes_on(
    terminal: Callable[[], Terminal], environ: dict[str, str], stub: CortexStub
) -> None:
    make_key_pair(Path(environ["HOME"], ".ssh", "snowflake_key.p8"))
    environ.update({"SNOWFLAKE_ACCOUNT": ACCOUNT, "SNOWFLAKE_USER": USER})
    stub.close_port()
    person = terminal()
    person.read_until("cannot be reached")
    person.read_until("Change the account or the user? [y/N] ")
    person.type("y")
    person.read_until("in the environment counts before .env. Change it there: unset SNOWFLAKE_ACCOUNT SNOWFLAKE_USER")
    assert person.finish() == 0
    assert "ALTER USER" not in person.screen


def test_the_passphrase_of_an_encrypted_key_is_asked_for_once(
    terminal: Callable[[], Terminal], environ: dict[str, str], stub: CortexStub
) -> None:
    environ.update({"SNOWFLAKE_ACCOUNT": ACCOUNT, "SNOWFLAKE_USER": USER})
    put(Path(environ["HOME"], ".ssh", "snowflake_key.p8"), pem(KEY, "open # it's \\me"))
    stub.register_key(public_pem(KEY))
    person = terminal()
    person.read_until("is encrypted.")
    person.read_until("Its passphrase (what you type is not shown): ")
    person.type("wrong")
    person.read_until("This passphrase does not open the key.")
    person.read_until("Its passphrase (what you type is not shown): ", after="does not open")
    person.type("open # it's \\me")
    assert person.finish() == 0
    assert "open #" not in person.screen
    env_file = Path(environ["CORTEX_HOME"], ".env")
    assert mode(env_file) == 0o600
    assert load_settings(environ).passphrase == "open # it's \\me"
    again = terminal()
    assert (again.finish(), again.screen) == (0, "")


# ----------------------------------------------------------------------------------------- before anything is installed


@pytest.fixture
def first(environ: dict[str, str]) -> Iterator[Callable[[], Terminal]]:
    """The first questions, asked by a Python that has no package at all."""
    with ExitStack() as opened:
        command = [sys.executable, "-S", str(BUNDLE / "configure.py"), "--first"]
        yield lambda: opened.enter_context(Terminal(command, environ))


def test_the_first_questions_need_nothing_that_is_installed(
    first: Callable[[], Terminal], environ: dict[str, str], stub: CortexStub
) -> None:
    person = first()
    person.read_until("Account: ")
    person.type("myorg-wrong")
    person.read_until("That is account MYORG-WRONG at 127.0.0.1:")
    person.read_until("User, or Enter to type the account again: ")
    person.type("")  # a wrong answer can be taken back
    person.read_until("Account: ", after="type the account again")
    person.type("myorg-myacct")
    person.read_until("User, or", after="That is account MYORG-MYACCT")
    person.type("jane")
    assert person.finish() == 0
    found = load_settings(environ)
    assert (found.account, found.user) == (ACCOUNT, USER)
    assert not Path(environ["HOME"]).exists()
    assert {request["path"] for request in stub.requests} == {"/api/v2/cortex/v1/chat/completions"}
    again = first()
    assert (again.finish(), again.screen) == (0, "")


def test_the_host_is_looked_up_right_after_the_account_and_a_wrong_one_is_typed_again(
    first: Callable[[], Terminal], environ: dict[str, str], stub: CortexStub
) -> None:
    stub.close_port()
    person = first()
    person.read_until("Account: ")
    person.type("myorg-wrong")
    person.read_until("127.0.0.1 cannot be reached")
    person.read_until("Type the account again, or press Enter to keep it: ")
    person.type("myorg-myacct")
    person.read_until("Type the account again, or press Enter to keep it: ", after="MYORG-MYACCT")
    person.type("")
    person.read_until("User, or Enter to type the account again: ")
    assert "SNOWFLAKE_ACCOUNT='MYORG-MYACCT'\n" in Path(environ["CORTEX_HOME"], ".env").read_text()


def test_a_name_that_is_almost_one_of_ours_is_shown_before_the_question(
    first: Callable[[], Terminal], environ: dict[str, str]
) -> None:
    put(Path(environ["CORTEX_HOME"], ".env"), f"SNOWFLAKE_ACCOUNT={ACCOUNT}\nSNOWFLAKE_USR=jane\n")
    person = first()
    person.read_until("line 2: SNOWFLAKE_USR is no setting. Did you mean SNOWFLAKE_USER?")
    person.read_until("User, or")


def test_a_home_that_cannot_be_written_is_named_before_the_first_question(
    first: Callable[[], Terminal], environ: dict[str, str], tmp_path: Path
) -> None:
    environ["HOME"] = str(put(tmp_path / "file", "") / "home")
    person = first()
    assert person.finish() == 78
    assert f"HOME is {environ['HOME']}, and" in person.screen.replace("\n", " ")
    assert "Account" not in person.screen


# --------------------------------------------------------------------------------------------------- without a terminal


def run_without_terminal(environ: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BUNDLE / "configure.py"), *options],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_terminal_it_lists_what_to_set_and_makes_nothing(environ: dict[str, str]) -> None:
    done = run_without_terminal(environ, "--first")
    assert (done.returncode, done.stdout) == (78, "")
    for words in ("SNOWFLAKE_ACCOUNT", "SNOWFLAKE_USER", "connections.toml", "in a terminal"):
        assert words in done.stderr
    environ.update({"SNOWFLAKE_ACCOUNT": ACCOUNT, "SNOWFLAKE_USER": USER})
    done = run_without_terminal(environ)
    assert (done.returncode, "openssl" in done.stderr) == (78, True)
    assert not Path(environ["HOME"]).exists()
    assert list(Path(environ["CORTEX_HOME"]).iterdir()) == []


def test_a_complete_set_up_needs_no_terminal_and_no_network(environ: dict[str, str], stub: CortexStub) -> None:
    environ.update({"SNOWFLAKE_ACCOUNT": ACCOUNT, "SNOWFLAKE_USER": USER})
    make_key_pair(Path(environ["HOME"], ".ssh", "snowflake_key.p8"))
    done = run_without_terminal(environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stub.requests == []


@pytest.mark.parametrize("name", ["PROXY_PORT", "REFRESH_MINUTES"])
def test_another_mistake_is_said_and_not_asked_about(
    terminal: Callable[[], Terminal], environ: dict[str, str], name: str
) -> None:
    environ.update({"SNOWFLAKE_ACCOUNT": ACCOUNT, "SNOWFLAKE_USER": USER, name: "many"})
    person = terminal()
    assert person.finish() == 78
    assert f"{name} is 'many'" in person.screen


# ----------------------------------------------------------------------------------------------------------- the pieces


def test_the_key_pair_is_pkcs8_and_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "new" / "snowflake_key.p8"
    public = make_key_pair(path)
    assert (public.name, mode(path.parent), mode(path)) == ("snowflake_key.pub", 0o700, 0o600)
    assert path.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert load_key(path, None).key_size == 2048
    loaded = serialization.load_pem_public_key(public.read_bytes())
    assert loaded == load_key(path, None).public_key()
    assert sorted(file.name for file in path.parent.iterdir()) == ["snowflake_key.p8", "snowflake_key.pub"]


@pytest.mark.parametrize("there", ["snowflake_key.p8", "snowflake_key.pub"])
def test_no_key_is_ever_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    with pytest.raises(ConfigError, match="is not overwritten"):
        make_key_pair(tmp_path / "snowflake_key.p8")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(there, "precious")]


def test_a_key_that_appears_at_the_same_moment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "snowflake_key.p8"
    write = write_private

    def second(target: Path, text: str, **options: bool) -> None:
        target.write_text("theirs")
        write(target, text, **options)

    monkeypatch.setattr(configure, "write_private", second)
    with pytest.raises(ConfigError, match="at the same moment"):
        make_key_pair(path)
    assert path.read_text() == "theirs"
