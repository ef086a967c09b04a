"""Requests of Chat Completions into what Cortex takes (answers: answers.py)."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Mapping
from typing import Any

from bundle.cortex.contents import (
    cache_marks,
    limit_images,
    marks_after_results,
    plain_contents,
    text_only_results,
    without_marks,
)
from bundle.cortex.errors import MAX_OUTPUT_TOKENS
from bundle.cortex.models import (
    EFFORT_BUDGETS,
    EFFORTS,
    JSON,
    MIN_BUDGET,
    Family,
    Limits,
    Note,
    is_adaptive,
    no_note,
    version_of,
)
from bundle.cortex.schemas import chosen_tool, cortex_tools
from bundle.cortex.turns import ends_with_user, one_call_per_turn, results_follow_calls, tools_in_words

# Everything that may leave for Cortex. `max_tokens` is among it because the patch in openai.py renames it after the
# callback; where the patch is missing, Cortex's own refusal says so better than a silent default of 4096 tokens.
WIRE_FIELDS = frozenset(
    {"model", "messages", "tools", "tool_choice", "max_tokens", "max_completion_tokens", "stream", "stream_options"}
    | {"temperature", "top_p", "stop", "response_format", "reasoning", "reasoning_effort"}
)
# Read here and turned into `reasoning` or `reasoning_effort`, so that dropping them is no news.
_EFFORT_FIELDS = frozenset({"thinking", "output_config", "reasoning", "reasoning_effort"})
MAX_STOPS = 4
BESIDE_REASONING = "temperature beside reasoning"  # among what was refused: there it is 1, and needed
_GPT_THAT_REASONS = re.compile(r"gpt-[5-9](?!.*-chat)|(?:^|[-/])o[1-9]")
_GPT_WITHOUT_EFFORT_BESIDE_TOOLS = re.compile(r"gpt-5[.-]6(?:-|$)")
NEWEST_SAMPLING = (4, 7)  # from here on Claude takes no temperature but 1


def chat_request(
    body: Mapping[str, Any],
    *,
    family: Family,
    limits: Limits,
    refused: Collection[str] = (),
    keep: Container[str] = frozenset(),
) -> tuple[JSON, list[str], list[str]]:
    """Rewrite a Chat Completions request so that Cortex takes it.

    `refused` names what this model has refused before (`cortex_refusals.py`): fields of the body, `cache_control ROLE`
    for marks, and BESIDE_REASONING. `keep` names top-level keys that are not for the wire and stay untouched: in a
    LiteLLM callback these are `litellm.types.utils.all_litellm_params` and `extra_headers`, `timeout`, `base_url`,
    `deployment_id`; everything else would leak into the body. Returns the new request, a short phrase for each thing
    dropped or changed, and which of `refused` it would have had.
    """
    notes: list[str] = []
    note = notes.append
    out = {key: value for key, value in body.items() if key in WIRE_FIELDS or key in keep}
    for key in body:
        if key not in out and key not in _EFFORT_FIELDS:
            note(f"field {key} dropped")

    messages = body["messages"]
    tools = cortex_tools(body.get("tools") or (), note, strict_arrays=family == "openai")
    messages = one_call_per_turn(messages, note) if family == "claude" else results_follow_calls(messages, note)
    if family == "other":
        if tools or any(message.get("tool_calls") for message in messages):
            messages = tools_in_words(messages)
            note("tools dropped: this model has none on Cortex")
        tools = []
    messages = text_only_results(plain_contents(messages, note))
    if family == "claude" and limits.cache_tool_results:
        messages = marks_after_results(messages)
    messages = limit_images(messages, note)
    messages = cache_marks(messages) if family == "claude" else without_marks(messages)
    left_out = [name for name in refused if name.startswith("cache_control ")]
    if left_out:
        unmarked = without_marks(messages, {name.removeprefix("cache_control ") for name in left_out})
        messages, left_out = unmarked, left_out if unmarked != messages else []
    no_prefill = tools or (family == "claude" and is_adaptive(str(body.get("model", ""))))
    out["messages"] = ends_with_user(messages, note) if no_prefill else messages

    out.pop("tools", None)
    choice = out.pop("tool_choice", None)
    if tools:
        out["tools"] = tools
        if choice is not None and chosen_tool(choice) in (None, *(tool["function"]["name"] for tool in tools)):
            out["tool_choice"] = choice

    for key in ("max_tokens", "max_completion_tokens", "stop", *_EFFORT_FIELDS):
        out.pop(key, None)
    out.update(max_tokens(body, limits, note))
    out.update(stop_sequences(body, note))
    # Asked of the messages and tools as they will leave: what was taken out above does not count.
    wanted = effort({**out, **{key: body[key] for key in _EFFORT_FIELDS if key in body}}, family=family)
    left_out += [key for key in refused if key in out or key in wanted]
    out.update((key, value) for key, value in wanted.items() if key not in refused)
    if family == "claude":
        out = sampling(out, note)
    # A temperature that is refused by itself is another matter than the 1 that thinking needs.
    names = {"temperature": BESIDE_REASONING} if "reasoning" in out else {}
    out = {key: value for key, value in out.items() if names.get(key, key) not in refused}
    if family == "claude" and (out.get("response_format") or {}).get("type") == "json_object":
        # "json object response format is not supported" on Claude (live).
        del out["response_format"]
        note("response_format json_object dropped")
    if out.get("stream") and "stream_options" not in refused:
        # Cortex sends no finish_reason; only the usage tells an answer that hit its limit.
        out["stream_options"] = {"include_usage": True}
    else:
        out.pop("stream_options", None)
    return out, notes, sorted(left_out)


def max_tokens(body: Mapping[str, Any], limits: Limits, note: Note = no_note) -> JSON:
    """docs/cortex.md#chat-output-limit: more than the model's limit is a 400, more than 131072 always, and 4096 is what
    a request gets that does not say. Returns the one field to send, by the name that the request has it under."""
    limit = min(limits.max_output_tokens or MAX_OUTPUT_TOKENS, MAX_OUTPUT_TOKENS)
    name = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    asked = body.get(name)
    if not asked:
        # Cortex would stop at 4096 in the middle of a file; only a known limit is safe to name.
        return {name: limit} if limits.max_output_tokens else {}
    if asked > limit:
        note(f"max_tokens lowered from {asked} to {limit}")
    return {name: min(asked, limit)}


def stop_sequences(body: Mapping[str, Any], note: Note = no_note) -> JSON:
    """OpenAI's API takes four stop sequences, Anthropic's takes more. Returns the field to send, or nothing."""
    asked = body.get("stop") or ()
    stops = [text for text in ([asked] if isinstance(asked, str) else asked) if text]
    if len(stops) > MAX_STOPS:
        note("stop sequences after the fourth dropped")
    return {"stop": stops[:MAX_STOPS]} if stops else {}


def effort(body: Mapping[str, Any], *, family: Family) -> JSON:
    """docs/cortex.md#chat-reasoning, docs/cortex.md#chat-gpt-effort: Claude honours `reasoning` with an effort (or a
    number of tokens, never both), GPT `reasoning_effort`, which `gpt-5.6-…` refuses beside tools. Returns the field, or
    nothing.

    Claude is asked to think at the start of a turn only: its signed thinking cannot travel back on this route, and
    Claude refuses to think on when the calls it made in this turn come without it
    (docs/cortex.md#chat-reasoning-midturn). A forced tool rules it out too, an answer that was begun for it, and an
    answer too short for the smallest budget.
    """
    wanted = _wanted_effort(body)
    model = str(body.get("model", ""))
    if wanted is None or family == "other":
        return {}
    if family == "claude":
        messages, choice = body["messages"], body.get("tool_choice")
        last: JSON = next((message for message in reversed(messages) if message["role"] == "assistant"), {})
        begun = last.get("tool_calls") or messages[-1]["role"] == "assistant"
        forced = choice == "required" or chosen_tool(choice)
        # How large a budget Cortex makes of an effort is not known; it must be smaller than the whole answer.
        room = body.get("max_completion_tokens") or body.get("max_tokens") or MAX_OUTPUT_TOKENS
        fitting = [name for name, budget in EFFORT_BUDGETS.items() if budget < room] or ["low"]
        wanted = wanted if wanted in fitting else fitting[-1]
        return {} if begun or forced or room <= MIN_BUDGET else {"reasoning": {"effort": wanted}}
    refused = body.get("tools") and _GPT_WITHOUT_EFFORT_BESIDE_TOOLS.search(model)
    return {"reasoning_effort": wanted} if _GPT_THAT_REASONS.search(model) and not refused else {}


def sampling(body: JSON, note: Note = no_note) -> JSON:
    """docs/cortex.md#chat-temperature: Claude thinks at temperature 1 only, and the service's own default is another,
    so it is said. Claude 4.7 and newer take no other temperature at all. Returns the body with what to send."""
    out = {key: value for key, value in body.items() if key not in {"temperature", "top_p", "top_k"}}
    if "reasoning" in body:
        return {**out, "temperature": 1}
    if version_of(str(body.get("model", ""))) < NEWEST_SAMPLING:
        return body
    if body.get("temperature") == 1:
        out["temperature"] = 1
    for key in body:
        if key not in out:
            note(f"{key} dropped: this model takes none")
    return out


def _wanted_effort(body: Mapping[str, Any]) -> str | None:
    thinking = body.get("thinking") or {}
    for named in (body.get("reasoning"), body.get("reasoning_effort"), body.get("output_config")):
        value = named.get("effort") if isinstance(named, dict) else named
        if isinstance(value, str):
            return EFFORTS.get(value)
    if thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens") or 0
        return next(name for name, most in EFFORT_BUDGETS.items() if budget <= most or name == "high")
    return "medium" if thinking.get("type") == "adaptive" else None
