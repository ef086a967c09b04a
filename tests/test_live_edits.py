"""Edits of the template, the settings and the key take effect in the running proxy, or are refused with a reason."""

from __future__ import annotations

import re
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from bundle.claude_models import aliases
from bundle.tokens import BACKDATE_SECONDS, fingerprint
from tests.claude_home import rows_of
from tests.day import HOUR, PROXY, REFRESHER, SECONDS, Day
from tests.set_up import SetUp, public_pem, wait_until
from tests.user import put

ANOTHER = """\
  - model_name: my-own-name
    litellm_params: { <<: *cortex, model: openai/claude-opus-4-5 }
"""


@pytest.mark.real
def test_a_model_that_is_added_answers_within_seconds_and_one_that_is_removed_no_more(day: Day) -> None:
    assert day.ask("hello", "my-own-name").status_code == 400
    day.edit("model_list:\n", "model_list:\n" + ANOTHER)
    wait_until(lambda: day.ask("hello", "my-own-name").status_code == 200, SECONDS, lambda: day.log(PROXY))
    assert day.answered("my-own-name")["model"] == "claude-opus-4-5"
    day.edit(ANOTHER, "")
    wait_until(lambda: day.ask("hello", "my-own-name").status_code == 400, SECONDS, lambda: day.log(PROXY))


@pytest.mark.real
def test_a_changed_mapping_takes_effect_within_seconds_and_leaves_open_answers_alone(day: Day) -> None:
    with day.open_answer() as finish:
        day.edit(
            "model_name: claude-opus-*\n    litellm_params: { <<: *cortex, model: openai/newest }",
            "model_name: claude-opus-*\n    litellm_params: { <<: *cortex, model: openai/claude-opus-4-6 }",
        )
        wait_until(lambda: day.answered("claude-opus-9-9")["model"] == "claude-opus-4-6", SECONDS)
        assert finish() == "one two three"


@pytest.mark.real
def test_another_model_can_answer_for_a_family_of_claude_models(day: Day) -> None:
    row = "model_name: claude-haiku-*\n    litellm_params: { <<: *cortex, model: openai/"
    day.edit(f"{row}newest }}", f"{row}openai-gpt-4.1 }}")
    asked = aliases(rows_of(day.template_file.read_text()))["ANTHROPIC_DEFAULT_HAIKU_MODEL"]
    wait_until(lambda: day.answered(asked)["model"] == "openai-gpt-4.1", SECONDS, lambda: day.log(PROXY))


@pytest.mark.real
def test_a_wildcard_row_that_is_removed_answers_no_more(day: Day) -> None:
    assert day.answered("claude-of-the-future")["model"] == "claude-sonnet-5"
    row = day.shipped.index("  - model_name: claude-*\n")
    day.edit(day.shipped[row : day.shipped.index("\n\n", row)], "")
    wait_until(lambda: day.ask("hello", "claude-of-the-future").status_code == 400, SECONDS, lambda: day.log(PROXY))
    assert "no row of litellm_config.template.yaml" in day.ask("hello", "claude-of-the-future").text


@pytest.mark.real
def test_a_key_is_rotated_by_the_second_slot_while_requests_go_on(day: Day) -> None:
    before = day.answered()["fp"]
    new = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    day.stub.register_key(public_pem(new), slot=2)
    day.write_key(new)
    wait_until(lambda: day.answered()["fp"] != before, SECONDS, lambda: day.log(REFRESHER))
    assert day.answered()["fp"] == fingerprint(new)
    day.stub.register_key(public_pem(new), slot=1)
    day.stub.register_key(None, slot=2)
    assert day.answered()["fp"] == fingerprint(new)


@pytest.mark.real
def test_a_name_that_dns_does_not_know_is_said_and_an_edit_of_the_settings_fixes_it(day: Day) -> None:
    log = len(day.log(PROXY))
    day.env_file.write_text(re.sub("SNOWFLAKE_HOST=.*", "SNOWFLAKE_HOST=no-such-host.invalid", day.settings))
    wait_until(lambda: (answer := day.ask("hello")).status_code == 502 and "cannot be reached" in answer.text, SECONDS)
    answer = day.ask("hello")
    assert answer.headers.get("x-should-retry") is None
    assert "DNS" in answer.json()["error"]["message"]
    identity = answer.headers["request-id"]
    assert f"error 502 to Claude Code ({identity}): Snowflake Cortex cannot be reached" in day.log(PROXY)[log:]
    day.env_file.write_text(day.settings)
    wait_until(lambda: day.ask("hello").status_code == 200, SECONDS)


@pytest.mark.real
def test_a_new_port_and_another_section_of_the_template_say_that_they_need_a_restart(day: Day) -> None:
    refresher, proxy = len(day.log(REFRESHER)), len(day.log(PROXY))
    day.env_file.write_text(f"{day.settings}PROXY_PORT=8123\n")
    assert "pm2 restart claude-proxy`" in day.said(REFRESHER, "PROXY_PORT changed: takes effect with", refresher)
    day.edit("num_retries: 0", "num_retries: 0\n  timeout: 1000")
    assert "pm2 restart claude-proxy`" in day.said(PROXY, "router_settings changed: takes effect with", proxy)


@pytest.mark.keeps("last-good-configuration")
@pytest.mark.real
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("model_list:\n", "model_list: [\n", "not valid YAML"),
        ("openai/claude-opus-4-6 }", "opnai/claude-opus-4-6 }", "a model on Cortex starts with openai/ or snowflake/"),
    ],
)
def test_a_broken_edit_is_refused_with_a_message_and_the_last_good_configuration_stays(
    day: Day, old: str, new: str, said: str
) -> None:
    log, before, token = len(day.log(REFRESHER)), day.config.read_bytes(), day.token()
    day.edit(old, new)
    assert "the last good configuration stays" in day.said(REFRESHER, said, log)
    assert day.answered("claude-opus-4-6")["model"] == "claude-opus-4-6"
    assert day.config.read_bytes() == before
    assert said in day.run(REFRESHER, "--status").stdout
    day.template_file.write_text(day.shipped)
    day.refreshed(token)
    assert day.run(REFRESHER, "--status").returncode == 0


@pytest.mark.keeps("last-good-configuration")
@pytest.mark.real
def test_a_row_that_only_litellm_refuses_is_named_and_the_old_rows_stay(day: Day) -> None:
    log = len(day.log(PROXY))
    day.edit("model: openai/claude-opus-4-6 }", "model: openai/claude-opus-4-5, timeout: [1] }")
    words = day.said(PROXY, "the changed rows of the template are not used, the old ones stay: claude-opus-4-6", log)
    assert "eyJ" not in words
    time.sleep(2)
    assert day.log(PROXY)[log:].count("not used") == 1
    assert day.answered("claude-opus-4-6")["model"] == "claude-opus-4-6"


@pytest.mark.keeps("live-token")
@pytest.mark.real
def test_with_a_broken_template_the_session_outlives_the_token(day: Day) -> None:
    day.edit("model_list:\n", "model_list: [\n")
    log = len(day.log(REFRESHER))
    day.move_clock(HOUR)
    assert day.answered()["iat"] == pytest.approx(day.now() - BACKDATE_SECONDS, abs=SECONDS)
    day.said(REFRESHER, "ERROR: no new token, and the last one ends in 0 minutes", log)


@pytest.mark.real
def test_a_route_that_is_written_into_env_is_that_of_the_next_request_without_a_restart(running: SetUp) -> None:
    env_file, paths = running.folder / ".env", {"chat": "/chat/completions", "messages": "/messages"}

    def asked() -> str:
        before = len(running.stub.requests)
        assert running.ask("hello").status_code == 200
        return str(running.stub.requests[before]["path"])

    assert asked().endswith(paths["chat"])
    try:
        for word in ("messages", "chat"):
            put(env_file, f"CLAUDE_ROUTE={word}\n")
            wait_until(lambda: asked().endswith(paths[word]), 15)  # noqa: B023 - called at once
    finally:
        env_file.unlink()
