"""When Cortex refuses the newest model of a family, the next older one answers, on both routes.

The real LiteLLM runs against the strict stand-in, and once the real Claude Code asks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.cortex_rules import MODELS
from tests.cortex_stub import CHAT, MESSAGES
from tests.family import NEW, OPUS, PROXY, Family, a_family
from tests.set_up import TOKEN, events

pytestmark = pytest.mark.real
PATHS = {"chat": CHAT, "messages": MESSAGES}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    with a_family(tmp_path_factory.mktemp("family")) as made:
        yield made


@pytest.fixture(params=PATHS)
def route(request: pytest.FixtureRequest, family: Family) -> Iterator[str]:
    family.refuse()
    family.write_rows(request.param)
    yield request.param
    family.stub.missing_models = frozenset()
    family.stub.clear_faults()
    family.stub.set_options(models=MODELS, output_cap=None)
    assert not TOKEN.search(family.log(PROXY))


def said(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize("stream", [True, False])
def test_the_next_older_model_answers_and_it_is_said_once(family: Family, route: str, stream: bool) -> None:
    family.refuse("claude-opus-5")
    first, log = len(family.stub.requests), family.log(PROXY)
    refused, answer = family.patiently(stream=stream)
    assert (refused.status_code, refused.headers.get("x-should-retry")) == (503, None)
    assert "unknown model claude-opus-5; claude-opus-4-8 answers from now on" in said(refused)
    assert answer.status_code == 200
    if stream:
        assert events(answer)[-1]["type"] == "message_stop"
    else:
        assert answer.json()["content"] == [{"type": "text", "text": "hello"}]
    assert [each.headers["x-cortex-model"] for each in (refused, answer)] == OPUS[:2]
    assert answer.headers["x-cortex-refused"] == "400 unknown model claude-opus-5"
    assert family.asked_for(first) == OPUS[:2]
    assert family.stub.requests[-1]["path"].partition("?")[0] == PATHS[route]
    for name in ("claude-opus-9-9", "opus"):  # other names of the same row
        assert [each.status_code for each in family.patiently(name)] == [200]
    line = "Cortex refused claude-opus-5: claude-opus-4-8 answers from now on. Cortex's message: unknown model"
    assert (line in family.log(PROXY), family.log(PROXY).removeprefix(log).count(line) < 2) == (True, True)


@pytest.mark.usefixtures("route")
def test_each_kind_of_refusal_moves_one_step_and_three_in_a_row_come_to_an_answer(family: Family) -> None:
    family.refuse("claude-opus-5")
    family.stub.missing_models = frozenset({"claude-opus-4-8"})
    answers = [family.ask("hi", "claude-opus-latest") for _ in range(2)]
    family.stub.fault("model_not_allowed", times=1)
    answers += [family.ask("hi", "claude-opus-latest") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 503, 503, 200]
    words = ("unknown model claude-opus-5", "claude-opus-4-8 is not available", "Model claude-opus-4-7 not allowed")
    assert all(part in said(answer) for part, answer in zip(words, answers, strict=False))
    assert answers[-1].headers["x-cortex-model"] == "claude-opus-4-6"
    assert answers[-1].headers["x-cortex-refused"] == "400 unknown model claude-opus-5"


@pytest.mark.usefixtures("route")
def test_when_the_last_one_is_refused_too_the_error_is_shown_with_its_remedy(family: Family) -> None:
    family.refuse(*OPUS)
    first = len(family.stub.requests)
    *before, last = family.patiently()
    assert [answer.status_code for answer in before] == [503] * 4
    assert (last.status_code, last.headers["x-should-retry"]) == (400, "false")
    assert "unknown model claude-opus-4-5\nCortex has no such model" in said(last)
    assert family.asked_for(first) == OPUS
    (again,) = family.patiently()  # no model is tried a second time but the first, which an administrator may allow
    assert (again.status_code, family.asked_for()[-1]) == (400, "claude-opus-5")
    family.refuse()
    (answer,) = family.patiently()
    assert (answer.status_code, answer.headers["x-cortex-model"]) == (200, "claude-opus-5")
    assert "x-cortex-refused" not in answer.headers


@pytest.mark.usefixtures("route")
def test_a_row_that_names_its_model_is_never_changed(family: Family) -> None:
    family.refuse("claude-opus-5")
    for _ in range(2):
        (answer,) = family.patiently("claude-opus-5")
        assert answer.status_code == 400
        assert family.asked_for()[-1] == "claude-opus-5"


def test_what_was_refused_is_forgotten_when_the_row_changes(family: Family, route: str) -> None:
    family.refuse("claude-opus-5")
    assert len(family.patiently()) == 2
    family.refuse()
    assert family.patiently()[-1].headers["x-cortex-model"] == "claude-opus-4-8"
    family.write_rows(route)
    assert family.patiently()[-1].headers["x-cortex-model"] == "claude-opus-5"


@pytest.mark.usefixtures("route")
def test_all_rows_that_have_the_model_in_their_list_do_without_it(family: Family) -> None:
    family.refuse("claude-sonnet-5")
    assert len(family.patiently("claude-sonnet-latest")) == 2
    (answer,) = family.patiently("claude-of-no-family")  # another row, with the same models
    assert answer.headers["x-cortex-model"] == "claude-sonnet-4-6"


def test_the_output_limit_is_that_of_the_model_that_answers(family: Family, route: str) -> None:
    field = "max_tokens" if route == "messages" else "max_completion_tokens"
    assert family.patiently(max_tokens=128_000)[-1].status_code == 200
    assert family.stub.requests[-1]["body"][field] == 128_000
    family.refuse(*OPUS[:4])
    first = len(family.stub.requests)
    assert family.patiently(max_tokens=128_000)[-1].headers["x-cortex-model"] == "claude-opus-4-5"
    sent = [(record["body"]["model"], record["body"][field]) for record in family.stub.requests[first:]]
    assert sent == [*((model, 128_000) for model in OPUS[:4]), ("claude-opus-4-5", 64_000)]


def test_an_output_limit_that_cortex_names_is_learnt_for_the_model_that_answers(family: Family, route: str) -> None:
    # (The limit of a model is known until the proxy ends, so each route has its own models here.)
    field, newest, older = {
        "chat": ("max_completion_tokens", "claude-opus-5", "claude-opus-4-8"),
        "messages": ("max_tokens", "claude-sonnet-5", "claude-sonnet-4-6"),
    }[route]
    family.refuse(newest)
    family.stub.set_options(output_cap=16_384)
    name, first = newest.replace("-5", "-latest"), len(family.stub.requests)
    assert family.patiently(name, max_tokens=60_000)[-1].status_code == 200
    sent = [(record["body"]["model"], record["body"][field]) for record in family.stub.requests[first:]]
    assert sent == [(newest, 60_000), (older, 60_000), (older, 16_384)]
    family.write_rows(route)
    family.refuse()
    family.stub.set_options(output_cap=None)
    assert family.patiently(name, max_tokens=60_000)[-1].headers["x-cortex-model"] == newest
    assert family.stub.requests[-1]["body"][field] == 60_000


def test_a_limit_that_the_user_has_written_stays_for_an_older_model(family: Family, route: str) -> None:
    family.write_rows(route, info=", max_output_tokens: 9999")
    family.refuse("claude-opus-5")
    assert family.patiently(max_tokens=20_000)[-1].headers["x-cortex-model"] == "claude-opus-4-8"
    assert 9999 in family.stub.requests[-1]["body"].values()


@pytest.mark.parametrize("thinking", [{"type": "enabled", "budget_tokens": 2000}, {"type": "adaptive"}])
def test_a_successor_that_no_row_names_gets_the_same_request_on_the_same_path(
    family: Family, route: str, thinking: Mapping[str, Any]
) -> None:
    family.write_rows(route, listed=[*NEW, *OPUS])
    family.refuse("claude-opus-5-5")
    first = len(family.stub.requests)
    answers = family.patiently(max_tokens=9000, thinking=thinking)
    assert [answer.status_code for answer in answers] == [503, 200]
    asked = family.stub.requests[first:]
    assert [record["body"].pop("model") for record in asked] == [*NEW]
    assert {record["path"].partition("?")[0] for record in asked} == {PATHS[route]}
    assert asked[0]["body"] == asked[1]["body"]


def test_claude_code_gets_its_answer_over_three_refused_models(family: Family, route: str) -> None:
    family.refuse(*OPUS[:3])
    first, started = len(family.stub.requests), time.monotonic()
    result = family.claude("[[text: here I am]]", "--model", "opus", ANTHROPIC_DEFAULT_OPUS_MODEL="claude-opus-latest")
    assert (result["is_error"], result["result"]) == (False, "here I am")
    asked = family.asked_for(first)
    assert [name for number, name in enumerate(asked) if name not in asked[:number]][:4] == OPUS[:4]
    assert {record["path"].partition("?")[0] for record in family.stub.requests[first:]} == {PATHS[route]}
    assert time.monotonic() - started < 60
