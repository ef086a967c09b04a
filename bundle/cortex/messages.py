"""Rewrites requests of Anthropic's Messages API so that Cortex accepts them (answers: `answers.MessagesAnswer`).

The problem: Claude Code uses Anthropic's API as of its own release date. Cortex serves the same API, but each field,
block or beta that Cortex does not know is a 400, and Claude Code sends a refused history again with every later turn.
The mechanism: lists of what is allowed, and small functions on plain dicts. Each function implements one line of
docs/cortex.md, which its docstring names by anchor. `messages_request` calls them in order. The promises are those of
requests.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from bundle.cortex.blocks import blocks_of, is_blank, mark_of, text_block
from bundle.cortex.contents import EMPTY, IMAGE_TOO_OLD, NO_OUTPUT, PDF_TOO_OLD, excess_images
from bundle.cortex.documents import TOOL_FAILED, media_type, plain_parts
from bundle.cortex.marks import MAX_MARKS, by_importance
from bundle.cortex.models import BUDGETS, EFFORTS, JSON, MARK, MIN_BUDGET, Limits, Note, is_adaptive
from bundle.cortex.refusals import Refusals, without
from bundle.cortex.requests import SAMPLING_FIELDS, max_tokens, sampling
from bundle.cortex.schemas import object_schema
from bundle.cortex.turns import LOST_RESULT, NO_RESULT, ends_with_user, plain_id

# All fields that are sent to Cortex, level by level. `cache_control` is added separately.
WIRE_FIELDS = frozenset(
    {"model", "messages", "system", "tools", "tool_choice", "max_tokens", "stream", "stop_sequences"}
    | {"temperature", "top_k", "top_p", "thinking", "output_config"}
)
TOOL_FIELDS = ("name", "description", "input_schema")
CHOICE_FIELDS = ("name", "disable_parallel_tool_use")
BLOCK_FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "image": ("source",),
    "document": ("source", "title", "context"),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id", "content", "is_error"),
    "thinking": ("thinking", "signature"),
    "redacted_thinking": ("data",),
}
# The only betas that are sent, and only with a body that needs them: each further beta could be refused.
EFFORT_BETA = "effort-2025-11-24"
THINKING_BETA = "interleaved-thinking-2025-05-14"
_REMINDER = "<system-reminder>\n{}\n</system-reminder>"  # how Claude Code writes a system text inside a user message


def messages_request(
    body: Mapping[str, Any],
    *,
    limits: Limits,
    betas: Collection[str] = (),
    refusals: Refusals | None = None,
    keep: Container[str] = (),
) -> tuple[JSON, list[str], list[str]]:
    """Rewrite a Messages request so that Cortex accepts it; `betas` are those of the client.

    `keep` names top-level keys that are not sent and stay untouched. Returns the new request, the betas to send with
    it, and a short phrase for each thing dropped or changed.
    """
    notes: list[str] = []
    note = notes.append
    refusals = refusals or Refusals()
    out = {key: value for key, value in body.items() if key in WIRE_FIELDS}
    for key in body:
        if key not in WIRE_FIELDS and key not in keep and key not in {"cache_control", "output_format"}:
            note(f"field {key} dropped")

    tools = plain_tools(body.get("tools") or (), note)
    system = plain_system(body.get("system"), note)
    pdfs = str(body["model"]).rpartition("/")[2] not in refusals.documents
    messages = results_after_calls(plain_messages(body["messages"], note, pdfs=pdfs), note)
    if tools or is_adaptive(body["model"]):  # docs/cortex.md#chat-final-assistant, docs/cortex.md#chat-prefill
        messages = ends_with_user(messages, note)
    limit_images(messages, note)
    cache_marks(tools, system, messages, whole_prompt=bool(body.get("cache_control")))
    choice = plain_choice(body.get("tool_choice"), tools, note)
    out |= {"messages": messages, "system": system, "tools": tools, "tool_choice": choice}
    # docs/cortex.md#messages-stops: a blank stop sequence is a 400.
    out["stop_sequences"] = [text for text in body.get("stop_sequences") or () if not is_blank(str(text))]
    out |= max_tokens(body, limits, note)
    out["thinking"] = thinking(out, note)
    if (out["thinking"] or {}).get("type") in {"adaptive", "enabled"}:
        # docs/cortex.md#messages-thinking-budget: a model that thinks accepts only the default values of these fields.
        out = {key: value for key, value in out.items() if key not in SAMPLING_FIELDS}
    else:
        out = sampling(out, note)
    effort = effort_config(body)
    betas_to_send = [beta for beta in useful_betas(out, betas, effort, note) if beta not in refusals.betas]
    effort = effort if EFFORT_BETA in betas_to_send else {}
    out["output_config"] = {**effort, **output_format(body, note)}
    for path in refusals.fields.get(str(body["model"]).rpartition("/")[2], ()):
        out = without(out, path)
    out = {key: value for key, value in out.items() if value not in (None, [], {})}
    return {**{key: value for key, value in body.items() if key in keep}, **out}, betas_to_send, notes


def plain_messages(messages: Sequence[JSON], note: Note, *, pdfs: bool = False) -> list[JSON]:
    """docs/cortex.md#messages-strict: an unknown block or field is a 400, and so is an empty text. Roles alternate.
    With `pdfs`, a PDF stays a `document` block (docs/cortex.md#messages-document).

    Newer releases of Claude Code send `role: "system"` inside `messages`. Such a message becomes a user message with a
    <system-reminder>, which is what older releases send.
    """
    out: list[JSON] = []
    for message in messages:
        role, parts = message.get("role"), blocks_of(message.get("content"))
        if role == "system":
            role = "user"
            texts = plain_parts(parts, "system", note)
            parts = [{**part, "text": _REMINDER.format(part["text"])} for part in texts if part.get("text")]
        blocks = plain_blocks(parts, str(role), note, pdfs=pdfs)
        if blocks and out and out[-1]["role"] == role:
            out[-1]["content"] += blocks
        elif blocks:
            out.append({"role": role, "content": blocks})
    if not out or out[0]["role"] != "user":
        out.insert(0, {"role": "user", "content": [text_block(EMPTY)]})
    return out


def plain_system(system: object, note: Note) -> list[JSON]:
    """The system prompt as blocks, without the line in which Claude Code tells Anthropic its version. That line differs
    in each session, so two sessions could never share what is cached after the line."""
    blocks = plain_blocks(blocks_of(system), "system", note)
    return [block for block in blocks if not block["text"].startswith("x-anthropic-billing-header:")]


def plain_blocks(parts: Sequence[JSON], place: str, note: Note, *, pdfs: bool = False) -> list[JSON]:
    """The blocks as Cortex accepts them in this place (documents.TAKEN)."""
    plain = (_plain_block(part, note, pdfs=pdfs) for part in plain_parts(parts, place, note, pdfs=pdfs))
    return [block for block in plain if block is not None]


def _plain_block(part: JSON, note: Note, *, pdfs: bool) -> JSON | None:
    kind = part["type"]
    out = _only(part, BLOCK_FIELDS[kind], note, kind)
    if kind == "text" and is_blank(str(part.get("text") or "")):
        return None
    if kind == "thinking" and not part.get("signature"):
        note("thinking without a signature dropped")  # the API refuses it
        return None
    mark = _mark(part, note) if "thinking" not in kind else {}  # (nor `redacted_thinking`)
    if kind in {"image", "document"}:
        out["source"] = {"type": "base64", "media_type": media_type(part), "data": part["source"]["data"]}
    elif kind == "tool_use" and not isinstance(part.get("input"), dict):
        out["input"] = {"input": part["input"]} if part.get("input") else {}
    elif kind == "tool_result":
        content = plain_blocks(blocks_of(part.get("content")), kind, note, pdfs=pdfs)
        if part.get("is_error") and any(block["type"] != "text" for block in content):
            # docs/cortex.md#messages-failed-results: nobody knows whether a failed result may hold an image.
            del out["is_error"]
            content.insert(0, text_block(TOOL_FAILED))
        out["content"] = content or [text_block(NO_OUTPUT)]
        for block in out["content"]:  # a mark inside the result moves to the result itself
            mark = {"cache_control": block.pop("cache_control")} if "cache_control" in block else mark
    return {**out, **mark}


def _only(value: JSON, fields: Container[str], note: Note, what: str) -> JSON:
    for key in value:
        if key not in fields and key not in {"type", "cache_control"}:
            note(f"{what} field {key} dropped")
    return {key: item for key, item in value.items() if key in fields or key == "type"}


def _mark(part: JSON, note: Note) -> JSON:
    """The client's mark without a `ttl`: nobody knows whether Cortex accepts one (docs/cortex.md#messages-ttl)."""
    if isinstance(part.get("cache_control"), dict):
        _only(part["cache_control"], (), note, "cache_control")
    return mark_of(part)


def results_after_calls(messages: Sequence[JSON], note: Note) -> list[JSON]:
    """docs/cortex.md#messages-results, docs/cortex.md#messages-results-first: each result is in the user turn right
    after its call, before all other blocks of that turn.

    A missing result is filled in. A result without a call, or a second result for the same call, becomes text. The
    results keep the client's order, because the client marks the last result for the cache. Calls and their results get
    ids that are unique and that Cortex accepts (docs/cortex.md#messages-tool-ids).
    """
    out: list[JSON] = []
    seen: dict[str, int] = {}
    unanswered: dict[str, deque[str]] = {}  # for each id of the client, the new ids of its calls without a result
    for message in (*messages, {"role": "", "content": []}):
        results: list[JSON] = []
        others: list[JSON] = []
        for block in message["content"]:
            if block["type"] != "tool_result":
                others.append(block)
            elif ids := unanswered.get(str(block.get("tool_use_id"))):
                results.append({**block, "tool_use_id": ids.popleft()})
            else:
                note("tool result without its call turned into text")
                failed = [text_block(TOOL_FAILED)] if block.get("is_error") else []
                others += [text_block(LOST_RESULT), *failed, *block["content"]]
        for identity in chain.from_iterable(unanswered.values()):
            note("missing tool result filled in")
            results.append({"type": "tool_result", "tool_use_id": identity, "content": [text_block(NO_RESULT)]})
        if results and message["role"] != "user":
            out.append({"role": "user", "content": results})
            results = []
        unanswered = {}
        for place, block in enumerate(others):
            if block["type"] == "tool_use":
                identity = plain_id(block.get("id"), seen)
                unanswered.setdefault(str(block.get("id")), deque()).append(identity)
                others[place] = {**block, "id": identity}
        if results or others:
            out.append({"role": message["role"], "content": [*results, *others]})
    return out


def limit_images(messages: Sequence[JSON], note: Note) -> None:
    """Replace the oldest images and PDFs by words where there are too many (`excess_images`), also inside tool results.
    A PDF counts as an image. Changes the blocks in place: they are already copies of the client's blocks."""
    blocks = chain.from_iterable(message["content"] for message in messages)
    inner = chain.from_iterable((block, *block.get("content", ())) for block in blocks)
    files = [block for block in inner if block["type"] in {"image", "document"}]
    for file in files[: excess_images([len(file["source"]["data"]) for file in files], note)]:
        words, mark = IMAGE_TOO_OLD if file["type"] == "image" else PDF_TOO_OLD, mark_of(file)
        file.clear()
        file.update({**text_block(words), **mark})


def cache_marks(tools: list[JSON], system: list[JSON], messages: list[JSON], *, whole_prompt: bool) -> None:
    """docs/cortex.md#messages-cache: more than 4 marks are a 400, and so is a mark on the request itself. A client that
    marks the request means the last block (`whole_prompt`). Changes the blocks in place."""
    blocks = list(chain.from_iterable(message["content"] for message in messages))
    if whole_prompt and "thinking" not in blocks[-1]["type"]:
        blocks[-1]["cache_control"] = MARK
    shared = [block for block in (*tools, *system) if "cache_control" in block]
    others = [block for block in blocks if "cache_control" in block]
    for block in by_importance(shared, others)[MAX_MARKS:]:
        del block["cache_control"]


def plain_tools(tools: Iterable[JSON], note: Note) -> list[JSON]:
    """docs/cortex.md#messages-strict: an unknown field of a tool (`eager_input_streaming`) is a 400. Tools that
    Anthropic's servers would run (`web_search_…`) are dropped, because Cortex has none. `$schema` is removed too, as
    LiteLLM's provider for Snowflake does."""
    out: dict[str, JSON] = {}
    for tool in tools:
        name = str(tool.get("name") or tool.get("type"))
        if (tool.get("type") or "custom") != "custom" or name in out:
            note(f"tool {name} dropped")
            continue
        plain = _only(tool, TOOL_FIELDS, note, "tool")
        plain.pop("type", None)
        schema = object_schema(tool.get("input_schema"))
        schema = {key: value for key, value in schema.items() if key != "$schema"}
        out[name] = {**plain, "input_schema": schema, **_mark(tool, note)}
    return list(out.values())


def plain_choice(choice: object, tools: Sequence[JSON], note: Note) -> JSON | None:
    """The tool choice, or None if there are no tools or the tool that it names is missing."""
    names = [tool["name"] for tool in tools]
    if not isinstance(choice, dict) or not names or choice.get("name") not in (None, *names):
        return None
    return _only(choice, CHOICE_FIELDS, note, "tool_choice")


def thinking(body: Mapping[str, Any], note: Note) -> JSON | None:
    """docs/cortex.md#messages-thinking: the model's version decides whether `adaptive` is sent, or `enabled` with
    a budget; no other field is sent. `body` is the request to send, still with the client's `thinking` and
    `output_config`.

    Anthropic's rules: a budget is at least 1024 and below `max_tokens`. There is no thinking together with a forced
    tool or with an answer that the client has begun, and no budget in a turn whose calls were made without thinking.
    """
    asked = body.get("thinking")
    if not isinstance(asked, dict) or not asked.get("type"):
        return None
    plain = _only(asked, ("budget_tokens",), note, "thinking")
    if asked["type"] == "disabled":
        return {"type": "disabled"}
    if (body.get("tool_choice") or {}).get("type") in {"any", "tool"} or body["messages"][-1]["role"] == "assistant":
        return None
    if is_adaptive(body["model"]):
        return {"type": "adaptive"}
    last: JSON = next((m for m in reversed(body["messages"]) if m["role"] == "assistant"), {"content": []})
    kinds = [block["type"] for block in last["content"]]
    if "tool_use" in kinds and "thinking" not in kinds[0]:
        note("no thinking for the rest of a turn that started without it")
        return None
    most = int(body.get("max_tokens") or 0) - 1
    # A budget that the client has not chosen leaves half of the output for the answer.
    budget = plain.get("budget_tokens") or min(BUDGETS[_asked_effort(body) or "medium"], most // 2)
    budget = min(max(int(budget), MIN_BUDGET), most)
    return {"type": "enabled", "budget_tokens": budget} if budget >= MIN_BUDGET else None


def effort_config(body: Mapping[str, Any]) -> JSON:
    """docs/cortex.md#messages-betas: the effort as a part of `output_config`, or nothing. It needs the beta
    `effort-2025-11-24`. Anthropic supports it for models that think adaptively and for Opus 4.5.

    "high" is Anthropic's default, so it is not sent: each further field could be refused.
    """
    effort = _asked_effort(body)
    supported = is_adaptive(body["model"]) or "opus-4-5" in body["model"]
    return {"effort": effort} if supported and effort in {"low", "medium"} else {}


def output_format(body: Mapping[str, Any], note: Note) -> JSON:
    """docs/cortex.md#messages-output-format: the JSON schema of the answer, as a part of `output_config`. Older clients
    of Anthropic's API send it as `output_format` at the top of the request."""
    config = body.get("output_config")
    asked = (config.get("format") if isinstance(config, dict) else None) or body.get("output_format")
    if not isinstance(asked, dict) or asked.get("type") != "json_schema":
        return {}
    return {"format": _only(asked, ("schema",), note, "output_config.format")}


def useful_betas(body: JSON, betas: Collection[str], effort: JSON, note: Note) -> list[str]:
    """docs/cortex.md#messages-beta-unknown: an unknown `anthropic-beta` is a 400. Returns the betas that this body
    needs: the client's beta for thinking, and the beta for an effort."""
    for beta in sorted(set(betas) - {THINKING_BETA, EFFORT_BETA}):
        note(f"beta {beta} dropped")
    has_budget = (body["thinking"] or {}).get("type") == "enabled"
    needed = [EFFORT_BETA] if effort else []
    return [THINKING_BETA, *needed] if has_budget and THINKING_BETA in betas else needed


def _asked_effort(body: Mapping[str, Any]) -> str | None:
    config = body.get("output_config")
    effort = config.get("effort") if isinstance(config, dict) else None
    return EFFORTS.get(effort) if isinstance(effort, str) else None
