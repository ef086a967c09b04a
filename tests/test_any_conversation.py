"""Promises for any conversation: Cortex takes it, and nothing of it is lost.

The conversations are Anthropic's, made at random. LiteLLM's own adapter translates them, so the tests see what the
callback really gets. The rules of the stand-in judge what comes out.
"""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from bundle.cortex.contents import IMAGE_TOO_OLD, MAX_IMAGES
from bundle.cortex.documents import TOOL_FAILED, for_translation
from bundle.cortex.marks import without_marks
from bundle.cortex.models import JSON, Limits, family_of, no_note
from bundle.cortex.requests import chat_request
from bundle.cortex.thinking import without_details
from bundle.cortex.turns import CONTINUE
from bundle.proxy.request_shape import fault
from tests.conversations import CLAUDE, GPT, KEEP, LLAMA, marked, mutated, requests, sessions, told, urls, user
from tests.cortex_rules import MODELS, Options, check_chat

# The import of LiteLLM alone takes several seconds.
pytestmark = pytest.mark.real


@functools.cache
def adapter() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """LiteLLM's own first look at the messages, and its translation to the arguments of `litellm.acompletion`."""
    # Without this the import asks a server for a newer price list.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    litellm = importlib.import_module("litellm")
    package = "litellm.llms.anthropic.pass_through"
    handler = importlib.import_module(f"{package}.adapters.handler").LiteLLMMessagesToCompletionTransformationHandler
    first = importlib.import_module(f"{package}.messages.utils").normalize_native_messages
    # As in the template's rows: without this, thinking goes to the model `responses/NAME`.
    plain = {"litellm_provider": "openai", "mode": "chat", "supports_reasoning": False}
    litellm.register_model(dict.fromkeys((CLAUDE, GPT, LLAMA), plain))
    return first, handler._prepare_completion_kwargs


@dataclass(frozen=True)
class Deployment:
    """A model, and what happens to a request on its way there."""

    model: str

    def litellm(self, asked: JSON) -> JSON:
        """The arguments that LiteLLM hands to the callback for an Anthropic request, in the callback's second call."""
        first, translate = adapter()
        request = copy.deepcopy({**asked, **for_translation(asked, no_note)})
        messages = first(request.pop("messages")) or [{"role": "user", "content": ""}]
        extra: JSON = {"custom_llm_provider": "openai"}
        extra |= {key: request.pop(key) for key in ("output_config", "service_tier") if key in request}
        translated: JSON = translate(model=self.model, messages=messages, extra_kwargs=extra, **request)[0]
        return translated

    def dialect(self, body: JSON) -> tuple[JSON, list[str]]:
        limits = Limits(MODELS[self.model.removeprefix("openai/")])
        return chat_request(body, family=family_of(self.model), limits=limits, keep=KEEP)[:2]


def wire(body: JSON) -> JSON:
    """The body as it is sent: without LiteLLM's own arguments and the provider's prefix, the length renamed."""
    out = {key: value for key, value in body.items() if key not in KEEP}
    out["model"] = out["model"].removeprefix("openai/")
    if "max_tokens" in out:
        out.setdefault("max_completion_tokens", out.pop("max_tokens"))
    return out


def labels(value: object) -> list[str]:
    return re.findall(r"#\d+#", json.dumps(value, ensure_ascii=False))


every_model = pytest.mark.parametrize(
    "deployment", [Deployment(CLAUDE), Deployment(GPT), Deployment(LLAMA)], ids=["claude", "gpt", "llama"]
)
# 25 examples are enough: of 250 small errors put into the code, 60 examples found four more, and the tests of single
# functions find those too.
anything = settings(deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


@every_model
@anything
@given(asked=requests())
def test_cortex_takes_whatever_claude_code_asks(deployment: Deployment, asked: JSON) -> None:
    body = wire(deployment.dialect(deployment.litellm(asked))[0])
    assert check_chat(body) is None
    assert check_chat(body, Options(whitespace_is_empty=True)) is None


@every_model
@settings(anything, max_examples=100)
@given(asked=mutated())
def test_nothing_of_the_right_shape_is_an_error_of_python(deployment: Deployment, asked: JSON) -> None:
    if not fault(asked):
        asked = {key: value for key, value in asked.items() if value is not None and key not in {"model", "metadata"}}
        deployment.dialect(deployment.litellm(asked))


@every_model
@anything
@given(asked=requests())
def test_no_text_no_call_and_no_result_is_lost(deployment: Deployment, asked: JSON) -> None:
    before = deployment.litellm(asked)
    after = deployment.dialect(before)[0]
    assert Counter(labels(after["messages"])) == Counter(labels(before["messages"]))
    for role in ("system", "user", "assistant"):
        said, heard = (
            [label for message in body["messages"] if message["role"] == role for label in labels(message["content"])]
            for body in (before, after)
        )
        assert [label for label in heard if label in said] == said


@every_model
@anything
@given(asked=requests())
def test_nothing_of_what_the_client_said_is_lost(deployment: Deployment, asked: JSON) -> None:
    out = deployment.dialect(deployment.litellm(asked))[0]["messages"]
    assert Counter(labels(out)) == Counter(labels([asked.get("system"), asked["messages"]]))
    results = [part for each in asked["messages"] for part in each["content"] if isinstance(part, dict)]
    assert json.dumps(out).count(TOOL_FAILED) == sum(part.get("is_error", False) for part in results)


@every_model
@anything
@given(asked=requests())
def test_calls_keep_their_order_and_their_results(deployment: Deployment, asked: JSON) -> None:
    before = deployment.litellm(asked)
    after = deployment.dialect(before)[0]
    if deployment.model == LLAMA:
        words = "\n".join(told(message) for message in after["messages"] if message["role"] == "assistant")
        assert re.findall(r'\[Called (\S+) with (\{"path": "#\d+#"\})\]', words) == all_calls(before)
        return
    assert all_calls(after) == all_calls(before)
    answered, answers = results_of(before["messages"]), results_of(after["messages"])
    assert {call: answers.get(call) for call in answered} == answered


def all_calls(body: JSON) -> list[tuple[str, str]]:
    functions = [call["function"] for message in body["messages"] for call in message.get("tool_calls") or ()]
    return [(function["name"], function["arguments"]) for function in functions]


def results_of(messages: Sequence[JSON]) -> dict[str, list[str]]:
    """The labels of each result that comes before the next turn, by the label of its call."""
    waiting: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for message in messages:
        if message["role"] == "assistant":
            waiting = {call["id"]: labels(call)[-1] for call in message.get("tool_calls") or ()}
        elif message["role"] == "tool" and (label := waiting.pop(message["tool_call_id"], None)):
            found[label] = labels(message["content"])
    return found


@every_model
@anything
@given(asked=requests())
def test_no_image_is_lost_up_to_twenty(deployment: Deployment, asked: JSON) -> None:
    before = deployment.litellm(asked)
    after = deployment.dialect(before)[0]
    images = [url for url in urls(before["messages"]) if url.startswith("data:image/")]
    if len(images) <= MAX_IMAGES:
        assert Counter(urls(after["messages"])) == Counter(images)


@every_model
@anything
@given(asked=requests())
def test_a_second_pass_changes_nothing(deployment: Deployment, asked: JSON) -> None:
    once = deployment.dialect(deployment.litellm(asked))[0]
    twice, notes = deployment.dialect(once)
    assert json.dumps(twice) == json.dumps(once)
    assert notes == []


@every_model
@anything
@given(asked=requests())
def test_the_input_is_never_changed(deployment: Deployment, asked: JSON) -> None:
    body = deployment.litellm(asked)
    before = json.dumps(body)
    deployment.dialect(body)
    assert json.dumps(body) == before


@every_model
@anything
@given(session=sessions())
def test_a_session_that_grows_keeps_its_prefix(deployment: Deployment, session: list[JSON]) -> None:
    outs = [deployment.dialect(deployment.litellm(asked))[0]["messages"] for asked in session]
    for this, following in itertools.pairwise(outs):
        if IMAGE_TOO_OLD in json.dumps(following):
            continue
        # The text after an unfinished answer is at the end of one request only.
        kept = this[:-1] if this[-1] == user(CONTINUE) else this
        assert all(position < len(kept) for position, _ in marked(this))
        # Signed thinking is sent in its own turn only (test_thinking.py).
        heads = (without_details(messages[: len(kept)]) for messages in (this, following))
        plain, longer = (json.dumps(without_marks(head)) for head in heads)
        assert longer == plain
