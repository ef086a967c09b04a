"""point_claude.py as a process: what it says, and that the real Claude Code reaches the proxy."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import point_claude
from bundle.bootstrap import script
from bundle.claude_models import aliases
from bundle.claude_settings import line_entry, proxy_entries, theirs_in_force
from bundle.command import place
from bundle.cortex.names import row_for
from bundle.errors import ConfigError
from bundle.settings import load_settings, master_key
from tests.checked import FakeAnswers, FakeProxy, serving
from tests.claude_home import TEMPLATE, USERS, Home, rows_of, text_of
from tests.set_up import CLAUDE, SetUp, drop_root_powers


@pytest.fixture
def home(set_up: SetUp) -> Home:
    return Home(set_up)


@pytest.mark.parametrize("text", USERS.values(), ids=USERS)
def test_nothing_is_lost_and_undo_gives_the_same_bytes_and_mode(home: Home, text: str) -> None:
    before = home.write(text, 0o640)
    tree = home.tree if text.strip() else {}
    assert "Other users could read" in home.good()
    ours = json.loads(home.good("--print"))["env"] | {"ANTHROPIC_AUTH_TOKEN": home.set_up.master_key}
    deny = tree.get("permissions", {}).get("deny", [])
    assert home.tree["env"] == {**tree.get("env", {}), **ours}
    assert home.tree["permissions"]["deny"] == [*deny, *([] if "WebSearch" in deny else ["WebSearch"])]
    start = {"model": "sonnet", "effortLevel": "medium", "autoCompactWindow": 1_000_000}
    line = {"statusLine": line_entry(home.set_up.folder)}  # (no text of USERS has a status line)
    expected = {**start, **tree, **line, "env": 0, "permissions": 0, "skipWebFetchPreflight": True}
    assert {**home.tree, "env": 0, "permissions": 0} == expected
    assert list(home.tree)[: len(tree)] == list(tree)
    assert text_of(home.folder / "settings.json.before-cortex") == before
    modes = [stat.S_IMODE((home.folder / name).stat().st_mode) for name in home.names]
    assert modes == [0o600, 0o640, 0o600]  # the second is the backup, which has no key in it
    home.good("--undo", SNOWFLAKE_ACCOUNT="")  # needs no configuration
    assert text_of(home.path) == before
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o640
    assert home.names == ["settings.json"]


def test_a_second_run_changes_nothing(home: Home) -> None:
    home.write(USERS["tabs"])
    home.good()
    marks = {path: (path.read_bytes(), path.stat().st_ino) for path in home.folder.iterdir()}
    assert "already" in home.good()
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in home.folder.iterdir()} == marks


def test_a_link_stays_a_link(home: Home) -> None:
    dotfiles = home.set_up.folder / "dotfiles"
    dotfiles.mkdir()
    before = home.write(USERS["two spaces"])
    home.path.rename(dotfiles / "claude.json")
    home.path.symlink_to("../dotfiles/claude.json")
    assert "out of version control" in home.good()
    assert str(home.path.readlink()) == "../dotfiles/claude.json"
    assert home.tree["env"]["A"] == "1"
    home.good("--undo")
    assert str(home.path.readlink()) == "../dotfiles/claude.json"
    assert (dotfiles / "claude.json").read_bytes() == before
    assert [path.name for path in dotfiles.iterdir()] == ["claude.json"]


BROKEN = ['{"env": {"A": "1",}}', "{\n  // mine\n}", "\udcff", "[]", '{"env": []}', '{"permissions": {"deny": {}}}']


@pytest.mark.parametrize("text", BROKEN)
def test_broken_settings_are_left_alone(home: Home, text: str) -> None:
    home.path.write_bytes(before := text.encode("utf-8", "surrogateescape"))
    done = home.run()
    assert done.returncode == 78
    assert str(home.path) in done.stderr
    assert ("wrong shape" if BROKEN.index(text) > 2 else "not valid JSON") in done.stderr
    assert text_of(home.path) == before
    assert home.names == ["settings.json"]
    if text == BROKEN[0]:
        assert home.run("--file").returncode == 0  # does not need them


@pytest.mark.parametrize(("file", "folder", "words"), [(0o400, 0o700, "chmod u+w"), (0o600, 0o500, "denied")])
def test_what_is_read_only_is_left_alone(home: Home, file: int, folder: int, words: str) -> None:
    before = home.write("{}", file)
    home.folder.chmod(folder)
    home.set_up.before_exec = drop_root_powers
    process = home.set_up.start("point_claude.py")
    assert process.wait(60) == 78
    home.folder.chmod(0o700)
    assert words in home.set_up.log("point_claude.py")
    assert text_of(home.path) == before
    assert home.names == ["settings.json"]


def test_print_shows_the_block_and_where_the_key_is(home: Home) -> None:
    tree = json.loads(home.good("--print"))
    assert tree["env"]["ANTHROPIC_BASE_URL"] == home.set_up.url
    assert str(home.set_up.folder / ".master_key") in tree["env"]["ANTHROPIC_AUTH_TOKEN"]
    assert tree["permissions"] == {"deny": ["WebSearch"]}
    assert tree["skipWebFetchPreflight"] is True
    assert list(tree.items())[:2] == [("model", "sonnet"), ("effortLevel", "medium")]
    assert home.names == []


def test_what_claude_code_starts_with_is_said_and_one_line_sets_another(home: Home) -> None:
    fix = "CLAUDE_START_MODEL and CLAUDE_START_EFFORT in .env set others."
    assert f"Claude Code starts with sonnet, at medium effort. {fix}" in home.good()
    (home.set_up.folder / ".env").write_text("CLAUDE_START_MODEL=opus\n")
    assert f"Claude Code starts with opus, at medium effort. {fix}" in home.good()
    home.path.write_text(json.dumps({**home.tree, "model": "haiku", "effortLevel": "high"}))  # by /model and /effort
    assert f"Claude Code starts with opus, at high effort. {fix}" in home.good()
    assert json.loads(home.good("--print", CLAUDE_START_EFFORT="low"))["effortLevel"] == "low"
    (home.set_up.folder / ".env").write_text("CLAUDE_START_MODEL=gpt\n")
    done = home.run("--print")
    assert (done.returncode, done.stdout) == (78, "")
    assert "CLAUDE_START_MODEL is 'gpt', and no row of" in done.stderr


def test_what_the_user_has_chosen_stays_for_one_run_too(home: Home) -> None:
    home.write('{"model": "haiku", "effortLevel": "high", "autoCompactWindow": 300000}')
    home.good("--file")
    tree = json.loads((home.set_up.folder / "claude.json").read_text())
    assert not {"model", "effortLevel", "autoCompactWindow"} & tree.keys()
    home.good("--file", CLAUDE_START_MODEL="opus")
    assert json.loads((home.set_up.folder / "claude.json").read_text())["model"] == "opus"
    home.write("{}")
    home.good()
    home.good("--file")  # what all runs have got from us is no choice of the user
    assert json.loads((home.set_up.folder / "claude.json").read_text())["model"] == "sonnet"


def test_check_is_content_after_pointing_and_not_before(home: Home) -> None:
    before = home.run("--check")
    assert before.returncode == 1
    assert script("point_claude.py", "--run") in before.stdout
    home.good()
    assert "nothing listens" in home.run("--check").stdout
    with serving(FakeProxy(home.set_up.port, home.set_up.master_key)):
        home.good("--check", ANTHROPIC_BASE_URL="https://exported.example", ANTHROPIC_API_KEY="mine")
    (home.folder / "settings.local.json").write_text("{")
    assert str(home.folder / "settings.local.json") in home.run("--check").stderr


def test_a_provider_that_only_newer_releases_know_is_switched_off_for_a_run_and_named(home: Home) -> None:
    new, theirs = "CLAUDE_CODE_USE_SOME_NEW_PROVIDER", "CLAUDE_CODE_USE_POWERSHELL_TOOL"
    project = home.set_up.folder / "project" / ".claude" / "settings.json"
    project.parent.mkdir(parents=True)
    project.write_text(json.dumps({"env": {new: "1", theirs: "1"}}))
    in_force = theirs_in_force(home.set_up.environ, project.parent.parent)
    env = proxy_entries(load_settings(home.set_up.environ), in_force)["env"]
    assert (env[new], env["CLAUDE_CODE_USE_MANTLE"]) == ("", "")
    assert theirs not in env
    home.good(**{new: "1"})
    assert home.tree["env"][new] == ""
    home.good("--undo")


def test_what_pointing_cannot_change_is_said_with_its_fix(home: Home) -> None:
    local = home.folder / "settings.local.json"
    local.write_text(json.dumps({"apiKeyHelper": "print-a-key"}))
    done = home.run()
    assert done.returncode == 1
    assert "now points Claude Code at" in done.stdout
    assert f"Take apiKeyHelper out of {local}" in done.stdout
    local.write_text(json.dumps({"model": "my/llm"}))
    assert f"model is my/llm, and no row of litellm_config.template.yaml answers for that: {local}" in home.run().stdout


MESSAGE = {"id": "m", "type": "message", "role": "assistant", "content": [], "usage": {"input_tokens": 1}}
EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {**MESSAGE, "model": "m"}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
]


class Recorder(FakeAnswers):
    """Proves the key, answers every message with "hi", and keeps the requests."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012 - one server a test, emptied by its fixture

    def do_HEAD(self) -> None:  # noqa: N802
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append({"headers": {name.lower(): value for name, value in self.headers.items()}, "body": body})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in EVENTS:
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())


@pytest.fixture
def recorded(home: Home) -> Iterator[list[dict[str, Any]]]:
    Recorder.seen = []
    server = FakeProxy(home.set_up.port, master_key(load_settings(home.set_up.environ)), answers=Recorder)
    home.set_up.environ["DISABLE_AUTOUPDATER"] = "1"
    with serving(server):
        yield Recorder.seen


ELSEWHERE = {"ANTHROPIC_API_KEY": "mine", "CLAUDE_CODE_USE_MANTLE": "1", "CLAUDE_CODE_USE_ANTHROPIC_AWS": "1"}
OBSTACLES: dict[str, tuple[dict[str, Any] | None, dict[str, str]]] = {
    "nothing": (None, {}),
    "exported": (None, {**ELSEWHERE, "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}),
    "in the settings": (
        {"env": {**ELSEWHERE, "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}, "apiKeyHelper": "echo theirs"},
        {},
    ),
    "another cloud": ({"env": {"CLAUDE_CODE_USE_BEDROCK": "1"}}, {"CLAUDE_CODE_USE_VERTEX": "1"}),
    "a company proxy": (None, {"HTTPS_PROXY": "http://127.0.0.1:1", "no_proxy": "corp.example"}),
    "a proxy in the settings": ({"env": {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "corp.example"}}, {}),
}


@pytest.mark.real
@pytest.mark.parametrize(("theirs", "exported"), OBSTACLES.values(), ids=OBSTACLES)
@pytest.mark.parametrize("for_good", [False, True], ids=["one run", "for good"])
def test_claude_reaches_the_proxy_with_its_key_only(
    home: Home,
    recorded: list[dict[str, Any]],
    theirs: dict[str, Any] | None,
    exported: dict[str, str],
    *,
    for_good: bool,
) -> None:
    before = home.write(json.dumps(theirs)) if theirs else None
    if for_good:
        home.good(**exported)
        done = home.set_up.run(str(CLAUDE), "-p", "hello", seconds=60, **exported)
    else:
        path = f"{CLAUDE.parent}{os.pathsep}{home.set_up.environ['PATH']}"
        home.good("--install-command")
        done = home.set_up.run(str(place(home.set_up.environ)), "-p", "hello", seconds=60, **{**exported, "PATH": path})
        assert text_of(home.path) == before
        assert stat.S_IMODE((home.set_up.folder / "claude.json").stat().st_mode) == 0o600
    assert (done.stdout.strip(), done.returncode) == ("hi", 0), done.stderr
    (sent,) = recorded
    assert sent["headers"]["authorization"] == f"Bearer {home.set_up.master_key}"
    assert "x-api-key" not in sent["headers"]
    assert row_for(sent["body"]["model"], [row["model_name"] for row in rows_of(TEMPLATE)]) == "claude-sonnet-*"
    assert "context_management" not in sent["body"]
    assert "WebSearch" not in {tool["name"] for tool in sent["body"]["tools"]}
    assert "x-anthropic-billing-header" not in json.dumps(sent["body"]["system"])


@pytest.mark.real
@pytest.mark.parametrize("alias", ["opus", "sonnet", "haiku"])
def test_an_alias_asks_for_the_model_of_the_template(home: Home, recorded: list[dict[str, Any]], alias: str) -> None:
    home.good("--run", "--model", alias, "-p", "hello")
    asked = aliases(rows_of(TEMPLATE))[f"ANTHROPIC_DEFAULT_{alias.upper()}_MODEL"]
    assert recorded[-1]["body"]["model"] == asked.partition("[")[0]


def test_without_claude_the_install_command_is_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_claude, "BUNDLE", home.set_up.folder)
    with pytest.raises(ConfigError, match="npm install"):
        point_claude.find_claude({"PATH": str(home.folder)})


def test_the_printed_command_is_one_for_the_shell(home: Home) -> None:
    folder = home.set_up.folder / "with space"
    folder.mkdir()
    command = shlex.split(home.good("--file", CORTEX_HOME=str(folder)))
    assert (Path(command[0]).name, command[1:]) == ("claude", ["--settings", str(folder / "claude.json")])
    assert shutil.which(command[0])
