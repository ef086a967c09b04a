"""What Cortex refuses on Chat Completions (docs/cortex.md).

`chat_rules` raises `RefusedError` at the first field of a body that is wrong. Claude takes one tool call per turn, GPT
takes any number, and the other models take no tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.cortex_functions import MAX_FUNCTIONS, check_function
from tests.cortex_shared_rules import (
    JSON,
    MAX_IMAGES,
    as_array,
    as_object,
    as_string,
    check_image,
    check_mark_limit,
    check_newest_temperature,
    check_number,
    check_prefill,
    check_refused_fields,
    check_schema,
    check_size,
    check_text,
    check_tokens,
    check_tool_id,
    count_marks,
    is_claude,
    is_openai,
    known_model,
    parts,
    refuse,
    thinking_signature,
)

if TYPE_CHECKING:
    from tests.cortex_rules import Options

TOOL_PAIRING = (
    "invalid request parameters: Each 'toolUse' block must be accompanied with a matching 'toolResult' block."
)
FINAL_ASSISTANT = (
    "invalid request parameters: Requests cannot contain `assistant` role in the final position when `tools` are used."
)
THINKING_TEMPERATURE = "invalid request parameters: `temperature` may only be set to 1 when thinking is enabled."
THINKING_FIRST = (
    "invalid request parameters: Expected `thinking` or `redacted_thinking`, but found `tool_use`. When `thinking` is "
    "enabled, a final `assistant` message must start with a thinking block."
)
THINKING_ALONE = "invalid request parameters: `thinking` blocks are accepted only when thinking is enabled."
THINKING_FORCED = "invalid request parameters: Thinking may not be enabled when tool_choice forces tool use."


def chat_rules(body: JSON, options: Options, size: int | None) -> None:
    check_size(body, size)
    if "max_tokens" in body:
        refuse("max_tokens is deprecated in favor of max_completion_tokens")
    model = known_model(body, options)
    for name in ("service_tier", "store"):
        if name in body:
            refuse(f"{name} is not supported")
    if body.get("max_completion_tokens") is not None:
        check_tokens(body["max_completion_tokens"], "max_completion_tokens", options.limit(model))
    check_refused_fields(body, model, options, "{} is not supported for this model")
    _chat_settings(body, model, options)
    _chat_tools(body, model, options)
    messages = as_array(body.get("messages"), "messages")
    if not messages:
        refuse("messages: must not be empty")
    for index, message in enumerate(messages):
        _chat_message(as_object(message, f"messages.{index}"), f"messages.{index}", options)
    if body.get("tools") and messages[-1]["role"] == "assistant":
        refuse(FINAL_ASSISTANT)
    check_prefill(messages, model, options)
    _chat_pairing(messages, one_at_a_time=is_claude(model))
    if is_claude(model):
        _chat_ids(messages, options)
        _chat_thinking(body, messages, options)
        _chat_marks(messages, options)
    images = sum(part.get("type") == "image_url" for message in messages for part in parts(message))
    if images > MAX_IMAGES:
        refuse(f"too many images: {images} > {MAX_IMAGES}")
    check_mark_limit(body)


def _chat_settings(body: JSON, model: str, options: Options) -> None:
    for name in ("temperature", "top_p"):
        if body.get(name) is not None:
            check_number(body[name], name, 0, 2 if name == "temperature" and not is_claude(model) else 1)
    if not isinstance(body.get("stream", False), bool):
        refuse("stream: must be a boolean")
    if body.get("stream_options") is not None:
        as_object(body["stream_options"], "stream_options")
        if not body.get("stream"):
            refuse("stream_options: only allowed when stream is enabled")
    if (stop := body.get("stop")) is not None:
        if is_claude(model) and options.claude_stop == "refused":
            refuse("stop is not supported")
        stops = [stop] if isinstance(stop, str) else as_array(stop, "stop")
        if len(stops) > 4:
            refuse("stop: at most 4 sequences")
        for text in stops:
            as_string(text, "stop")
    if (wanted := body.get("response_format")) is not None:
        kind = as_object(wanted, "response_format").get("type")
        if kind == "json_object" and is_claude(model):
            refuse("json object response format is not supported")
        if kind not in {"text", "json_object", "json_schema"}:
            refuse("response_format.type: must be text, json_object or json_schema")
    if (reasoning := body.get("reasoning")) is not None:
        reasoning = as_object(reasoning, "reasoning")
        if is_claude(model) and len(reasoning.keys() & {"effort", "max_tokens"}) != 1:
            refuse("reasoning: takes either effort or max_tokens")
        if is_claude(model) and reasoning.get("effort", "low") not in {"low", "medium", "high"}:
            refuse("reasoning.effort: must be low, medium or high")
        if is_claude(model) and body.get("temperature", 0 if options.thinking_needs_temperature else 1) != 1:
            refuse(THINKING_TEMPERATURE)
    elif is_claude(model):
        check_newest_temperature(body, model, options)
    gpt_56 = re.match(r"openai-(1p-)?gpt-5[.-]6-", model)
    if gpt_56 and body.get("tools") and body.get("reasoning_effort") is not None:
        refuse("reasoning_effort is not supported together with tools")


def _chat_ids(messages: Sequence[JSON], options: Options) -> None:
    seen: set[str] = set()
    for message in messages:
        for call in message.get("tool_calls") or ():
            check_tool_id(call["id"], options)
            if call["id"] in seen:
                refuse("invalid request parameters: `tool_use` ids must be unique")
            seen.add(call["id"])


def _chat_thinking(body: JSON, messages: Sequence[JSON], options: Options) -> None:
    """Thinking in the history is as it was signed. A turn goes on thinking only if it thought before its calls."""
    for index, message in enumerate(messages):
        for detail in message.get("reasoning_details") or ():
            given = as_object(detail, f"messages.{index}.reasoning_details")
            if given.get("signature") not in (None, thinking_signature(str(given.get("text")))):
                refuse(f"invalid request parameters: messages.{index}: Invalid `signature` in `thinking` block")
    if body.get("reasoning") is None:
        if any(message.get("reasoning_details") for message in messages) and not options.details_alone:
            refuse(THINKING_ALONE)
        return
    choice = body.get("tool_choice")
    if choice == "required" or isinstance(choice, dict):
        refuse(THINKING_FORCED)
    last: JSON = next((message for message in reversed(messages) if message["role"] == "assistant"), {})
    signed = any(detail.get("signature") for detail in last.get("reasoning_details") or ())
    if last.get("tool_calls") and not signed and not options.thinking_mid_turn:
        refuse(THINKING_FIRST)


def _chat_marks(messages: Sequence[JSON], options: Options) -> None:
    for index, message in enumerate(messages):
        if message["role"] in options.refused_marks and count_marks(message):
            refuse(f"messages.{index}.content.0.cache_control: Extra inputs are not permitted")


def _chat_tools(body: JSON, model: str, options: Options) -> None:
    if body.get("tools") is None:
        if body.get("tool_choice") is not None:
            refuse("tool_choice: only allowed when tools are specified")
        return
    if not (is_claude(model) or is_openai(model)):
        refuse(f"tools are not supported for model {model}")
    tools = as_array(body["tools"], "tools")
    if not tools:
        refuse("tools: must not be empty")
    names: set[str] = set()
    for index, item in enumerate(tools):
        tool = as_object(item, f"tools.{index}")
        if tool.get("type") != "function":
            refuse(f"tools.{index}.type: only function is supported")
        function = as_object(tool.get("function"), f"tools.{index}.function")
        name = as_string(function.get("name"), f"tools.{index}.function.name")
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
            refuse(f"tools.{index}.function.name: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if name in names:
            refuse(f"tools: Tool names must be unique: {name}")
        names.add(name)
        if not isinstance(function.get("description", ""), str):
            refuse(f"tools.{index}.function.description: must be a string")
        if "parameters" in function and is_openai(model):
            check_function(name, as_object(function["parameters"], f"tools.{index}.function.parameters"), options)
        elif "parameters" in function:
            check_schema(function["parameters"], f"tools.{index}.function.parameters")
    if is_openai(model) and len(tools) > MAX_FUNCTIONS:
        refuse(
            f"Invalid 'tools': array too long. Expected an array with maximum length {MAX_FUNCTIONS}, but got an array "
            f"with length {len(tools)} instead."
        )
    if (choice := body.get("tool_choice")) is None or choice in ("none", "auto", "required"):
        return
    chosen = as_object(choice, "tool_choice").get("function")
    if choice.get("type") != "function" or as_object(chosen, "tool_choice.function").get("name") not in names:
        refuse("tool_choice: must be none, auto, required or one of the tools")


def _chat_message(message: JSON, path: str, options: Options) -> None:
    role = message.get("role")
    if role not in {"system", "developer", "user", "assistant", "tool"}:
        refuse(f"{path}.role: unknown role {role}")
    calls = message.get("tool_calls")
    if role != "assistant" and calls:
        refuse(f"{path}.tool_calls: only on an assistant message")
    if calls is not None:
        _chat_calls(calls, f"{path}.tool_calls")
    if role == "tool":
        as_string(message.get("tool_call_id"), f"{path}.tool_call_id")
    content = message.get("content")
    if role == "assistant" and calls and content in (None, ""):
        return
    if role == "tool" and content == "" and options.empty_tool_result:
        return
    if not isinstance(content, list):
        check_text(content, f"{path}.content", options)
        return
    if not content:
        refuse(f"{path}.content: must not be empty")
    for index, item in enumerate(content):
        part = as_object(item, f"{path}.content.{index}")
        here = f"{path}.content.{index}"
        if part.get("type") == "text":
            check_text(part.get("text"), f"{here}.text", options)
        elif part.get("type") == "image_url" and role == "user":
            url = as_object(part.get("image_url"), f"{here}.image_url").get("url")
            # Match only the short head: the expression must never run over megabytes of data.
            head, _, data = as_string(url, f"{here}.image_url.url").partition(",")
            if not (match := re.fullmatch(r"data:([\w.+/-]+);base64", head)):
                refuse(f"{here}.image_url.url: only base64 data URLs are supported")
            check_image(match.group(1), data, f"{here}.image_url.url")
        else:
            refuse(f"{here}.type: {part.get('type')} is not supported for role {role}")
        if "cache_control" in part and as_object(part["cache_control"], here).get("type") != "ephemeral":
            refuse(f"{here}.cache_control.type: must be ephemeral")


def _chat_calls(calls: object, path: str) -> None:
    ids = set()
    for index, item in enumerate(as_array(calls, path)):
        call = as_object(item, f"{path}.{index}")
        if call.get("type") != "function":
            refuse(f"{path}.{index}.type: must be function")
        ids.add(as_string(call.get("id"), f"{path}.{index}.id"))
        function = as_object(call.get("function"), f"{path}.{index}.function")
        as_string(function.get("name"), f"{path}.{index}.function.name")
        arguments = function.get("arguments")
        try:
            # Cortex was seen to send "" for a call without parameters, so it accepts "" in the history.
            parsed = json.loads(arguments or "{}") if isinstance(arguments, str) else None
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            refuse(f"{path}.{index}.function.arguments: must be a JSON object in a string")
    if len(ids) != len(as_array(calls, path)):
        refuse(f"{path}: ids must be unique")


def _chat_pairing(messages: Sequence[JSON], *, one_at_a_time: bool) -> None:
    """Exactly its results follow each group of calls at once. `one_at_a_time`: a group is one call."""
    open_calls: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                refuse(TOOL_PAIRING)
            open_calls.discard(message["tool_call_id"])
            continue
        calls = message.get("tool_calls") or []
        if open_calls or (one_at_a_time and len(calls) > 1):
            refuse(TOOL_PAIRING)
        open_calls = {call["id"] for call in calls}
    if open_calls:
        refuse(TOOL_PAIRING)
