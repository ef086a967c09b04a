"""A programmatic access token in use: the refresher, the proxy's view of it, doctor, status, a query, uninstall."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml

from bundle import refresher
from bundle.checks.connections import snowflake
from bundle.checks.finding import Finding, read_installation
from bundle.checks.processes import status, token_in_use
from bundle.checks.report import causes, examine
from bundle.checks.this_machine import access_token, private_key
from bundle.cortex.errors import as_pat, explain
from bundle.credential import KEY_PAIR, PAT, TOKEN_TYPE, into_env_file
from bundle.pat_watch import AGAIN_SECONDS, PatWatch, refusal_of
from bundle.proxy.live_config import LiveConfig
from bundle.refresher import Refresher, read_state, status_lines
from bundle.settings import load_settings
from bundle.sql_api import QueryError, query
from bundle.taking_back import what_remains
from bundle.tokens import token_now
from tests.checked import findings
from tests.set_up import SetUp, pem
from tests.user import KEY, new_pat, put

TOKEN = new_pat()


# -------------------------------------------------------------------------------------------------- refresher and proxy


class Running:
    """A refresher in this process, the proxy's view of its file, and the stand-in. The user has a token and no key."""

    def __init__(self, set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stub, self.folder, self.environ = set_up.stub, set_up.folder, set_up.environ
        self.environ.pop("SNOWFLAKE_PRIVATE_KEY_PATH")
        set_up.key_path.unlink()
        for name, value in self.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SNOWFLAKE_PRIVATE_KEY_PATH", raising=False)
        self.stub.pats[TOKEN] = "valid"
        self.env_file = put(self.folder / ".env", f"SNOWFLAKE_PAT='{TOKEN}'\n")
        self.now, self.lines = time.time(), list[str]()
        self.refresher = Refresher(load_settings, lambda: self.now, self.lines.append, self.environ, self.no_list)
        self.refresher.refresh(self.now, "the refresher has started")
        self.live = LiveConfig(set_up.config, lambda: self.now)
        self.config = set_up.config

    def no_list(self, *_: Any) -> Any:
        raise QueryError("not asked here")

    def give(self, token: str) -> None:
        self.stub.pats[token] = "valid"
        put(self.env_file, f"SNOWFLAKE_PAT='{token}'\n")

    def after(self, seconds: float) -> bool:
        self.now += seconds
        written = self.refresher.step()
        self.refresher.pat_watch.wait(10)
        return written

    def findings(self) -> dict[str, Finding]:
        return {finding.name: finding for finding in examine(read_installation(self.environ, self.now))}


@pytest.fixture
def running_pat(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> Running:
    return Running(set_up, monkeypatch)


def test_a_token_is_written_once_and_again_only_when_it_was_replaced(running_pat: Running) -> None:
    document = yaml.safe_load(running_pat.config.read_text())
    params = [row["litellm_params"] for row in document["model_list"]]
    assert {(each["api_key"], each["extra_headers"][TOKEN_TYPE]) for each in params} == {(TOKEN, PAT)}
    for seconds in (3001, 86_400, -500_000):  # neither its age nor the clock matters
        assert not running_pat.after(seconds)
    new = new_pat()
    running_pat.give(new)
    assert running_pat.after(2)
    assert running_pat.lines[-1].startswith(
        f"new token, a programmatic access token from SNOWFLAKE_PAT in {running_pat.folder}"
    )
    assert running_pat.live.token() == new
    assert running_pat.live.token_type(new) == PAT
    state = (running_pat.folder / ".refresher.json").read_text()
    for text in (state, *running_pat.lines):
        assert TOKEN not in text
        assert new not in text


def test_the_file_of_a_token_is_watched_and_a_broken_one_leaves_the_last_good_token_in_use(
    running_pat: Running,
) -> None:
    file = put(running_pat.folder / "token", new_pat())
    put(running_pat.env_file, f"SNOWFLAKE_PAT_FILE={file}\n")
    assert running_pat.after(2)
    for content in (new_pat(), new_pat()):
        put(file, content)
        assert running_pat.after(2)
        assert running_pat.live.token() == content
    put(file, "broken")
    assert not running_pat.after(2)
    assert "WARNING: the last good configuration stays" in running_pat.lines[-1]
    assert running_pat.live.token() == content


def test_the_refresher_says_once_that_a_token_is_refused_and_when_it_is_taken_again(running_pat: Running) -> None:
    running_pat.after(2)
    assert read_state(running_pat.folder)["refusal"] is None
    running_pat.stub.pats[TOKEN] = "expired"
    running_pat.after(3001)
    running_pat.after(2)
    refusal = "Snowflake Cortex: Programmatic access token is invalid."
    assert read_state(running_pat.folder)["refusal"] == refusal
    shown = status_lines(read_state(running_pat.folder), running_pat.now)
    assert shown[0].startswith(f"token:    programmatic access token from SNOWFLAKE_PAT in {running_pat.env_file}")
    assert shown[1] == f"REFUSED:  {refusal}"
    assert not refresher.works(read_state(running_pat.folder), running_pat.now)
    running_pat.after(AGAIN_SECONDS)
    assert len([line for line in running_pat.lines if line.startswith(f"WARNING: {refusal}")]) == 1
    running_pat.stub.pats[TOKEN] = "valid"
    running_pat.after(AGAIN_SECONDS)
    running_pat.after(2)
    assert running_pat.lines[-1] == "Snowflake takes the programmatic access token again"
    assert refresher.works(read_state(running_pat.folder), running_pat.now)


def test_a_network_that_is_down_tells_nothing_about_a_token(running_pat: Running) -> None:
    running_pat.stub.close_port()
    assert refusal_of(load_settings(), 0) is None
    watch = PatWatch(running_pat.lines.append, lambda *_: None)
    watch.refusal = "as before"
    watch.ask_if_due(load_settings(), 10)
    watch.wait(10)
    assert watch.refusal == "as before"


@pytest.mark.keeps("new-token-after-401")
def test_a_refused_token_is_final_unless_another_one_is_there(running_pat: Running) -> None:
    live = running_pat.live
    assert live.token() == TOKEN
    assert live.refuse(TOKEN, "", PAT), "there is no other one"
    assert live.token() == TOKEN, "only Snowflake knows whether it has been enabled again"
    live.accept(TOKEN)
    new = new_pat()
    running_pat.give(new)  # and the refresher has not seen it yet
    assert live.token() == TOKEN
    assert not live.refuse(TOKEN, "", PAT), "the request is sent again"
    assert (live.token(), live.token_type(new)) == (new, PAT)
    assert live.refuse(new, "", PAT)
    running_pat.after(2)
    assert live.token() == new


def test_a_refused_token_gives_way_to_a_key_that_has_come(running_pat: Running) -> None:
    live, key = running_pat.live, running_pat.folder / ".ssh" / "snowflake_key.p8"
    assert live.token() == TOKEN
    put(key, pem(KEY))
    assert not live.refuse(TOKEN, "", PAT)
    signed = live.token()
    assert live.token_type(signed) == KEY_PAIR
    assert running_pat.after(2)
    assert live.token_type(live.token()) == KEY_PAIR
    key.unlink()
    assert running_pat.after(2)
    assert (live.token(), live.token_type(TOKEN)) == (TOKEN, PAT)


# ------------------------------------------------------------------------------------------------ doctor, status, query


def test_doctor_says_which_credential_is_in_use_and_nothing_of_keys_and_clocks(running_pat: Running) -> None:
    running_pat.stub.skew = 4000
    found = running_pat.findings()
    assert f"programmatic access token from SNOWFLAKE_PAT in {running_pat.env_file}" in found["Access token"].found
    assert found["Login"].found == "Snowflake accepts MYORG-MYACCT.JANE with this programmatic access token"
    assert found["Token"].found == "a programmatic access token; its end is not known here"
    assert {name: found[name].state for name in ("Access token", "Login", "Token")} == dict.fromkeys(
        ("Access token", "Login", "Token"), "ok"
    )
    assert not {"Private key", "Fingerprint", "Clock"} & found.keys()
    assert TOKEN not in repr(found)


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("removed", "SHOW USER"),
        ("expired", "SHOW USER"),
        ("disabled", "SHOW USER"),
        ("no policy", "SET NETWORK_POLICY"),
    ],
)
@pytest.mark.parametrize("own_words", [True, False])
def test_doctor_and_a_query_say_in_words_that_a_token_is_refused(
    running_pat: Running, state: str, remedy: str, own_words: bool
) -> None:
    running_pat.stub.pats[TOKEN], running_pat.stub.pat_words = state, own_words
    installation = read_installation(running_pat.environ, running_pat.now)
    login = {finding.name: finding for finding in snowflake(installation)}["Login"]
    assert (login.state, login.found.startswith("Snowflake refuses MYORG-MYACCT.JANE with this prog")) == ("fail", True)
    assert remedy in login.fix
    assert login.fix.endswith(f"The old one is SNOWFLAKE_PAT in {running_pat.env_file}.")
    assert "public-key" not in login.fix
    with pytest.raises(QueryError) as refused:
        query(load_settings(), "SELECT 1")
    assert remedy in str(refused.value)
    assert TOKEN not in str(refused.value)


def test_a_refusal_in_words_about_another_type_of_token_is_explained_as_that_of_an_access_token() -> None:
    for body in ({"code": "390303", "message": "Invalid OAuth access token."}, {"message": "JWT token is invalid."}):
        told = explain(401, as_pat(401, json.dumps(body)))
        assert told.message.startswith(f"Snowflake Cortex: Programmatic access token: {body['message']}\n")
        assert "SHOW USER PROGRAMMATIC ACCESS TOKENS" in told.message
        assert "public-key" not in told.message
    assert as_pat(403, "{}") == "{}"


def test_a_token_that_cannot_be_read_is_the_one_cause_that_is_named(running_pat: Running) -> None:
    running_pat.env_file.unlink()
    running_pat.environ["SNOWFLAKE_PAT_FILE"] = str(put(running_pat.folder / "token", TOKEN, 0o644))
    installation = read_installation(running_pat.environ, running_pat.now)
    named = [finding.name for finding in causes(examine(installation))]
    assert "Access token" in named
    assert not {"Token", "Login", "Private key", "Refresher"} & set(named)


def test_a_configuration_that_has_not_followed_the_settings_is_a_fault(running_pat: Running) -> None:
    installation = read_installation(running_pat.environ, running_pat.now)
    assert token_in_use(installation, TOKEN, {TOKEN_TYPE: PAT}).state == "ok"
    for written, headers in ((new_pat(), {TOKEN_TYPE: PAT}), (TOKEN, {TOKEN_TYPE: KEY_PAIR}), ("", {})):
        assert token_in_use(installation, written, headers).state == "fail"


def test_a_token_that_is_there_but_not_used_is_named_in_status_and_doctor(set_up: SetUp) -> None:
    put(set_up.folder / ".env", f"SNOWFLAKE_PAT={TOKEN}\n")
    found = findings(set_up, access_token)["Access token"]
    assert (found.state, "is not used" in found.found, "remove SNOWFLAKE_PRIVATE_KEY_PATH" in found.fix) == (
        "skip",
        True,
        True,
    )
    assert "Private key" in findings(set_up, private_key)
    screen = status(read_installation(set_up.environ, time.time()))[0]
    assert f"note:     SNOWFLAKE_PAT in {set_up.folder / '.env'} is not used" in screen
    remains = "\n".join(what_remains(set_up.environ))
    assert "UNSET RSA_PUBLIC_KEY" in remains
    assert "REMOVE PROGRAMMATIC ACCESS TOKEN" in remains


def test_uninstall_says_that_a_token_stays_valid_until_it_is_removed(running_pat: Running) -> None:
    remains = "\n".join(what_remains(running_pat.environ))
    assert f"The programmatic access token from SNOWFLAKE_PAT in {running_pat.env_file}. It stays valid" in remains
    assert "RSA_PUBLIC_KEY" not in remains
    assert f"Your settings: {running_pat.env_file}" in remains


def test_the_scripts_name_the_token_and_never_show_it(running_pat: Running, set_up: SetUp) -> None:
    once, public = set_up.run("auto_refresh.py", "--once"), set_up.run("auto_refresh.py", "--public-key")
    assert (once.returncode, f"from SNOWFLAKE_PAT in {running_pat.env_file}" in once.stdout) == (0, True)
    assert (public.returncode, "there is no private key" in public.stderr) == (78, True)
    assert TOKEN not in once.stdout + once.stderr + public.stdout + public.stderr


def test_a_token_that_only_a_shell_has_stops_a_start_with_a_command_that_helps(
    running_pat: Running, set_up: SetUp
) -> None:
    running_pat.env_file.unlink()
    command = into_env_file(running_pat.env_file)
    for script in ("start.py", "configure.py"):
        done = set_up.run(script, SNOWFLAKE_PAT=TOKEN)
        if done.returncode == 0:  # then this test fails, and PM2 runs
            set_up.run("stop.py")
        assert (done.returncode, "PM2 passes no secret of a shell on" in done.stderr) == (78, True), done.stderr
        assert command in done.stderr
        assert TOKEN not in done.stdout + done.stderr
    assert set_up.run("sh", "-c", command, SNOWFLAKE_PAT=TOKEN).returncode == 0
    assert token_now(load_settings(running_pat.environ), 0).value == TOKEN
