"""point_claude.py's promises: nothing of the user's settings is lost, all of ours can be taken back, and it works."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import point_claude
from bundle.bootstrap import BUNDLE
from bundle.errors import ConfigError
from tests.conftest import CLAUDE, SetUp, drop_root_powers

TEMPLATE = (BUNDLE / "litellm_config.template.yaml").read_text()
BLOCK: dict[str, Any] = {
    "env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8001", "ANTHROPIC_AUTH_TOKEN": "sk-proxy", "SWITCH": "1"},
    "permissions": {"deny": ["WebSearch"]},
}
WHERE = Path("settings.json")

USERS = {
    "empty file": "",
    "blank": " \n",
    "empty object": "{}",
    "two spaces": '{\n  "model": "opus",\n  "env": {\n    "A": "1"\n  }\n}\n',
    "no last newline": '{\n    "permissions": {\n        "allow": ["Bash(ls)"],\n        "deny": []\n    }\n}',
    "tabs": '{\n\t"env": {},\n\t"permissions": {\n\t\t"deny": [\n\t\t\t"Read(./.env)"\n\t\t]\n\t}\n}\n',
    "one line": '{"env":{"ANTHROPIC_BASE_URL":"https://other.example"},"permissions":{"deny":["A","WebSearch"]}}',
    "windows newlines": '{\r\n  "env": {\r\n    "A": "1"\r\n  }\r\n}\r\n',
    "byte order mark": '\ufeff{ "a" : 1 }',
    "odd spacing": '{\n\n "b":[1,\n2 ] ,"env"  :{"x":"y"  }\n  }\n\n',
    "strings": '{"hooks": {"x": "echo \\"{[,:]}\\" \\\\"}, "ü": "\\u00fc\\ud83d\\ude00 😀", "n": 1.50e3}',
    "a name twice": '{"env": {"A": "1"}, "env": {"B": "2"}}',
    "no value": '{\n  "env": {\n    "ANTHROPIC_AUTH_TOKEN": "mine"\n  },\n  "statusLine": null\n}\n',
}


def text_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


class Home:
    """A HOME with a settings file, and point_claude.py run in it."""

    def __init__(self, set_up: SetUp) -> None:
        self.set_up, self.folder = set_up, set_up.folder / ".claude"
        self.path = self.folder / "settings.json"
        self.folder.mkdir()

    def write(self, text: str, mode: int = 0o600) -> bytes:
        self.path.write_bytes(text.encode())
        self.path.chmod(mode)
        return text.encode()

    def run(self, *options: str, **environ: str) -> Any:
        done = self.set_up.run("point_claude.py", *options, seconds=60, **environ)
        assert "Traceback" not in done.stderr, done.stderr
        assert "sk-" not in done.stdout + done.stderr
        return done

    def good(self, *options: str, **environ: str) -> str:
        done = self.run(*options, **environ)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    @property
    def tree(self) -> Any:
        return json.loads(self.path.read_text(encoding="utf-8-sig"))


@pytest.fixture
def home(set_up: SetUp) -> Home:
    return Home(set_up)


# ------------------------------------------------------------------------------------------------------------ the text


@pytest.mark.parametrize("text", USERS.values(), ids=USERS)
def test_the_text_is_edited_and_not_rewritten(text: str) -> None:
    merged = point_claude.merge(text, BLOCK, WHERE)
    before, after = point_claude.parse(text, WHERE), point_claude.parse(merged, WHERE)
    assert after["env"] == {**before.get("env", {}), **BLOCK["env"]}
    assert after["permissions"].pop("deny")[-1:] == ["WebSearch"]
    assert {**after, "env": 0, "permissions": 0} == {**before, "env": 0, "permissions": 0}
    # What is left of the user's text, in its order, is all of it but replaced values.
    values = {"ANTHROPIC_BASE_URL": "https://other.example", "ANTHROPIC_AUTH_TOKEN": "mine"}
    kept = re.split("|".join(values.values()), text.strip("\ufeff \t\r\n")) if before else []
    rest = iter(merged)
    assert all(character in rest for part in kept for character in part if not character.isspace())
    assert ("\r\n" in text) == ("\r\n" in merged)
    assert "\n" not in merged.replace("\r\n", "") or "\r\n" not in merged


@pytest.mark.parametrize("text", USERS.values(), ids=USERS)
def test_a_second_merge_changes_nothing(text: str) -> None:
    once = point_claude.merge(text, BLOCK, WHERE)
    assert point_claude.merge(once, BLOCK, WHERE) == once


@pytest.mark.parametrize("text", USERS.values(), ids=USERS)
def test_after_the_users_own_edit_only_our_entries_go(text: str) -> None:
    written = point_claude.merge(text, BLOCK, WHERE)
    edited = point_claude.put(written, ("theirs",), {"new": [1]})
    edited = point_claude.put(edited, ("env", "SWITCH"), "2")
    back = point_claude.take_back(edited, text, written, WHERE)
    before = point_claude.parse(text, WHERE)
    wanted = {**before, "theirs": {"new": [1]}, "env": {**before.get("env", {}), "SWITCH": "2"}}
    assert point_claude.parse(back, WHERE) == wanted


def test_a_new_entry_looks_like_its_neighbours() -> None:
    assert point_claude.put('{\n\t"env": {\n\t\t"A": "1"\n\t}\n}\n', ("env", "B"), "2") == (
        '{\n\t"env": {\n\t\t"A": "1",\n\t\t"B": "2"\n\t}\n}\n'
    )
    assert (
        point_claude.put('{\n   "a": 1\n}', ("env", "B"), "2") == '{\n   "a": 1,\n   "env": {\n      "B": "2"\n   }\n}'
    )
    assert point_claude.put('{"a": 1}', ("deny", 0), "X") == '{"a": 1, "deny": ["X"]}'


# ------------------------------------------------------------------------------------------------------------ the file


@pytest.mark.parametrize("text", USERS.values(), ids=USERS)
def test_undo_gives_the_same_bytes_and_mode(home: Home, text: str) -> None:
    before = home.write(text, 0o640)
    assert "Other users could read" in home.good()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o600
    assert home.tree["env"]["ANTHROPIC_AUTH_TOKEN"] == home.set_up.master_key
    home.good("--undo")
    assert text_of(home.path) == before
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o640
    assert [path.name for path in home.folder.iterdir()] == ["settings.json"]


def test_without_settings_a_private_file_is_made_and_taken_away(home: Home) -> None:
    home.folder.rmdir()
    home.good()
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.folder.iterdir()} == {
        "settings.json": 0o600,
        "settings.json.with-cortex": 0o600,
    }
    assert not (home.set_up.folder / ".claude.json").exists()
    home.good("--undo")
    assert list(home.folder.iterdir()) == []
    assert "nothing to take back" in home.good("--undo")


def test_a_second_run_changes_nothing(home: Home) -> None:
    home.write(USERS["tabs"])
    home.good()
    marks = {path.name: (path.read_bytes(), path.stat().st_ino) for path in home.folder.iterdir()}
    assert "already" in home.good()
    assert {path.name: (path.read_bytes(), path.stat().st_ino) for path in home.folder.iterdir()} == marks


def test_a_new_port_and_an_edit_in_between_can_still_be_undone(home: Home) -> None:
    home.write(USERS["one line"])
    home.good()
    home.path.write_text(point_claude.put(home.path.read_text(), ("theirs",), True))
    home.good(PROXY_PORT="8123")
    assert home.tree["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8123"
    home.good("--undo")
    assert home.tree == {**json.loads(USERS["one line"]), "theirs": True}


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"env": {"A": "1",}}', "not valid JSON"),
        ("{\n  // mine\n}", "not valid JSON"),
        ("[]", "shape"),
        ('{"env": []}', "shape"),
        ('{"permissions": null}', "shape"),
    ],
)
def test_broken_settings_are_left_alone(home: Home, text: str, words: str) -> None:
    before = home.write(text)
    done = home.run()
    assert done.returncode == 78
    assert words in done.stderr
    assert str(home.path) in done.stderr
    assert text_of(home.path) == before
    assert [path.name for path in home.folder.iterdir()] == ["settings.json"]
    assert home.run("--file").returncode == 0  # does not need them


def test_a_read_only_file_is_left_alone(home: Home) -> None:
    before = home.write("{}", 0o400)
    done = home.run()
    assert done.returncode == 78
    assert "chmod u+w" in done.stderr
    assert text_of(home.path) == before
    assert [path.name for path in home.folder.iterdir()] == ["settings.json"]


def test_a_read_only_folder_is_left_alone(home: Home) -> None:
    before = home.write("{}")
    home.folder.chmod(0o500)
    done = subprocess.run(
        [sys.executable, str(BUNDLE / "point_claude.py")],
        env=home.set_up.environ,
        preexec_fn=drop_root_powers,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    home.folder.chmod(0o700)
    assert done.returncode == 78, done.stderr
    assert "Permission denied" in done.stderr
    assert text_of(home.path) == before
    assert [path.name for path in home.folder.iterdir()] == ["settings.json"]


# ---------------------------------------------------------------------------------------------------------- the block


def test_an_alias_is_named_after_the_model_that_answers() -> None:
    variables = point_claude.aliases(TEMPLATE)
    assert variables["ANTHROPIC_DEFAULT_OPUS_MODEL"] == "claude-opus-4-7"
    assert variables["ANTHROPIC_DEFAULT_OPUS_MODEL_NAME"] == "Claude Opus 4.7"
    assert variables["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "claude-haiku-4-5"
    assert "ANTHROPIC_DEFAULT_FABLE_MODEL" not in variables  # would be a second Sonnet in the list of /model


@pytest.mark.parametrize(
    ("model", "asked_for"),
    [("openai/openai-gpt-4.1", "claude-opus-latest"), ("snowflake/claude-opus-9", "claude-opus-9")],
)
def test_an_alias_asks_for_a_name_that_the_template_routes_to_its_model(model: str, asked_for: str) -> None:
    template = "model_list:\n- {model_name: claude-opus-*, litellm_params: {model: MODEL}}\n".replace("MODEL", model)
    variables = point_claude.aliases(template)
    assert variables["ANTHROPIC_DEFAULT_OPUS_MODEL"] == asked_for
    assert model.partition("/")[2] in variables["ANTHROPIC_DEFAULT_OPUS_MODEL_DESCRIPTION"]
    assert "ANTHROPIC_DEFAULT_HAIKU_MODEL" not in variables


def test_print_shows_the_block_and_where_the_key_is(home: Home) -> None:
    tree = json.loads(home.good("--print"))
    assert tree["env"]["ANTHROPIC_BASE_URL"] == home.set_up.url
    assert str(home.set_up.folder / ".master_key") in tree["env"]["ANTHROPIC_AUTH_TOKEN"]
    assert tree["permissions"] == {"deny": ["WebSearch"]}
    assert list(home.folder.iterdir()) == []


def test_a_company_proxy_is_told_to_leave_loopback_alone() -> None:
    assert point_claude.around_proxy({"NO_PROXY": "a"}) == {}
    assert point_claude.around_proxy({"https_proxy": "http://p:1"}) == {"NO_PROXY": "127.0.0.1"}
    with_both = {"HTTP_PROXY": "http://p:1", "no_proxy": "a,b", "NO_PROXY": "c,127.0.0.1"}
    assert point_claude.around_proxy(with_both) == {"no_proxy": "a,b,127.0.0.1", "NO_PROXY": "c,127.0.0.1"}
    for enough in ("*", " * ", "127.0.0.1", "a, 127.0.0.1", "a,127.0.0.1,"):
        assert point_claude.around_proxy({"HTTP_PROXY": "http://p:1", "NO_PROXY": enough}) == {"NO_PROXY": enough}
    for too_little in ("a,*", "a 127.0.0.1", "localhost"):
        around = point_claude.around_proxy({"HTTP_PROXY": "http://p:1", "NO_PROXY": too_little})
        assert around == {"NO_PROXY": f"{too_little},127.0.0.1"}


# ----------------------------------------------------------------------------------------------------------- the check


def test_check_is_content_after_pointing_and_not_before(home: Home) -> None:
    before = home.run("--check")
    assert before.returncode == 1
    assert "make claude" in before.stdout
    home.good()
    home.good("--check", ANTHROPIC_BASE_URL="https://exported.example", ANTHROPIC_API_KEY="mine")


OTHERS = {
    "the url of the project": (".claude/settings.local.json", {"env": {"ANTHROPIC_BASE_URL": "https://x.example"}}),
    "a key of the project": (".claude/settings.local.json", {"env": {"ANTHROPIC_AUTH_TOKEN": "old"}}),
    "an API key": (".claude/settings.local.json", {"env": {"ANTHROPIC_API_KEY": "mine"}}),
    "another cloud": (".claude/settings.local.json", {"env": {"CLAUDE_CODE_USE_BEDROCK": "1"}}),
    "a helper": (".claude/settings.local.json", {"apiKeyHelper": "x"}),
    "a proxy": (".claude/settings.local.json", {"env": {"HTTPS_PROXY": "http://p.example"}}),
    "broken": (".claude/settings.local.json", None),
}


@pytest.mark.parametrize(("name", "tree"), OTHERS.values(), ids=OTHERS)
def test_check_names_the_settings_that_win(home: Home, name: str, tree: Any) -> None:
    home.good()
    path = home.set_up.folder / name
    path.write_text(json.dumps(tree) if tree else "{")
    done = home.run("--check")
    assert done.returncode != 0
    assert str(path) in done.stdout + done.stderr or "NO_PROXY" in done.stdout
    path.unlink()
    home.good("--check")


def test_what_who_manages_the_machine_has_set_is_said_to_be_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_claude, "MANAGED", tmp_path)
    (tmp_path / "managed-settings.d").mkdir()
    (tmp_path / "managed-settings.d" / "1.json").write_text(json.dumps({"apiKeyHelper": "vault"}))
    environ = {"HOME": str(tmp_path), "ANTHROPIC_BASE_URL": "http://localhost:8001", "ANTHROPIC_AUTH_TOKEN": "sk-1"}
    (problem,) = point_claude.check(8001, "sk-1", environ, tmp_path)
    assert problem.final
    assert "managed-settings.d/1.json" in problem.found
    assert "vault" not in problem.found


@pytest.mark.parametrize("tree", [{"apiKeyHelper": "vault"}, {"env": {"CLAUDE_CODE_USE_BEDROCK": "1"}}])
def test_what_keeps_even_make_claude_away_is_said_also_where_nothing_points_at_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Any
) -> None:
    monkeypatch.setattr(point_claude, "MANAGED", tmp_path)
    (tmp_path / "managed-settings.json").write_text(json.dumps(tree))
    not_pointed, problem = point_claude.check(8001, "sk-1", {"HOME": str(tmp_path)}, tmp_path)
    assert not_pointed == point_claude.NOT_POINTED
    assert problem.final


POINTED = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8001", "ANTHROPIC_AUTH_TOKEN": "sk-1"}
AGAIN = "python3 point_claude.py"


@pytest.mark.parametrize(
    ("environ", "mends"),
    [
        ({}, []),
        ({"ANTHROPIC_BASE_URL": "http://localhost:8001/"}, []),
        ({"ANTHROPIC_BASE_URL": "http://localhost:8001", "https_proxy": "http://p", "NO_PROXY": "127.0.0.1"}, [AGAIN]),
        ({"ANTHROPIC_BASE_URL": "https://user:hidden@g.example"}, [AGAIN]),
        ({"ANTHROPIC_BASE_URL": "http://[::1"}, [AGAIN]),
        ({"ANTHROPIC_BASE_URL": "127.0.0.1:8001"}, [AGAIN]),
        ({"ANTHROPIC_AUTH_TOKEN": "hidden"}, [AGAIN]),
        ({"ANTHROPIC_API_KEY": "hidden"}, ["unset ANTHROPIC_API_KEY"]),
        ({"CLAUDE_CODE_USE_VERTEX": "True"}, ["unset CLAUDE_CODE_USE_VERTEX"]),
        ({"CLAUDE_CODE_USE_VERTEX": "False"}, []),
        ({"HTTPS_PROXY": "http://p"}, [AGAIN]),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "127.0.0.1", "no_proxy": "corp"}, [AGAIN]),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, []),
    ],
)
def test_each_problem_comes_with_what_mends_it(tmp_path: Path, environ: dict[str, str], mends: list[str]) -> None:
    problems = point_claude.check(8001, "sk-1", {"HOME": str(tmp_path), **POINTED, **environ}, tmp_path)
    assert [problem.mend for problem in problems] == mends
    assert "hidden" not in str(problems)
    assert not any(problem.final for problem in problems)


# ------------------------------------------------------------------------------------------------- the real Claude Code


class Recorder(http.server.BaseHTTPRequestHandler):
    """Answers every message with "hi", and keeps what was sent."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, Any]] = []  # noqa: RUF012 - one server a test, emptied by its fixture

    def do_HEAD(self) -> None:
        self._answer(b"", "text/plain")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen.append({"path": self.path, "headers": headers, "body": body})
        message = {"id": "m", "type": "message", "role": "assistant", "model": body["model"], "content": []}
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": {**message, "usage": {"input_tokens": 1, "output_tokens": 1}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
            {"type": "message_stop"},
        ]
        text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        self._answer(text.encode(), "text/event-stream")

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def recorded(home: Home) -> Iterator[list[dict[str, Any]]]:
    Recorder.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    home.set_up.environ["PROXY_PORT"] = str(server.server_port)
    home.set_up.environ["DISABLE_AUTOUPDATER"] = "1"
    yield Recorder.seen
    server.shutdown()
    thread.join()
    server.server_close()


OBSTACLES: dict[str, tuple[dict[str, Any] | None, dict[str, str]]] = {
    "nothing": (None, {}),
    "exported": (None, {"ANTHROPIC_API_KEY": "mine", "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}),
    "in the settings": ({"env": {"ANTHROPIC_API_KEY": "mine", "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}}, {}),
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
        done = home.run("--run", "-p", "hello", PATH=path, **exported)
        assert text_of(home.path) == before
        assert stat.S_IMODE((home.set_up.folder / "claude.json").stat().st_mode) == 0o600
    assert (done.stdout.strip(), done.returncode) == ("hi", 0), done.stderr
    (sent,) = recorded
    assert sent["headers"]["authorization"] == f"Bearer {home.set_up.master_key}"
    assert "x-api-key" not in sent["headers"]
    assert sent["body"]["model"] in {row["model_name"] for row in yaml.safe_load(TEMPLATE)["model_list"]}
    assert "context-1m" not in sent["headers"]["anthropic-beta"]
    assert "context_management" not in sent["body"]
    assert "WebSearch" not in {tool["name"] for tool in sent["body"]["tools"]}
    assert "x-anthropic-billing-header" not in json.dumps(sent["body"]["system"])


@pytest.mark.real
@pytest.mark.parametrize("alias", ["opus", "sonnet", "haiku"])
def test_an_alias_asks_for_the_model_of_the_template(home: Home, recorded: list[dict[str, Any]], alias: str) -> None:
    home.good("--run", "--model", alias, "-p", "hello")
    assert recorded[-1]["body"]["model"] == point_claude.aliases(TEMPLATE)[f"ANTHROPIC_DEFAULT_{alias.upper()}_MODEL"]


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
