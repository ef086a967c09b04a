"""point_claude.py's promises: nothing of the user's settings is lost, all of ours can be taken back, and it works."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import point_claude
from bundle import claude_settings
from bundle.bootstrap import BUNDLE
from bundle.claude_settings import NOT_POINTED, UserSettings, aliases, around_proxy
from bundle.errors import ConfigError
from bundle.files import write_private
from tests.conftest import CLAUDE, SetUp, drop_root_powers

TEMPLATE = (BUNDLE / "litellm_config.template.yaml").read_text()
BLOCK: dict[str, Any] = {
    "env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8001", "ANTHROPIC_AUTH_TOKEN": "sk-proxy", "SWITCH": "1"},
    "permissions": {"deny": ["WebSearch"]},
}
OTHER_ENV = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8123", "ANTHROPIC_AUTH_TOKEN": "sk-new", "NO_PROXY": "127.0.0.1"}

USERS = {
    "empty file": "",
    "two spaces": '{\n  "model": "opus",\n  "env": {\n    "A": "1"\n  }\n}\n',
    "no last newline": '{\n    "permissions": {\n        "allow": ["Bash(ls)"],\n        "deny": []\n    }\n}',
    "tabs": '{\n\t"env": {},\n\t"permissions": {\n\t\t"deny": [\n\t\t\t"Read(./.env)"\n\t\t]\n\t}\n}\n',
    "one line": '{"env":{"ANTHROPIC_BASE_URL":"https://other.example"},"permissions":{"deny":["A","WebSearch"]}}',
    "windows newlines": '{\r\n  "env": {\r\n    "A": "1"\r\n  }\r\n}\r\n',
    "byte order mark": '\ufeff{ "a" : 1 }',
    "strings": '{"hooks": {"x": "echo \\"{[,:]}\\" \\\\"}, "ü": "\\u00fc\\ud83d\\ude00 😀 \\ud83d", "n": 1.50e3}',
    "a key": '{\n  "env": {\n    "ANTHROPIC_AUTH_TOKEN": "mine"\n  },\n  "statusLine": null\n}\n',
}
EDITS: dict[str, Any] = {
    "nothing": {},
    "an entry": {"theirs": {"new": [1]}},
    "some of ours": {"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:3456", "SWITCH": "2"}},
    "the deny list": {"permissions": {"deny": ["WebFetch"]}},
}


def text_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def added(tree: Any, change: Any) -> Any:
    """`tree` with `change` in it: objects are joined, lists get longer, everything else is replaced."""
    if isinstance(change, dict):
        return {**(tree or {}), **{name: added((tree or {}).get(name), value) for name, value in change.items()}}
    return [*(tree or []), *change] if isinstance(change, list) else change


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
    def settings(self) -> UserSettings:
        return UserSettings(self.set_up.environ)

    @property
    def tree(self) -> Any:
        return json.loads(self.path.read_text(encoding="utf-8-sig"))

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


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
    assert {**home.tree, "env": 0, "permissions": 0} == {**tree, "env": 0, "permissions": 0}
    assert list(home.tree)[: len(tree)] == list(tree)
    assert text_of(home.folder / "settings.json.before-cortex") == before
    modes = [stat.S_IMODE((home.folder / name).stat().st_mode) for name in home.names]
    assert modes == [0o600, 0o640, 0o600]  # the one in the middle is the backup, without the key
    home.good("--undo", SNOWFLAKE_ACCOUNT="")  # needs no configuration
    assert text_of(home.path) == before
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o640
    assert home.names == ["settings.json"]


@pytest.mark.parametrize(
    ("text", "indent", "newline"),
    [("", "  ", "\n"), (USERS["tabs"], "\t", "\n"), (USERS["no last newline"], "    ", ""), ('{"a": 1}', None, "")],
)
def test_the_indentation_and_the_last_newline_are_kept(home: Home, text: str, indent: str, newline: str) -> None:
    home.write(text)
    home.settings.point(BLOCK)
    assert home.path.read_text() == json.dumps(home.tree, indent=indent) + newline


@pytest.mark.parametrize("text", [None, *(USERS[name] for name in ("two spaces", "one line", "a key", "tabs"))])
@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("again", [False, True], ids=["", "other port, key and network"])
@pytest.mark.parametrize("old", [False, True], ids=["", "pointed by an older release"])
def test_undo_takes_our_entries_and_nothing_else(
    home: Home, text: str | None, change: Any, *, again: bool, old: bool
) -> None:
    before = home.write(text) if text else None
    home.settings.point(BLOCK)
    if old:  # it kept all settings as it had written them
        shutil.copy(home.path, home.folder / "settings.json.with-cortex")
    # Claude Code changes an entry on the user's word: it writes the whole file, in its own format.
    home.path.write_text(json.dumps(added(home.tree, change), sort_keys=True))
    if again:
        home.settings.point({**BLOCK, "env": OTHER_ENV})
        assert home.tree["env"].items() >= OTHER_ENV.items()
        assert text_of(home.folder / "settings.json.before-cortex") == before
    home.settings.undo()
    assert home.names == (["settings.json"] if text or change else [])
    assert not home.names or home.tree == added(json.loads(text or "{}"), change)
    assert change or text_of(home.path) == before
    assert "nothing to take back" in home.settings.undo()[0]


def test_a_second_run_changes_nothing(home: Home) -> None:
    home.write(USERS["tabs"])
    home.good()
    marks = {path: (path.read_bytes(), path.stat().st_ino) for path in home.folder.iterdir()}
    assert "already" in home.good()
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in home.folder.iterdir()} == marks


@pytest.mark.parametrize("new", ['{"env": {"ANTHROPIC_AUTH_TOKEN": "new"}}', None])
def test_settings_that_the_user_has_replaced_or_removed_come_back(home: Home, new: str | None) -> None:
    before = home.write(USERS["a key"])
    home.settings.point(BLOCK)
    home.path.unlink()
    before = home.write(new) if new else before
    home.settings.point(BLOCK)
    home.settings.undo()
    assert text_of(home.path) == before


def test_the_file_is_replaced_and_never_half_written(home: Home) -> None:
    before = home.write(USERS["two spaces"])
    other_name = home.set_up.folder / "the same file"
    other_name.hardlink_to(home.path)
    home.settings.point(BLOCK)
    assert other_name.read_bytes() == before


@pytest.mark.parametrize("again", [False, True])
def test_a_write_that_fails_changes_nothing(home: Home, monkeypatch: pytest.MonkeyPatch, *, again: bool) -> None:
    def full(path: Path, text: str) -> None:
        if path == home.path:
            raise ConfigError("no space left")
        write_private(path, text)

    home.write(USERS["two spaces"])
    if again:
        home.settings.point(BLOCK)
    before = {path: path.read_bytes() for path in home.folder.iterdir()}
    monkeypatch.setattr("bundle.claude_settings.write_private", full)
    with pytest.raises(ConfigError):
        home.settings.point({**BLOCK, "env": OTHER_ENV})
    assert {path: path.read_bytes() for path in home.folder.iterdir()} == before


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


def test_an_alias_is_named_after_the_model_that_answers_and_asks_for_a_name_that_the_template_routes_to_it() -> None:
    variables = aliases(TEMPLATE)
    assert variables["ANTHROPIC_DEFAULT_OPUS_MODEL"] == "claude-opus-4-7"
    assert variables["ANTHROPIC_DEFAULT_OPUS_MODEL_NAME"] == "Claude Opus 4.7"
    assert variables["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "claude-haiku-4-5"
    assert "ANTHROPIC_DEFAULT_FABLE_MODEL" not in variables  # would be a second Sonnet in the list of /model
    for model, name in (("openai-gpt-4.1", "claude-opus-latest"), ("claude-opus-9", "claude-opus-9")):
        variables = aliases(f"model_list: [{{model_name: claude-opus-*, litellm_params: {{model: openai/{model}}}}}]")
        assert variables["ANTHROPIC_DEFAULT_OPUS_MODEL"] == name
        assert model in variables["ANTHROPIC_DEFAULT_OPUS_MODEL_DESCRIPTION"]
        assert "ANTHROPIC_DEFAULT_HAIKU_MODEL" not in variables


def test_print_shows_the_block_and_where_the_key_is(home: Home) -> None:
    tree = json.loads(home.good("--print"))
    assert tree["env"]["ANTHROPIC_BASE_URL"] == home.set_up.url
    assert str(home.set_up.folder / ".master_key") in tree["env"]["ANTHROPIC_AUTH_TOKEN"]
    assert tree["permissions"] == {"deny": ["WebSearch"]}
    assert home.names == []


def test_a_company_proxy_is_told_to_leave_loopback_alone() -> None:
    assert around_proxy({"NO_PROXY": "a"}) == {}
    assert around_proxy({"https_proxy": "http://p:1"}) == {"NO_PROXY": "127.0.0.1"}
    with_both = {"HTTP_PROXY": "http://p:1", "no_proxy": "a,b", "NO_PROXY": "c,127.0.0.1"}
    assert around_proxy(with_both) == {"no_proxy": "a,b,127.0.0.1", "NO_PROXY": "c,127.0.0.1"}
    for enough in ("*", " * ", "127.0.0.1", "a, 127.0.0.1", "a,127.0.0.1,"):
        assert around_proxy({"HTTP_PROXY": "http://p:1", "NO_PROXY": enough}) == {"NO_PROXY": enough}
    for too_little in ("a,*", "a 127.0.0.1", "localhost"):
        around = around_proxy({"HTTP_PROXY": "http://p:1", "NO_PROXY": too_little})
        assert around == {"NO_PROXY": f"{too_little},127.0.0.1"}


POINTED = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8001", "ANTHROPIC_AUTH_TOKEN": "sk-1"}
AGAIN = "python3 point_claude.py"


def test_check_is_content_after_pointing_and_not_before(home: Home) -> None:
    before = home.run("--check")
    assert before.returncode == 1
    assert "make claude" in before.stdout
    home.good()
    home.good("--check", ANTHROPIC_BASE_URL="https://exported.example", ANTHROPIC_API_KEY="mine")
    (home.folder / "settings.local.json").write_text("{")
    assert str(home.folder / "settings.local.json") in home.run("--check").stderr


@pytest.mark.parametrize(
    ("tree", "fix"),
    [
        ({"env": {"ANTHROPIC_BASE_URL": "https://user:hidden@x.example"}}, "Take ANTHROPIC_BASE_URL out of"),
        ({"env": {"ANTHROPIC_AUTH_TOKEN": "hidden"}}, "Take ANTHROPIC_AUTH_TOKEN out of"),
        ({"env": {"ANTHROPIC_API_KEY": "hidden"}}, "Take ANTHROPIC_API_KEY out of"),
        ({"env": {"CLAUDE_CODE_USE_BEDROCK": "1"}}, "Take CLAUDE_CODE_USE_BEDROCK out of"),
        ({"apiKeyHelper": "hidden"}, "Take apiKeyHelper out of"),
        ({"env": {"HTTPS_PROXY": "http://p.example", "NO_PROXY": "corp"}}, "Add 127.0.0.1 to NO_PROXY in"),
    ],
)
def test_check_names_the_settings_that_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Any, fix: str
) -> None:
    monkeypatch.setattr(claude_settings, "MANAGED", tmp_path / "managed")
    for name in (".claude/settings.local.json", "managed/managed-settings.json", "managed/managed-settings.d/1.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tree))
        (problem,) = claude_settings.check(8001, "sk-1", {"HOME": str(tmp_path), **POINTED}, tmp_path)
        assert str(path) in problem.found
        assert "hidden" not in problem.found
        assert problem.final == name.startswith("managed")
        assert problem.fix == ("Only whoever manages this machine can change it" if problem.final else f"{fix} {path}")
        if problem.final and "apiKeyHelper" in fix:  # it keeps even `make claude` away, so it is said in any case
            assert claude_settings.check(8001, "sk-1", {"HOME": str(tmp_path)}, tmp_path) == [NOT_POINTED, problem]
        path.unlink()


@pytest.mark.parametrize(
    ("environ", "fixes"),
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
def test_each_problem_comes_with_what_fixes_it(tmp_path: Path, environ: dict[str, str], fixes: list[str]) -> None:
    problems = claude_settings.check(8001, "sk-1", {"HOME": str(tmp_path), **POINTED, **environ}, tmp_path)
    assert [problem.fix for problem in problems] == fixes
    assert "hidden" not in str(problems)
    assert not any(problem.final for problem in problems)


MESSAGE = {"id": "m", "type": "message", "role": "assistant", "content": [], "usage": {"input_tokens": 1}}
EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {**MESSAGE, "model": "m"}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
]


class Recorder(http.server.BaseHTTPRequestHandler):
    """Answers every message with "hi", and keeps what was sent."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012 - one server a test, emptied by its fixture

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append({"headers": {name.lower(): value for name, value in self.headers.items()}, "body": body})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in EVENTS:
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def recorded(home: Home) -> Iterator[list[dict[str, Any]]]:
    Recorder.seen = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        home.set_up.environ |= {"PROXY_PORT": str(server.server_port), "DISABLE_AUTOUPDATER": "1"}
        yield Recorder.seen
        server.shutdown()
        thread.join()


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
    assert recorded[-1]["body"]["model"] == aliases(TEMPLATE)[f"ANTHROPIC_DEFAULT_{alias.upper()}_MODEL"]


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
