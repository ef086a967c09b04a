"""uninstall.py: everything that the bundle has put anywhere is gone, and what is the user's own is there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle import taking_back
from bundle.bootstrap import script
from bundle.taking_back import forget_in_saved_lists, left_behind, what_remains
from tests.set_up import BUNDLE, BareSetUp, SetUp, copy_bundle, wait_until

THEIRS = {"name": "theirs", "pm_exec_path": "/srv/theirs/app.js"}


@pytest.fixture
def machine() -> Iterator[SetUp]:
    """A copy of the bundle that runs under a PM2 of its own. (The path of its socket must be short.)"""
    folder = Path(tempfile.mkdtemp(prefix="un"))
    # With a LiteLLM of its own: the patch is taken out of one outside the folder, and other tests use that one.
    made = SetUp(folder, bundle=copy_bundle(folder / "bundle", own_litellm=True))
    (made.bundle / "node_modules").symlink_to(BUNDLE / "node_modules")
    shutil.copy(BUNDLE / "Makefile", made.bundle)
    made.environ |= {"PM2_DISCRETE_MODE": "1", "CORTEX_HOME": ""}
    try:
        yield made
    finally:
        made.run(str(BUNDLE / "node_modules" / ".bin" / "pm2"), "kill")
        made.close()
        shutil.rmtree(folder)


@pytest.mark.real
def test_after_it_nothing_of_the_bundle_is_left_but_the_user_s_own(machine: SetUp) -> None:
    pm2 = str(BUNDLE / "node_modules" / ".bin" / "pm2")
    settings, env_file = machine.folder / ".claude" / "settings.json", machine.bundle / ".env"
    settings.parent.mkdir()
    settings.write_text(before := '{"model": "opus"}')
    env_file.write_text("CLAUDE_ROUTE=chat\n")
    month = machine.bundle / "ledger" / "2026-11.jsonl"
    month.parent.mkdir()
    month.write_text("{}\n")
    before_files = {path.name for path in machine.bundle.iterdir()}
    started = machine.run(pm2, "start", str(machine.bundle / "ecosystem.config.js"), "--only", "token-refresher")
    assert started.returncode == 0, started.stdout
    wait_until((machine.bundle / "litellm_config.yaml").exists, 30)
    (machine.bundle / ".spent.json").write_text("{}")
    machine.run(pm2, "save")
    saved = machine.folder / "pm2" / "dump.pm2"
    saved.write_text(json.dumps([*json.loads(saved.read_text()), THEIRS]))
    for option in ("--file", "--install-command"):
        assert machine.run("point_claude.py", option).returncode == 0
    assert machine.run("point_claude.py").returncode == 0
    pids = [row["pid"] for row in json.loads(machine.run(pm2, "jlist").stdout.splitlines()[-1])]

    done = machine.run("uninstall.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ALTER USER JANE UNSET RSA_PUBLIC_KEY;" in done.stdout
    for kept in (machine.key_path, env_file, month.parent, machine.bundle):
        assert str(kept) in done.stdout
        assert kept.exists()
    assert month.exists()
    assert settings.read_text() == before
    assert [path.name for path in settings.parent.iterdir()] == ["settings.json"]
    assert json.loads(saved.read_text()) == [THEIRS]
    assert not (machine.folder / ".local" / "bin" / "claude-cortex").exists()
    assert {path.name for path in machine.bundle.iterdir()} - {"__pycache__"} == before_files - {"__pycache__"}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    again = machine.run("uninstall.py")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "removed" not in again.stdout


def test_what_still_runs_stops_it_before_anything_else_is_removed(tmp_path: Path) -> None:
    set_up = BareSetUp(tmp_path, bundle=copy_bundle(tmp_path / "bundle", own_litellm=True))
    (set_up.bundle / "stop.py").write_text("print('claude-proxy (pid 1) still runs.')\nraise SystemExit(1)\n")
    (tmp_path / ".master_key").write_text("sk-key")
    done = set_up.run("uninstall.py")
    assert done.returncode == 1
    assert "still runs" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(script("uninstall.py").replace(str(BUNDLE), str(set_up.bundle)))
    assert (tmp_path / ".master_key").exists()


def test_what_could_not_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = BareSetUp(tmp_path).environ
    assert left_behind(environ) == []
    (tmp_path / ".master_key").write_text("sk-key")
    (tmp_path / "ledger").mkdir()
    assert f"- The ledger, with what each answer has used: {tmp_path / 'ledger'}" in what_remains(environ)
    saved = tmp_path / "pm2" / "dump.pm2"
    saved.parent.mkdir()
    saved.write_text(json.dumps([THEIRS, {"name": "claude-proxy", "pm_exec_path": f"{BUNDLE}/claude_proxy.py"}]))
    assert left_behind(environ) == [str(tmp_path / ".master_key"), f"our rows in {saved}"]
    assert "claude-proxy" in forget_in_saved_lists(environ)[0]
    assert json.loads(saved.read_text()) == [THEIRS]
    saved.write_text("not a list")
    assert forget_in_saved_lists(environ) == []
    monkeypatch.setattr(taking_back, "written_files", lambda _: [])
    assert left_behind(environ) == []
