"""How the status line gets into settings.json, and out of it again."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from bundle.bootstrap import script
from bundle.claude_settings import line_entry, proxy_entries
from bundle.settings import load_settings
from bundle.taking_back import left_behind
from tests.claude_home import BLOCK, USERS, Home, text_of
from tests.set_up import BareSetUp

THEIRS = {"type": "command", "command": "echo theirs"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(BareSetUp(tmp_path))


@pytest.mark.parametrize("text", [None, *USERS.values(), json.dumps({"statusLine": THEIRS}, indent=1)])
@pytest.mark.parametrize("pointed", [False, True])
def test_the_line_alone_is_put_in_and_taken_back_to_the_same_bytes_and_mode(
    home: Home, text: str | None, *, pointed: bool
) -> None:
    before = home.write(text, 0o644) if text is not None else None
    if pointed:
        home.settings.point(BLOCK)
    pointed_tree = home.tree if (home.path.exists() and (text or "").strip()) or pointed else {}
    said = "".join(home.settings.show_line(line_entry(home.set_up.folder)))
    assert ("comes back" in said) == ("theirs" in (text or ""))
    assert "A running Claude Code shows it from its next answer on." in said
    assert home.tree == {**pointed_tree, "statusLine": line_entry(home.set_up.folder)}
    assert stat.S_IMODE(home.path.stat().st_mode) == (0o600 if pointed or text is None else 0o644)
    assert "already" in home.settings.show_line(line_entry(home.set_up.folder))[0]
    words = "points at the proxy" if pointed else "has the status line"
    assert f"no longer {words}" in home.settings.undo()[0]
    assert text_of(home.path) == before
    assert home.names == (["settings.json"] if text is not None else [])
    assert text is None or stat.S_IMODE(home.path.stat().st_mode) == 0o644


def test_pointing_adds_the_line_only_where_the_user_has_none_and_keeps_the_one_that_was_asked_for(home: Home) -> None:
    settings = load_settings(home.set_up.environ)
    ours = line_entry(home.set_up.folder)
    assert proxy_entries(settings, {})["statusLine"] == ours
    assert "statusLine" not in proxy_entries(settings, {"statusLine": THEIRS})
    before = home.write(json.dumps({"statusLine": THEIRS}), 0o644)
    said = home.settings.point(proxy_entries(settings, home.settings.own))
    assert f"Your own status line stays. To have ours: {script('point_claude.py', '--statusline')}" in said
    assert home.tree["statusLine"] == THEIRS
    home.settings.undo()
    home.settings.show_line(ours)
    said = home.settings.point(proxy_entries(settings, home.settings.own))
    assert home.tree["statusLine"] == ours
    assert "Other users could read" in "".join(said)
    assert "stays" not in "".join(said)
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o600
    assert "already" in home.settings.point(proxy_entries(settings, home.settings.own))[0]
    home.settings.undo()
    assert text_of(home.path) == before


def test_a_line_that_the_user_sets_or_removes_later_stays_so(home: Home) -> None:
    ours = {**BLOCK, "statusLine": line_entry(home.set_up.folder)}
    for change in (THEIRS, None):
        home.settings.point(ours)
        tree = {name: value for name, value in home.tree.items() if name != "statusLine"}
        home.path.write_text(json.dumps({**tree, "statusLine": change} if change else tree))
        assert home.settings.own == ({"statusLine": THEIRS} if change else {})
        home.settings.point(BLOCK)
        assert home.tree.get("statusLine") == change
        home.settings.undo()
        assert (home.tree if home.path.exists() else {}) == ({"statusLine": THEIRS} if change else {})
        home.path.unlink(missing_ok=True)


@pytest.mark.parametrize("whole", [False, True])
def test_a_record_of_an_older_release_does_not_make_the_user_s_line_ours(home: Home, *, whole: bool) -> None:
    before = home.write(json.dumps({"statusLine": THEIRS, "model": "opus"}))
    home.settings.point(BLOCK)
    if whole:  # the record of a still older one: all settings that it had written
        (home.folder / "settings.json.with-cortex").write_text(home.path.read_text())
    assert home.settings.own["statusLine"] == THEIRS
    home.settings.show_line(line_entry(home.set_up.folder))
    home.path.write_text(json.dumps({**home.tree, "new": 1}))
    home.settings.undo()
    assert home.tree == {**json.loads(before), "new": 1}


def test_the_line_alone_is_no_set_of_old_models(home: Home) -> None:
    home.settings.show_line(line_entry(home.set_up.folder))
    assert left_behind(home.set_up.environ) == [f"our entries in {home.path}"]  # what `make uninstall` would say
    assert not home.settings.has_old_models({"ANTHROPIC_DEFAULT_OPUS_MODEL": "claude-opus-9"})


def test_the_option_installs_it_where_no_json_comes_and_needs_no_configuration(home: Home) -> None:
    said = home.good("--statusline", SNOWFLAKE_ACCOUNT="")
    assert str(home.path) in said
    assert home.tree == {"statusLine": line_entry(home.set_up.folder)}
    shell = ["/bin/sh", "-c", f"{home.tree['statusLine']['command']} <&-"]  # without a stdin, and by hand
    done = subprocess.run(shell, env=home.set_up.environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "already" in done.stdout
    assert "no longer has the status line" in home.good("--undo")
    assert home.names == []
