"""bundle/checks/model_check.py asks what Claude Code asks, and counts only an answer that Claude Code could use."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundle import settings as settings_module
from bundle.bootstrap import make
from bundle.checks.model_check import (
    CHAT,
    HEADERS,
    MESSAGES,
    Report,
    Route,
    Verdict,
    for_cortex,
    of_cortex,
    of_proxy,
    patiently,
    report,
    request,
    with_remedy,
    with_successor,
)
from bundle.settings import Settings, load_settings
from tests.cortex_rules import check_chat, check_messages
from tests.set_up import BUNDLE

START: dict[str, Any] = {"type": "message_start", "message": {"id": "msg_1", "content": []}}
STOP = {"type": "message_stop"}
WORDLESS = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "OK"}}
THINKING = {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "so"}}
CALL = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "name": "Bash", "input": {}}}
BROKEN = {"type": "error", "error": {"type": "api_error", "message": "Snowflake Cortex broke off"}}


def stream(*events: dict[str, Any], after: str = "") -> str:
    """These events as a stream, with the empty data and comments that a stream may have between them."""
    return "".join(f"event: ping\n\ndata:\n\n: keep-alive\ndata: {json.dumps(event)}\n\n" for event in events) + after


def error(message: str, kind: str = "invalid_request_error") -> str:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}})


# ---------------------------------------------------------------------------------------------------------- the request


def test_the_request_has_one_of_each_kind_of_thing_that_claude_code_sends() -> None:
    asked = request("claude-haiku-4-5")
    assert asked["stream"] is True
    assert asked["thinking"] == {"type": "enabled", "budget_tokens": 1024}
    assert asked["max_tokens"] > 4096
    assert {"Bash", "Read"} < {tool["name"] for tool in asked["tools"]}
    assert all(tool["input_schema"]["required"] for tool in asked["tools"])
    for blocks in (asked["system"], asked["messages"][-1]["content"]):
        assert blocks[-1]["cache_control"] == {"type": "ephemeral"}
    assert asked["metadata"]["user_id"]
    assert "claude-code-20250219" in HEADERS["anthropic-beta"]


@pytest.mark.parametrize("model", ["claude-haiku-4-5", "claude-sonnet-4-6", "claude-opus-4-7"])
def test_what_is_sent_to_cortex_itself_is_what_it_takes_with_nothing_of_weight_left_out(model: str) -> None:
    body, headers = for_cortex(MESSAGES, model)
    chat, _ = for_cortex(CHAT, model)
    assert (check_messages(body, headers), check_chat(chat)) == (None, None)
    assert body["thinking"]["type"] in {"enabled", "adaptive"}
    assert chat["reasoning"]
    assert body["system"][-1]["cache_control"]
    assert chat["messages"][0]["content"][-1]["cache_control"]
    for sent in (body, chat):
        assert (sent["model"], sent["stream"], len(sent["tools"])) == (model, True, 3)


# ----------------------------------------------------------------------------------------------------------- the answer


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (stream(START, WORDLESS, TEXT, STOP), ""),
        (stream(START, THINKING, TEXT, STOP), ""),
        (stream(START, CALL, STOP), ""),
        (stream(START, WORDLESS, STOP), "without content"),
        (stream(START, THINKING, STOP), "without content"),
        (stream(START, TEXT), "ended in the middle"),
        (stream(START, TEXT, BROKEN), "Cortex broke off"),
        (stream(START, TEXT, BROKEN, STOP), "Cortex broke off"),
        (stream(START, TEXT, after="data: {half\n\n"), "not JSON"),
        ("", "ended in the middle"),
        ("<!doctype html>", "ended in the middle"),
    ],
)
def test_only_a_whole_answer_with_something_in_it_counts(answer: str, trouble: str) -> None:
    verdict = of_proxy(200, {}, answer)
    assert (verdict.state == "good", trouble in verdict.words) == (not trouble, True)
    assert of_cortex(MESSAGES, 200, answer) == verdict


def chunk(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"role": "assistant", **delta}}]}


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (stream(chunk(content="OK"), {"choices": [], "usage": {}}, after="data: [DONE]\n\n"), ""),
        (stream(chunk(content="", tool_calls=[{"index": 0}]), after="data: [DONE]\n"), ""),
        (stream(chunk(content=""), after="data: [DONE]\n\n"), "without content"),
        ("data: [DONE]\n\n", "without content"),
        (stream(chunk(content="OK")), "ended in the middle"),
        (stream(chunk(content="OK"), {"code": "392606", "message": "GOAWAY"}, after="data: [DONE]\n"), "GOAWAY"),
        (stream({"error": {"message": "internal"}}), "internal"),
    ],
)
def test_an_answer_of_chat_completions_is_held_to_the_same(answer: str, trouble: str) -> None:
    verdict = of_cortex(CHAT, 200, answer)
    assert (verdict.state == "good", trouble in verdict.words) == (not trouble, True)


@pytest.mark.parametrize(
    ("status", "headers", "words", "state"),
    [
        (429, {}, "too many", "again"),
        (529, {}, "overloaded", "again"),
        (503, {}, "refused reasoning; left out from now on", "again"),
        (503, {"x-should-retry": "false"}, "no", "failed"),
        (401, {}, "an old token", "again"),
        (401, {"x-should-retry": "false"}, "the key", "failed"),
        (403, {"x-should-retry": "false"}, "Not Authorized\nGRANT …", "failed"),
        (400, {"x-should-retry": "false"}, "Snowflake Cortex: thinking: Extra inputs", "refused"),
        (400, {"x-should-retry": "false"}, "Snowflake Cortex: not in your region\nALTER ACCOUNT …", "failed"),
    ],
)
def test_a_refusal_says_whether_asking_again_or_another_route_can_help(
    status: int, headers: dict[str, str], words: str, state: str
) -> None:
    assert of_proxy(status, headers, error(words)) == Verdict(state, words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "words", "state"),
    [
        (400, "reasoning is not supported for this model", "refused"),
        (400, "model claude-x is not available in your region", "failed"),
        (400, "all requests were throttled by remote service", "again"),
        (403, "Not Authorized", "failed"),
        (503, "inference timed out", "again"),
    ],
)
def test_a_refusal_of_cortex_itself_is_read_the_same_way(status: int, words: str, state: str) -> None:
    verdict = of_cortex(CHAT, status, json.dumps({"message": words}))
    assert (verdict.state, words in verdict.words) == (state, True)


def test_what_the_proxy_leaves_out_is_read_from_its_header() -> None:
    answer = stream(START, TEXT, STOP)
    assert of_proxy(200, {"x-cortex-left-out": "reasoning, top_k"}, answer).left_out == ("reasoning", "top_k")
    assert of_proxy(200, {"x-cortex-left-out": ""}, answer) == Verdict("good")


PLACE = {"x-cortex-model": "claude-opus-4-8", "x-cortex-refused": "403 Model claude-opus-5 not allowed"}
WHOLE_ANSWER = stream(START, TEXT, STOP)


def test_a_report_says_which_model_stands_in_why_and_what_brings_the_newer_one() -> None:
    here = of_proxy(200, PLACE, WHOLE_ANSWER)
    found = with_successor(report(here, CHAT), here, "claude-opus-5", "claude-opus-*")
    said = "claude-opus-4-8 answers in place of claude-opus-5, which Cortex refuses: Model claude-opus-5 not allowed"
    assert (found.answers, found.found, found.model) == ("whole", said, "claude-opus-4-8")
    assert "CORTEX_MODELS_ALLOWLIST" in found.remedy
    assert found.remedy.endswith("write it in place of `newest` in the row claude-opus-*.")


def test_a_report_about_a_refused_field_says_it_too_and_keeps_its_own_words() -> None:
    here = of_proxy(200, {**PLACE, "x-cortex-left-out": "reasoning"}, WHOLE_ANSWER)
    found = with_successor(report(here, None), here, "claude-opus-5", "claude-opus-*")
    assert found.found.endswith("not allowed. answers without `reasoning`, which Cortex refuses")
    assert (found.answers, found.model) == ("in part", "claude-opus-4-8")


@pytest.mark.parametrize("headers", [{}, {"x-cortex-model": "claude-opus-5"}])
def test_a_model_that_answers_itself_stands_in_for_none(headers: dict[str, str]) -> None:
    here = of_proxy(200, headers, WHOLE_ANSWER)
    assert with_successor(Report("whole", "answers"), here, "claude-opus-5", "claude-opus-*").model == ""


def test_asking_again_ends_with_the_first_verdict_that_is_final_and_after_six_tries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    again, good, refused = Verdict("again", "busy"), Verdict("good"), Verdict("refused", "no")

    def sending(*verdicts: Verdict) -> Callable[[], Verdict]:
        coming: Iterator[Verdict] = iter(verdicts)
        return lambda: next(coming)

    assert patiently(sending(again, again, good)) == good
    assert patiently(sending(refused)) == refused
    del slept[:]
    assert patiently(sending(*[again] * 6)) == again
    assert slept == sorted(slept)
    assert len(slept) == 5


# -------------------------------------------------------------------------------------------------------- what it means

GOOD, WITHOUT = Verdict("good"), Verdict("good", left_out=("reasoning",))
NO, NEITHER = (
    Verdict("refused", "Snowflake Cortex: reasoning is odd."),
    Verdict("refused", "Snowflake Cortex: x is bad"),
)
REGION = Verdict("failed", "not in your region\nALTER ACCOUNT …")


@pytest.mark.parametrize(
    ("here", "route", "there", "meant"),
    [
        (GOOD, CHAT, None, Report("whole", "answers")),
        (GOOD, None, None, Report("whole", "answers")),
        (
            WITHOUT,
            CHAT,
            GOOD,
            Report(
                "in part",
                "Cortex refuses `reasoning` on chat completions and takes it on the Messages API",
                better=MESSAGES,
            ),
        ),
        (
            WITHOUT,
            MESSAGES,
            NEITHER,
            Report("in part", "Cortex refuses `reasoning` on the Messages API, and on chat completions: x is bad"),
        ),
        (WITHOUT, CHAT, None, Report("in part", "Cortex refuses `reasoning` on chat completions")),
        (WITHOUT, None, None, Report("in part", "answers without `reasoning`, which Cortex refuses")),
        (
            NO,
            CHAT,
            GOOD,
            Report(
                "no",
                "Cortex refuses what Claude Code sends (reasoning is odd) on chat completions and takes that on "
                "the Messages API",
                better=MESSAGES,
            ),
        ),
        (
            NO,
            CHAT,
            REGION,
            Report(
                "no",
                "Cortex refuses what Claude Code sends (reasoning is odd) on chat completions, and on "
                "the Messages API: not in your region",
                "ALTER ACCOUNT …",
            ),
        ),
        (REGION, CHAT, None, Report("no", "not in your region", "ALTER ACCOUNT …")),
        (Verdict("again", "busy\nTrying again."), CHAT, None, Report("no", "busy", "Trying again.")),
    ],
)
def test_the_verdicts_of_both_routes_are_one_sentence(
    here: Verdict, route: Route | None, there: Verdict | None, meant: Report
) -> None:
    assert report(here, route, there) == meant


TEMPLATE = "litellm_config.template.yaml"
BETTER = Report("no", "refused", better=MESSAGES)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a user whose template sends opus to the Messages API, and leaves haiku as it is shipped."""
    text = (BUNDLE / TEMPLATE).read_text().replace("openai/claude-opus", "snowflake/claude-opus")
    (tmp_path / TEMPLATE).write_text(text)
    monkeypatch.setattr(settings_module, "BUNDLE", tmp_path)
    names = {"HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path), "SNOWFLAKE_ACCOUNT": "a-b", "SNOWFLAKE_USER": "u"}
    return load_settings(names)


def test_the_remedy_is_the_line_for_env(settings: Settings) -> None:
    found = with_remedy(settings, "claude-haiku-4-5", "claude-haiku-*", BETTER)
    where, line = found.remedy.splitlines()
    assert (str(settings.folder / ".env") in where, line) == (True, "CLAUDE_ROUTE=messages")
    assert found.better is MESSAGES
    assert with_remedy(settings, "claude-haiku-4-5", "claude-haiku-*", Report("whole", "answers")).remedy == ""


def test_where_the_shell_has_the_word_the_remedy_is_for_the_shell(settings: Settings) -> None:
    said = replace(settings, claude_route_from="the environment")
    found = with_remedy(said, "claude-haiku-4-5", "claude-haiku-*", BETTER)
    assert found.remedy == f"export CLAUDE_ROUTE=messages\n{make('stop', 'start')}"


def test_a_row_that_names_its_route_itself_is_not_changed_by_the_word(settings: Settings) -> None:
    found = with_remedy(settings, "claude-opus-4-7", "claude-opus-*", replace(BETTER, better=CHAT))
    assert found.better is None
    assert "must say openai/claude-opus-4-7" in found.remedy


def test_a_broken_template_offers_no_route(settings: Settings, tmp_path: Path) -> None:
    template = tmp_path / TEMPLATE  # named here, so that this can never write into the bundle
    assert settings.template_path == template
    template.write_text("model_list: [")
    assert with_remedy(settings, "claude-haiku-4-5", "claude-haiku-*", BETTER) == replace(BETTER, better=None)
