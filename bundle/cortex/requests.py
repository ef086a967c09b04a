"""Rewrites requests of Chat Completions so that Cortex accepts them (answers: answers.py).

The problem: LiteLLM translates Claude Code's Anthropic requests to OpenAI's Chat Completions. Cortex's API is almost
the same, but each difference breaks a session, because Claude Code sends a refused history again with every later turn.
The mechanism: small functions on plain dicts. Each function implements one line of docs/cortex.md, which its docstring
names by anchor. `chat_request` calls them in order; most of them are in turns.py, contents.py and schemas.py.

Promises that hold for every request, also for those of messages.py:

- The input is never changed, and only what changes is copied: megabytes of images are passed by reference.
- No text, call or result is lost. What Cortex does not accept is replaced by a text that informs the model.
- Rewriting a rewritten request changes nothing.
- A message is written the same way on every turn, whatever comes after it. A string and a single text block come out
  alike. The reason: Cortex's prompt cache compares prefixes, so a session whose history is rewritten differently on
  each turn pays the full price. The one exception is images over the limit, see `contents.excess_images`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Mapping
from typing import Any

from bundle.cortex import contents, turns
from bundle.cortex.errors import MAX_CHARACTERS, MAX_OUTPUT_TOKENS
from bundle.cortex.marks import cache_marks, without_marks
from bundle.cortex.models import BUDGETS, EFFORTS, JSON, MIN_BUDGET, Family, Limits, Note, is_adaptive, version_of
from bundle.cortex.schemas import chosen_tool, cortex_tools
from bundle.cortex.thinking import DETAILS, of_this_turn, without_details

# All fields that are sent to Cortex. `max_tokens` is one of them because the patch in LiteLLM's openai.py renames it
# later; if the patch is missing, Cortex's refusal of that name is better than a silent limit of 4096 tokens.
WIRE_FIELDS = frozenset(
    {"model", "messages", "tools", "tool_choice", "max_tokens", "max_completion_tokens", "stream", "stream_options"}
    | {"temperature", "top_p", "stop", "response_format", "reasoning", "reasoning_effort"}
)
# `effort` turns these into `reasoning` or `reasoning_effort`, so nothing is noted when they are dropped.
_EFFORT_FIELDS = frozenset({"thinking", "output_config", "reasoning", "reasoning_effort"})
SAMPLING_FIELDS = frozenset({"temperature", "top_p", "top_k"})
MAX_STOPS = 4
BESIDE_REASONING = "temperature beside reasoning"  # in `refused`: the model refused `temperature: 1` with `reasoning`
_GPT_WITH_EFFORT = re.compile(r"gpt-[5-9](?!.*-chat)|(?:^|[-/])o[1-9]")
_GPT_WITHOUT_EFFORT_BESIDE_TOOLS = re.compile(r"gpt-5[.-]6(?:-|$)")
NEWEST_SAMPLING = (4, 7)  # from this version on, Claude accepts no temperature but 1


def chat_request(
    body: Mapping[str, Any], *, family: Family, limits: Limits, refused: Collection[str] = (), keep: Container[str] = ()
) -> tuple[JSON, list[str], list[str]]:
    """Rewrite a Chat Completions request so that Cortex accepts it.

    `refused` names what this model has refused before (refusals.py): fields of the body, `cache_control ROLE` for
    marks, BESIDE_REASONING, and DETAILS for thinking in the history. `keep` names top-level keys that are not sent and
    stay untouched: LiteLLM passes its own arguments next to the fields of the body. Every other unknown key is dropped.
    Returns the new request, a short phrase for each thing dropped or changed, and the names of `refused` that were left
    out of this request.
    """
    notes: list[str] = []
    note = notes.append
    out = {key: value for key, value in body.items() if key in WIRE_FIELDS or key in keep}
    for key in body:
        if key not in out and key not in _EFFORT_FIELDS:
            note(f"field {key} dropped")

    messages = body["messages"]
    tools = cortex_tools(body.get("tools") or (), note, openai=family == "openai")
    pair = turns.one_call_per_turn if family == "claude" else turns.results_follow_calls
    messages = pair(messages, note)
    if family == "other":
        if tools or any(message.get("tool_calls") for message in messages):
            messages = turns.tools_in_words(messages)
            note("tools dropped: this model has none on Cortex")
        tools = []
    messages = contents.text_only_results(contents.plain_contents(messages, note))
    messages = contents.limit_images(messages, note)
    messages, left_out = claude_only(messages, refused if family == "claude" else None)
    if tools or (family == "claude" and is_adaptive(str(body.get("model", "")))):
        messages = turns.ends_with_user(messages, note)
    out["messages"] = of_this_turn(messages)

    choice = body.get("tool_choice")
    for key in ("tools", "tool_choice", "max_tokens", "max_completion_tokens", "stop", *_EFFORT_FIELDS):
        out.pop(key, None)
    if tools:
        out["tools"] = tools
        if choice is not None and chosen_tool(choice) in (None, *(tool["function"]["name"] for tool in tools)):
            out["tool_choice"] = choice
    out |= {**max_tokens(body, limits, note), **stop_sequences(body, note)}
    # Computed from the final messages and tools, not from those of the client.
    reasoning = effort({**out, **{key: body[key] for key in _EFFORT_FIELDS if key in body}}, family=family)
    left_out += [key for key in refused if key in out or key in reasoning]
    out |= {key: value for key, value in reasoning.items() if key not in refused}
    if "reasoning" not in out:  # nobody knows whether thinking is then accepted (docs/cortex.md#chat-reasoning-alone)
        out["messages"] = without_details(out["messages"])
    if family == "claude":
        out = sampling(out, note)
    # With `reasoning`, the temperature is left out only for BESIDE_REASONING; without it, only for "temperature".
    refusal_names = {"temperature": BESIDE_REASONING} if "reasoning" in out else {}
    out = {key: value for key, value in out.items() if refusal_names.get(key, key) not in refused}
    if family == "claude" and (out.get("response_format") or {}).get("type") == "json_object":
        # "json object response format is not supported" on Claude (live).
        del out["response_format"]
        note("response_format json_object dropped")
    out.pop("stream_options", None)
    if out.get("stream") and "stream_options" not in refused:
        # Claude's answers have no finish_reason; only the usage shows that the limit was reached.
        out["stream_options"] = {"include_usage": True}
    return out, notes, sorted(left_out)


def claude_only(messages: list[JSON], refused: Collection[str] | None) -> tuple[list[JSON], list[str]]:
    """The messages with cache marks and signed thinking, less what this model has refused, and the names of what was
    left out. `refused` is None for a model that is not Claude: it ignores marks (docs/cortex.md#chat-cache-ignored).
    Its assistant's texts stay strings, because no source says that it takes a list there."""
    if refused is None:
        return without_marks(messages), []  # (thinking goes out with `reasoning` only, which is Claude's)
    marks = [name for name in refused if name.startswith("cache_control ")]
    out = cache_marks(messages, [name.removeprefix("cache_control ") for name in marks])
    left_out = marks if marks and out != cache_marks(messages) else []
    if DETAILS in refused and out != (plain := without_details(out)):
        return plain, [*left_out, DETAILS]
    return out, left_out


def max_tokens(body: Mapping[str, Any], limits: Limits, note: Note) -> JSON:
    """docs/cortex.md#chat-output-limit: more than the model's limit is a 400, and so is more than 131072 on any model.
    A request without a limit gets 4096. Returns the one field to send, under the name that the request uses for it."""
    limit = min(limits.max_output_tokens or MAX_OUTPUT_TOKENS, MAX_OUTPUT_TOKENS)
    name = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    asked = body.get(name)
    if not asked:
        # With Cortex's 4096 a file would end in the middle. Only a limit that is known is safe to send.
        return {name: limit} if limits.max_output_tokens else {}
    if asked > limit:
        note(f"max_tokens lowered from {asked} to {limit}")
    return {name: min(asked, limit)}


def stop_sequences(body: Mapping[str, Any], note: Note) -> JSON:
    """docs/cortex.md#chat-ranges: OpenAI's API accepts four stop sequences, Anthropic's API more. Returns the field to
    send, or nothing."""
    asked = body.get("stop") or ()
    stops = [text for text in ([asked] if isinstance(asked, str) else asked) if text]
    if len(stops) > MAX_STOPS:
        note("stop sequences after the fourth dropped")
    return {"stop": stops[:MAX_STOPS]} if stops else {}


def effort(body: Mapping[str, Any], *, family: Family) -> JSON:
    """docs/cortex.md#chat-reasoning, docs/cortex.md#chat-gpt-effort: Claude obeys `reasoning`, which holds an effort or
    a number of tokens, never both. GPT obeys `reasoning_effort`; `gpt-5.6-…` refuses it together with tools. Returns
    the field to send, or nothing.

    Claude is asked to think at the start of a turn. After calls it is asked only if the last of them goes back with its
    signed thinking; without it Claude refuses (docs/cortex.md#chat-reasoning-midturn). When parallel calls are split,
    only the first one keeps it. Claude is not asked to think either with a forced tool, with an answer that the client
    has started, or with a limit that is too small for the smallest budget.
    """
    name = _asked_effort(body)
    model = str(body.get("model", ""))[:MAX_CHARACTERS]  # a wildcard row takes the client's name
    if name is None or family == "other":
        return {}
    if family == "openai":
        refused = body.get("tools") and _GPT_WITHOUT_EFFORT_BESIDE_TOOLS.search(model)
        return {"reasoning_effort": name} if _GPT_WITH_EFFORT.search(model) and not refused else {}
    messages, choice = body["messages"], body.get("tool_choice")
    last: JSON = next((message for message in reversed(messages) if message["role"] == "assistant"), {})
    begun = (last.get("tool_calls") and DETAILS not in last) or messages[-1]["role"] == "assistant"
    forced = choice == "required" or chosen_tool(choice)
    # Which budget Cortex derives from an effort is not known. It must be smaller than the limit of the whole answer.
    room = body.get("max_completion_tokens") or body.get("max_tokens") or MAX_OUTPUT_TOKENS
    fitting = [each for each, budget in BUDGETS.items() if budget < room] or ["low"]
    name = name if name in fitting else fitting[-1]
    return {} if begun or forced or room <= MIN_BUDGET else {"reasoning": {"effort": name}}


def _asked_effort(body: Mapping[str, Any]) -> str | None:
    """The effort that the request asks for in one of several ways, as one of Cortex's three efforts."""
    for field in (body.get("reasoning"), body.get("reasoning_effort"), body.get("output_config")):
        value = field.get("effort") if isinstance(field, dict) else field
        if isinstance(value, str):
            return EFFORTS.get(value)
    thinking = body.get("thinking") or {}
    if thinking.get("type") == "enabled":
        asked = thinking.get("budget_tokens") or 0
        return next((name for name, budget in BUDGETS.items() if asked <= budget), "high")
    return "medium" if thinking.get("type") == "adaptive" else None


def sampling(body: JSON, note: Note) -> JSON:
    """docs/cortex.md#chat-temperature: Claude thinks at temperature 1 only. Cortex's default is another temperature, so
    1 is sent explicitly. Claude 4.7 and newer accept no other temperature at all. Returns the body with what to
    send."""
    out = {key: value for key, value in body.items() if key not in SAMPLING_FIELDS}
    if "reasoning" in body:
        return {**out, "temperature": 1}
    if version_of(str(body.get("model", ""))) < NEWEST_SAMPLING:
        return body
    if body.get("temperature") == 1:
        out["temperature"] = 1
    for key in body:
        if key not in out:
            note(f"{key} dropped: this model does not accept it")
    return out
