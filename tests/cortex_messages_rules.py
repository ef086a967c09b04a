"""What Cortex refuses on its Messages endpoint (docs/cortex.md#messages-strict).

`messages_rules` raises `RefusedError` at the first header or field of a body that is wrong. It refuses each field that
is not in the tables below, because Cortex refuses every field that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tests.cortex_shared_rules import (
    JSON,
    MAX_IMAGES,
    as_array,
    as_object,
    as_string,
    check_base64,
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
    claude_version,
    is_claude,
    known_model,
    parts,
    refuse,
    thinking_signature,
)

if TYPE_CHECKING:
    from tests.cortex_rules import Options

BETAS = frozenset(
    {
        "token-efficient-tools-2025-02-19",
        "interleaved-thinking-2025-05-14",
        "output-128k-2025-02-19",
        "context-management-2025-06-27",
        "effort-2025-11-24",
        "tool-search-tool-2025-10-19",
        "tool-examples-2025-10-29",
    }
)


TOP = frozenset(
    {"model", "messages", "max_tokens", "system", "metadata", "stop_sequences", "stream", "temperature"}
) | {*("top_k", "top_p", "tools", "tool_choice", "thinking", "output_config")}
_BLOCKS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"text", "cache_control"}),
    "image": frozenset({"source", "cache_control"}),
    "document": frozenset({"source", "title", "context", "cache_control"}),
    "tool_use": frozenset({"id", "name", "input", "cache_control"}),
    "tool_result": frozenset({"tool_use_id", "content", "is_error", "cache_control"}),
    "thinking": frozenset({"thinking", "signature"}),
    "redacted_thinking": frozenset({"data"}),
}
_ROLES: Mapping[str, frozenset[str]] = {
    "user": frozenset({"text", "image", "document", "tool_result"}),
    "assistant": frozenset({"text", "tool_use", "thinking", "redacted_thinking"}),
    "system": frozenset({"text"}),
    "tool_result": frozenset({"text", "image", "document"}),
}


def _only(value: JSON, known: frozenset[str], path: str) -> None:
    for key in value:
        if key not in known:
            refuse(f"{path}{key}: Extra inputs are not permitted")


def messages_rules(body: JSON, headers: Mapping[str, str], options: Options, size: int | None) -> None:
    check_size(body, size)
    if headers.get("anthropic-version") != "2023-06-01":
        refuse("anthropic-version: header is required")
    sent = {beta.strip() for beta in headers.get("anthropic-beta", "").split(",")} - {""}
    known = BETAS | ({"claude-code-20250219"} if options.claude_code_beta else set())
    if sent - (known | ({"dev-full-thinking-2025-05-14"} if options.full_thinking_beta else set())):
        refuse("invalid beta flag")
    extra = {"context_management"} if "context-management-2025-06-27" in sent else set()
    _only(body, TOP | extra, "")
    if "output_config" in body:
        config = {"format", "effort"} if "effort-2025-11-24" in sent else {"format"}
        _only(as_object(body["output_config"], "output_config"), frozenset(config), "output_config.")
    for name in ("model", "max_tokens", "messages"):
        if name not in body:
            refuse(f"{name}: Field required")
    model = known_model(body, options)
    if not is_claude(model):
        refuse(f"model {model} is not supported on this endpoint")
    check_tokens(body["max_tokens"], "max_tokens", options.limit(model))
    check_refused_fields(body, model, options, "{}: Extra inputs are not permitted")
    _thinking(body, model)
    _settings(body)
    check_newest_temperature(body, model, options)
    names = _tools(body, sent, options)
    if (choice := body.get("tool_choice")) is not None:
        kind = as_object(choice, "tool_choice").get("type")
        _only(choice, frozenset({"type", "name", "disable_parallel_tool_use"}), f"tool_choice.{kind}.")
        if kind not in {"auto", "any", "none", "tool"} or (kind == "tool" and choice.get("name") not in names):
            refuse("tool_choice: must be auto, any, none or one of the tools")
    if "system" in body:
        _content(body["system"], "system", "system", options)
    messages = as_array(body["messages"], "messages")
    if not messages:
        refuse("messages: at least one message is required")
    for index, item in enumerate(messages):
        message = as_object(item, f"messages.{index}")
        _only(message, frozenset({"role", "content"}), f"messages.{index}.")
        if message.get("role") not in {"user", "assistant"}:
            refuse(f"messages.{index}.role: Input should be 'user' or 'assistant'")
        _content(message.get("content"), message["role"], f"messages.{index}.content", options)
    if messages[0]["role"] != "user":
        refuse("messages: first message must use the user role")
    check_prefill(messages, model, options)
    _pairing(messages)
    ids = [block["id"] for block in _all_blocks(messages) if block["type"] == "tool_use"]
    for id_ in ids:
        check_tool_id(id_, options)
    if len(ids) != len(set(ids)):
        refuse("messages: `tool_use` ids must be unique")
    if sum(block["type"] == "image" for block in _all_blocks(messages)) > MAX_IMAGES:
        refuse(f"too many images: more than {MAX_IMAGES}")
    check_mark_limit(body)


def _settings(body: JSON) -> None:
    for name in ("temperature", "top_p"):
        if name in body:
            check_number(body[name], name, 0, 1)
    if not isinstance(body.get("stream", False), bool):
        refuse("stream: Input should be a valid boolean")
    if "metadata" in body:
        _only(as_object(body["metadata"], "metadata"), frozenset({"user_id"}), "metadata.")
    for text in as_array(body.get("stop_sequences", []), "stop_sequences"):
        if as_string(text, "stop_sequences").isspace():
            refuse("stop_sequences: each stop sequence must contain non-whitespace")


def _thinking(body: JSON, model: str) -> None:
    if "thinking" not in body:
        return
    thinking = as_object(body["thinking"], "thinking")
    family, version = claude_version(model)
    kind = thinking.get("type")
    if kind == "enabled":
        _only(thinking, frozenset({"type", "budget_tokens"}), "thinking.enabled.")
        if family == "opus" and version >= (4, 7):
            refuse(f"thinking.type: enabled is not supported for model {model}, use adaptive")
        budget = thinking.get("budget_tokens")
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1024:
            refuse("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        if budget >= body["max_tokens"]:
            refuse("`max_tokens` must be greater than `thinking.budget_tokens`")
    elif kind == "adaptive":
        _only(thinking, frozenset({"type"}), "thinking.adaptive.")
        if version < (4, 6):
            refuse(f"thinking.type: adaptive is not supported for model {model}")
    elif kind == "disabled":
        _only(thinking, frozenset({"type"}), "thinking.disabled.")
        return
    else:
        refuse("thinking.type: Input should be 'adaptive', 'enabled' or 'disabled'")
    if body.get("temperature", 1) != 1:
        refuse("`temperature` may only be set to 1 when thinking is enabled")


def _tools(body: JSON, betas: set[str], options: Options) -> set[str]:
    known = {"name", "description", "input_schema", "cache_control", "type"}
    known |= {"defer_loading"} if "tool-search-tool-2025-10-19" in betas else set()
    known |= {"input_examples"} if "tool-examples-2025-10-29" in betas else set()
    names: set[str] = set()
    for index, item in enumerate(as_array(body.get("tools", []), "tools")):
        tool = as_object(item, f"tools.{index}")
        if tool.get("type", "custom") != "custom":
            refuse(f"tools.{index}: Input tag '{tool['type']}' found using 'type' does not match 'custom'")
        _only(tool, frozenset(known), f"tools.{index}.custom.")
        name = as_string(tool.get("name"), f"tools.{index}.custom.name")
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", name):
            refuse(f"tools.{index}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if name in names:
            refuse("tools: Tool names must be unique.")
        names.add(name)
        check_schema(tool.get("input_schema"), f"tools.{index}.custom.input_schema")
        _cache_control(tool, f"tools.{index}.custom", options)
    return names


def _cache_control(block: JSON, path: str, options: Options) -> None:
    if block.get("cache_control") is None:
        return
    mark = as_object(block["cache_control"], f"{path}.cache_control")
    _only(mark, frozenset({"type", "ttl"} if options.one_hour_ttl else {"type"}), f"{path}.cache_control.ephemeral.")
    if mark.get("type") != "ephemeral" or mark.get("ttl", "5m") not in {"5m", "1h"}:
        refuse(f"{path}.cache_control.type: Input should be 'ephemeral'")


def _content(content: object, where: str, path: str, options: Options) -> None:
    if isinstance(content, str):
        check_text(content, path, options)
        return
    blocks = as_array(content, path)
    if not blocks and where != "tool_result":
        refuse(f"{path}: must not be empty")
    for index, item in enumerate(blocks):
        block = as_object(item, f"{path}.{index}")
        kind = block.get("type")
        if kind not in _ROLES[where] or (kind == "document" and not options.documents):
            refuse(f"{path}.{index}: Input tag '{kind}' found using 'type' does not match any of the expected tags")
        here = f"{path}.{index}.{kind}"
        _only(block, _BLOCKS[kind] | {"type"}, f"{here}.")
        _cache_control(block, here, options)
        if kind == "text":
            check_text(block.get("text"), f"{here}.text", options)
        elif kind == "image":
            source = as_object(block.get("source"), f"{here}.source")
            if source.get("type") != "base64":
                refuse(f"{here}.source: only base64 images are supported")
            check_image(source.get("media_type"), source.get("data"), f"{here}.source")
        elif kind == "document":
            _pdf(as_object(block.get("source"), f"{here}.source"), f"{here}.source")
        elif kind == "tool_use":
            as_string(block.get("id"), f"{here}.id")
            as_string(block.get("name"), f"{here}.name")
            as_object(block.get("input"), f"{here}.input")
        elif kind == "tool_result":
            as_string(block.get("tool_use_id"), f"{here}.tool_use_id")
            if block.get("content") not in (None, "") or not options.empty_tool_result:
                _content(block.get("content"), "tool_result", f"{here}.content", options)
            only_text = all(part["type"] == "text" for part in parts(block))
            if block.get("is_error") and not (only_text or options.images_in_failed_results):
                refuse(f'{path}.{index}: all content must be type "text" if `is_error` is true')
        elif kind == "thinking" and block.get("signature") != thinking_signature(str(block.get("thinking"))):
            refuse(f"{path}.{index}: Invalid `signature` in `thinking` block")


def _pdf(source: JSON, path: str) -> None:
    """Only a PDF as base64: what else a `document` may hold, the bundle never sends as a document."""
    _only(source, frozenset({"type", "media_type", "data"}), f"{path}.")
    if source.get("type") != "base64" or source.get("media_type") != "application/pdf":
        refuse(f"{path}: only base64 PDFs are supported")
    check_base64(source.get("data"), f"{path}.base64.data")


def _all_blocks(messages: Sequence[JSON]) -> Iterator[JSON]:
    for message in messages:
        for block in parts(message):
            yield block
            if block["type"] == "tool_result":
                yield from parts(block)


def _pairing(messages: Sequence[JSON]) -> None:
    """The next message starts with one result for each `tool_use`, and there are no other results."""
    open_calls: set[str] = set()
    for index, message in enumerate(messages):
        blocks = parts(message)
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        if any(block["type"] != "tool_result" for block in blocks[: len(results)]):
            refuse(f"messages.{index}: `tool_result` blocks must come first in a user turn")
        if missing := open_calls - set(results):
            refuse(
                f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(sorted(missing))}"
            )
        if len(results) != len(set(results)) or set(results) - open_calls:
            refuse(f"messages.{index}: unexpected `tool_use_id` found in `tool_result` blocks")
        open_calls = {block["id"] for block in blocks if block["type"] == "tool_use"}
    if open_calls:
        refuse("messages: `tool_use` ids were found without `tool_result` blocks immediately after")
