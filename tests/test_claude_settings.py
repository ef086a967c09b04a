"""bundle/claude_settings.py: nothing of the user's settings is lost, and all of ours can be taken back."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from bundle.bootstrap import script
from bundle.checks import processes
from bundle.checks.finding import read_installation
from bundle.claude_models import NO_LARGE_WINDOW
from bundle.claude_settings import (
    OTHERS,
    around_proxy,
    follow_template,
    old_models,
    proxy_entries,
    run_file,
    to_text,
)
from bundle.errors import ConfigError
from bundle.files import write_private
from bundle.render import render
from bundle.settings import load_settings
from tests.claude_home import BLOCK, TEMPLATE, USERS, VALUES, Home, answered_by, text_of
from tests.set_up import BareSetUp

OTHER_ENV = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8123", "ANTHROPIC_AUTH_TOKEN": "sk-new", "NO_PROXY": "127.0.0.1"}
EDITS: dict[str, Any] = {
    "nothing": {},
    "an entry": {"theirs": {"new": [1]}},
    "an entry beside env": {"skipWebFetchPreflight": False, "apiKeyHelper": "new"},
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


@pytest.mark.parametrize("theirs", [{}, {"skipWebFetchPreflight": False}, {"apiKeyHelper": "print-a-key"}])
def test_what_stands_beside_env_is_replaced_and_comes_back(home: Home, theirs: dict[str, Any]) -> None:
    before = home.write(json.dumps(theirs))
    said = home.settings.point({**BLOCK, **OTHERS})
    assert home.tree["skipWebFetchPreflight"] is True
    assert home.tree.get("apiKeyHelper") == ("" if "apiKeyHelper" in theirs else None)
    assert ("apiKeyHelper is off" in "".join(said)) == ("apiKeyHelper" in theirs)
    home.settings.point({**BLOCK, **OTHERS, "env": OTHER_ENV})
    home.settings.undo()
    assert text_of(home.path) == before


def test_a_model_that_the_user_chooses_with_model_stays_and_an_older_one_comes_back(home: Home) -> None:
    before = home.write('{"model": "haiku"}')
    home.settings.point({**BLOCK, "model": "sonnet", "effortLevel": "medium"})
    assert (home.tree["model"], home.tree["effortLevel"]) == ("sonnet", "medium")
    home.settings.undo()
    assert text_of(home.path) == before
    home.settings.point({**BLOCK, "model": "sonnet", "effortLevel": "medium"})
    home.path.write_text(json.dumps({**home.tree, "model": "opus"}))
    assert home.settings.own == {"model": "opus"}
    home.settings.undo()
    assert home.tree == {"model": "opus"}


def test_what_an_older_release_has_recorded_of_the_user_s_settings_is_not_taken_for_ours(home: Home) -> None:
    before = home.write('{"skipWebFetchPreflight": true}')
    home.settings.point(BLOCK)
    shutil.copy(home.path, home.folder / "settings.json.with-cortex")
    home.path.write_text(json.dumps({**home.tree, "new": 1}))
    home.settings.undo()
    assert home.tree == {**json.loads(before), "new": 1}


def test_the_models_of_both_settings_files_follow_the_template(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    template = tmp_path / "litellm_config.template.yaml"
    template.write_text(TEMPLATE)
    monkeypatch.setattr("bundle.settings.BUNDLE", tmp_path)
    settings = load_settings(home.set_up.environ)
    assert settings.template_path == template  # so that this can never write into the bundle
    follow_template(settings)
    assert not run_file(settings).exists()  # nobody uses it yet
    entries = proxy_entries(settings, {})
    write_private(run_file(settings), to_text(entries))
    home.settings.point(entries)
    assert not old_models(settings, home.set_up.environ)
    template.write_text(answered_by("claude-opus-*", "claude-opus-9")(TEMPLATE))
    follow_template(settings)
    written = json.loads(run_file(settings).read_text())
    assert written["env"]["ANTHROPIC_DEFAULT_OPUS_MODEL"] == "claude-opus-9[1m]"
    assert written == proxy_entries(settings, {})
    assert stat.S_IMODE(run_file(settings).stat().st_mode) == 0o600
    said = old_models(settings, home.set_up.environ)
    assert str(home.path) in said
    assert said.endswith(script("point_claude.py"))
    assert said in processes.status(read_installation(home.set_up.environ, 0))[0]
    home.path.write_text(json.dumps(added(home.tree, {"env": {"ANTHROPIC_DEFAULT_OPUS_MODEL": "mine"}})))
    assert not old_models(settings, home.set_up.environ)  # what the user has chosen is not old
    write_private(settings.config_path, render(template.read_text(), VALUES))
    template.write_text("model_list: [")  # a mistake is not in force, and does not stop a run
    assert proxy_entries(settings, {}) == written


def test_the_switch_of_an_older_release_against_large_windows_goes(home: Home) -> None:
    settings = load_settings(home.set_up.environ)
    entries = proxy_entries(settings, {})
    old = {**entries, "env": {**entries["env"], NO_LARGE_WINDOW: "1"}}
    write_private(run_file(settings), to_text(old))
    follow_template(settings)
    assert json.loads(run_file(settings).read_text()) == entries
    home.settings.point(old)
    home.settings.point(entries)
    assert NO_LARGE_WINDOW not in home.tree["env"]


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
