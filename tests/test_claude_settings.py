"""bundle/claude_settings.py: nothing of the user's settings is lost, and all of ours can be taken back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bundle import claude_settings
from bundle.claude_settings import NOT_POINTED, aliases, around_proxy
from bundle.errors import ConfigError
from bundle.files import write_private
from tests.claude_home import BLOCK, TEMPLATE, USERS, Home, text_of
from tests.set_up import BareSetUp

OTHER_ENV = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8123", "ANTHROPIC_AUTH_TOKEN": "sk-new", "NO_PROXY": "127.0.0.1"}
EDITS: dict[str, Any] = {
    "nothing": {},
    "an entry": {"theirs": {"new": [1]}},
    "some of ours": {"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:3456", "SWITCH": "2"}},
    "the deny list": {"permissions": {"deny": ["WebFetch"]}},
}


def added(tree: Any, change: Any) -> Any:
    """Add `change` to `tree`: objects are joined, lists get longer, everything else is replaced."""
    if isinstance(change, dict):
        return {**(tree or {}), **{name: added((tree or {}).get(name), value) for name, value in change.items()}}
    return [*(tree or []), *change] if isinstance(change, list) else change


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(BareSetUp(tmp_path))


@pytest.mark.parametrize(
    ("text", "indent", "newline"),
    [("", "  ", "\n"), (USERS["tabs"], "\t", "\n"), (USERS["no last newline"], "    ", ""), ('{"a": 1}', None, "")],
)
def test_the_indentation_and_the_last_newline_are_kept(home: Home, text: str, indent: str, newline: str) -> None:
    home.write(text)
    home.settings.point(BLOCK)
    assert home.path.read_text() == json.dumps(home.tree, indent=indent) + newline


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize(
    ("text", "again", "old"),
    [
        *((text, False, False) for text in (None, *(USERS[name] for name in ("two spaces", "one line", "tabs")))),
        (USERS["a key"], False, False),
        (USERS["a key"], True, False),
        (USERS["a key"], False, True),
        (USERS["a key"], True, True),
    ],
    ids=[
        *("no file", "two spaces", "one line", "tabs", "a key"),
        *("other port, key and network", "pointed by an older release", "both"),
    ],
)
def test_undo_takes_our_entries_and_nothing_else(
    home: Home, text: str | None, change: Any, *, again: bool, old: bool
) -> None:
    before = home.write(text) if text else None
    home.settings.point(BLOCK)
    if old:  # an older release kept a copy of the settings that it had written
        shutil.copy(home.path, home.folder / "settings.json.with-cortex")
    # When the user changes an entry in Claude Code, it writes the whole file in its own format.
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


def test_an_alias_is_named_after_the_model_that_answers_and_asks_for_a_name_that_the_template_routes_to_it() -> None:
    variables = aliases(TEMPLATE)
    assert variables["ANTHROPIC_DEFAULT_OPUS_MODEL"] == "claude-opus-4-7"
    assert variables["ANTHROPIC_DEFAULT_OPUS_MODEL_NAME"] == "Claude Opus 4.7"
    assert variables["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "claude-haiku-4-5"
    assert "ANTHROPIC_DEFAULT_FABLE_MODEL" not in variables  # /model would show Sonnet twice
    for model, name in (("openai-gpt-4.1", "claude-opus-latest"), ("claude-opus-9", "claude-opus-9")):
        variables = aliases(f"model_list: [{{model_name: claude-opus-*, litellm_params: {{model: openai/{model}}}}}]")
        assert variables["ANTHROPIC_DEFAULT_OPUS_MODEL"] == name
        assert model in variables["ANTHROPIC_DEFAULT_OPUS_MODEL_DESCRIPTION"]
        assert "ANTHROPIC_DEFAULT_HAIKU_MODEL" not in variables


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
        if problem.final and "apiKeyHelper" in fix:  # `make claude` fails too, so this is said in any case
            assert claude_settings.check(8001, "sk-1", {"HOME": str(tmp_path)}, tmp_path) == [NOT_POINTED, problem]
        path.unlink()


@pytest.mark.parametrize(
    ("environ", "fixes"),
    [
        ({}, []),
        ({"ANTHROPIC_BASE_URL": "http://localhost:8001/"}, [AGAIN]),
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
