"""doctor.py --live: each model is asked once, as Claude Code asks."""

from __future__ import annotations

import pytest
import yaml

from bundle.checks import model_check
from bundle.checks.finding import Finding
from bundle.checks.report import models
from bundle.settings import load_settings, master_key
from tests.checked import FakeProxy, findings, serving
from tests.set_up import SetUp

pytestmark = pytest.mark.usefixtures("nobody_s_environment")


def test_each_distinct_model_is_asked_once_and_a_family_under_a_made_up_name(set_up: SetUp) -> None:
    set_up.refresh()
    server = FakeProxy(set_up.port, set_up.master_key)
    server.refused = {"claude-opus-doctor": "Opus is not in your region.\nALTER ACCOUNT …", "claude-opus-4-5": "No."}
    with serving(server):
        found = findings(set_up, models)
    rows = yaml.safe_load(set_up.config.read_text())["model_list"]
    assert set(found) == {row["litellm_params"]["model"] for row in rows}
    assert len(server.asked) == len(found)
    # Each request has all the kinds of fields that Claude Code sends.
    assert all({"tools", "thinking", "system", "stream", "metadata"} <= asked.keys() for asked in server.asked)
    assert found["openai/claude-sonnet-5"].state == "ok"
    # Claude Code uses the first model by itself; the second is only in its list.
    assert found["openai/claude-opus-5"].state == "fail"
    assert found["openai/claude-opus-5"].fix == "ALTER ACCOUNT …"
    assert found["openai/claude-opus-4-5"].state == "warn"


def test_a_model_that_stands_in_for_a_newer_one_is_a_warning_with_the_way_to_the_newer_one(set_up: SetUp) -> None:
    set_up.refresh()
    server = FakeProxy(set_up.port, set_up.master_key)
    words = "400 model claude-opus-5 is not available in your region"
    server.headers["claude-opus-doctor"] = {"x-cortex-model": "claude-opus-4-8", "x-cortex-refused": words}
    server.headers["claude-sonnet-doctor"] = {"x-cortex-model": "claude-sonnet-5"}
    with serving(server):
        found = findings(set_up, models)
    opus = found["openai/claude-opus-5"]
    assert opus.state == "warn"
    assert opus.found == f"claude-opus-4-8 answers in place of claude-opus-5, which Cortex refuses: {words[4:]}"
    assert "ALTER ACCOUNT SET CORTEX_ENABLED_CROSS_REGION = 'ANY_REGION';" in opus.fix
    assert "write it in place of `newest` in the row claude-opus-*." in opus.fix
    assert found["openai/claude-sonnet-5"].state == "ok"


def test_a_model_behind_nothing_but_a_wildcard_is_asked_too(set_up: SetUp) -> None:
    row = {"model_name": "claude-opus-*", "litellm_params": {"model": "openai/new"}}
    set_up.config.write_text(yaml.dump({"model_list": [row]}))
    server = FakeProxy(set_up.port, master_key(load_settings(set_up.environ)))
    with serving(server):
        assert findings(set_up, models)["openai/new"].state == "ok"
    assert server.asked[0]["model"] == "claude-opus-doctor"


def test_an_answer_without_content_is_none(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up.refresh()
    monkeypatch.setattr(model_check, "PAUSES", (0,))
    server = FakeProxy(set_up.port, set_up.master_key)
    server.said["claude-haiku-doctor"] = ""
    with serving(server):
        found = findings(set_up, models)["openai/claude-haiku-4-5"]
    assert (found.state, found.found) == ("fail", "an answer without content")
    assert len([asked for asked in server.asked if "haiku" in asked["model"]]) == 2


def test_without_a_proxy_no_model_is_blamed(set_up: SetUp) -> None:
    set_up.refresh()
    assert findings(set_up, models) == {"Models": Finding("Models", "skip", "the proxy does not answer")}
