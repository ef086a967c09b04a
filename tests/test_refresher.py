"""bundle/refresher.py: when a new token is due, and what a failure costs."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from bundle import refresher as refresher_module
from bundle.claude_settings import UserSettings, proxy_entries, run_file, to_text
from bundle.files import Stamp, write_private
from bundle.model_list import ModelList
from bundle.refresher import Refresher, Written, due, read_state, retry_delay
from bundle.settings import Settings, load_settings
from bundle.sql_api import QueryError
from bundle.tokens import fingerprint
from tests.claude_home import TEMPLATE
from tests.set_up import pem
from tests.user import NOW, put

# ------------------------------------------------------------------------------------------------------------------ due

CONFIG = (("litellm_config.yaml", 1, 1, 1),)
SOURCES = ((".env", 1, 1, 1), ("k.p8", 1, 1, 1))
LAST = Written(issued_at=1000, expires_at=4600, refresh_seconds=3000, sources=SOURCES, config=CONFIG)


@pytest.mark.parametrize(
    ("now", "sources", "config", "reason"),
    [
        (3999, SOURCES, CONFIG, None),
        (4000, SOURCES, CONFIG, "50 minutes old"),
        (40_000, SOURCES, CONFIG, "minutes old"),  # the laptop slept through the night
        (999, SOURCES, CONFIG, "clock went back"),
        (2000, SOURCES, (), "deleted"),
        (2000, SOURCES, (("litellm_config.yaml", 2, 1, 1),), "edits belong in"),
        (2000, ((".env", 1, 1, 1), ("k.p8", 2, 1, 1)), CONFIG, "k.p8 changed"),
        (2000, SOURCES[:1], CONFIG, "k.p8 changed"),
    ],
)
def test_a_refresh_is_due_by_the_wall_clock_and_by_what_changed(
    now: float, sources: Stamp, config: Stamp, reason: str | None
) -> None:
    found = due(now, LAST, sources, config)
    assert found is None if reason is None else found is not None and reason in found


def test_it_waits_longer_after_each_failure_up_to_a_minute() -> None:
    delays = [retry_delay(failures, 0.5) for failures in (1, 2, 3, 10, 10_000)]
    assert delays == [1, 2, 4, 60, 60]
    assert retry_delay(3, 0.0) < 4 < retry_delay(3, 1.0)


# ----------------------------------------------------------------------------------------------------------------- loop


class World:
    """A refresher whose clock the test moves."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ, self.now, self.lines = environ, NOW, list[str]()
        self.listed: ModelList | None = None  # what the account says when it is asked
        self.asked: list[float] = []
        self.refresher = Refresher(
            lambda: load_settings(self.environ), lambda: self.now, self.lines.append, environ, self.ask
        )
        self.watch = self.refresher.watch
        self.refresher.refresh(self.now, "the refresher has started")
        self.config = Path(environ["CORTEX_HOME"]) / "litellm_config.yaml"

    def ask(self, settings: Settings, now: float) -> ModelList:
        self.asked.append(now)
        if self.listed is None:
            raise QueryError("the warehouse of models is closed.\nOpen it.")
        return replace(self.listed, account=settings.account, host=settings.base_url, asked_at=int(now))

    def after(self, seconds: float) -> bool:
        self.now += seconds
        return self.refresher.step()

    def token(self) -> str:
        return str(yaml.safe_load(self.config.read_text())["model_list"][0]["litellm_params"]["api_key"])


@pytest.fixture
def world(environ: dict[str, str]) -> World:
    return World(environ)


def test_it_signs_after_fifty_minutes_and_not_before(world: World) -> None:
    first = world.token()
    assert not world.after(2998)
    assert world.after(3)
    assert world.token() != first


def test_a_changed_key_is_used_at_the_next_look(world: World, home: Path) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    put(home / ".ssh" / "snowflake_key.p8", pem(other))
    assert world.after(2)
    assert read_state(home)["key_fingerprint"] == fingerprint(other)
    jwt.decode(
        world.token(), other.public_key(), algorithms=["RS256"], options={"verify_iat": False, "verify_exp": False}
    )


def test_settings_that_change_right_after_they_were_read_cause_another_refresh(world: World, home: Path) -> None:
    def load_and_edit() -> Settings:
        settings = load_settings(world.environ)
        put(home / ".env", "REFRESH_MINUTES=40\n")
        return settings

    world.refresher._load = load_and_edit
    world.refresher.refresh(world.now, "the test asks for it")
    world.refresher._load = lambda: load_settings(world.environ)
    assert world.refresher.step()
    assert ".env changed" in world.lines[-1]
    assert not world.refresher.step()


def test_a_config_altered_by_hand_is_written_anew_and_said(world: World) -> None:
    world.config.write_text("model_list: [my own]\n")
    assert world.after(2)
    assert "edits belong in litellm_config.template.yaml" in world.lines[-1]
    assert world.token()


def test_the_models_of_claude_code_follow_an_edited_template(
    environ: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = home / "litellm_config.template.yaml"
    template.write_text(TEMPLATE)
    monkeypatch.setattr("bundle.settings.BUNDLE", home)
    world, settings = World(environ), load_settings(environ)
    entries = proxy_entries(settings, {"env": environ})
    write_private(run_file(settings), to_text(entries))
    UserSettings(environ).point(entries)
    row = "model_name: claude-opus-*\n    litellm_params: { <<: *cortex, model: openai/"
    template.write_text(TEMPLATE.replace(f"{row}newest", f"{row}claude-opus-9"))
    assert world.after(2)
    assert json.loads(run_file(settings).read_text())["env"]["ANTHROPIC_DEFAULT_OPUS_MODEL"] == "claude-opus-9[1m]"
    said = f"{home}/.claude/settings.json has the models of an older template"
    assert said in world.lines[-1]
    world.after(3001)
    assert len([line for line in world.lines if said in line]) == 1
    assert read_state(home)["last_error"] is None


@pytest.mark.parametrize("what", ["deleted", "truncated"])
def test_a_config_that_is_lost_comes_back(world: World, what: str) -> None:
    if what == "deleted":
        world.config.unlink()
    else:
        world.config.write_text("")
    assert world.after(2)
    assert world.token()


def test_a_failing_refresh_keeps_the_last_good_configuration_and_says_so_once(world: World, home: Path) -> None:
    before = world.config.read_bytes()
    key = home / ".ssh" / "snowflake_key.p8"
    key.rename(home / "away")
    assert not any(world.after(2) for _ in range(10))
    assert world.config.read_bytes() == before
    assert len([line for line in world.lines if "the last good configuration stays" in line]) == 1
    assert "there is no private key" in str(read_state(home)["last_error"])
    (home / "away").rename(key)
    world.after(120)
    assert read_state(home)["last_error"] is None


def test_it_warns_louder_when_the_token_is_about_to_end(world: World, home: Path) -> None:
    (home / ".ssh" / "snowflake_key.p8").unlink()
    world.after(3100)
    assert world.lines[-1].startswith("ERROR: no new token, and the last one ends in 7 minutes")


def test_whatever_happens_in_a_step_the_loop_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*_: object) -> None:
        raise ValueError("something nobody thought of")

    monkeypatch.setattr(refresher_module, "token_now", surprise)
    assert not world.after(3100)
    assert "something nobody thought of" in world.lines[-1]
    monkeypatch.undo()
    assert world.after(120)


def test_a_clock_that_goes_back_gives_a_token_of_the_new_time(world: World) -> None:
    assert world.after(-7200)
    assert read_state(world.refresher.settings.folder)["issued"] == int(NOW) - 7200


def test_the_state_file_is_private_and_holds_no_token(world: World, home: Path) -> None:
    path = home / ".refresher.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert world.token() not in path.read_text()
    assert "eyJ" not in path.read_text()


def test_no_line_of_the_log_holds_a_token(world: World) -> None:
    world.after(3001)
    assert world.lines
    assert not [line for line in world.lines if "eyJ" in line]
