"""Anthropic's Messages API as Cortex serves it: requests into what it accepts (answers: `answers.WholeAnswer`).

The problem: Claude Code speaks Anthropic's API of the day of its release. Cortex serves the same API, but strictly: one
field, block or beta that it does not know is a 400, and a refused history is sent again with every later turn. The
mechanism: allow-lists, and small functions on plain dicts, each for one line of the contract (docs/cortex.md, named in
its docstring), put together in `messages_request`. The promises are those of requests.py.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from bundle.cortex import contents
from bundle.cortex.contents import EMPTY, MAX_MARKS, NO_OUTPUT, plain_part
from bundle.cortex.models import EFFORT_BUDGETS, EFFORTS, JSON, MARK, MIN_BUDGET, Limits, Note, is_adaptive
from bundle.cortex.refusals import Refusals, without
from bundle.cortex.requests import max_tokens, sampling
from bundle.cortex.schemas import object_schema
from bundle.cortex.turns import LOST_RESULT, NO_RESULT, ends_with_user, plain_id

# Everything that may leave for Cortex, level by level. What is marked for the cache is marked anew.
WIRE_FIELDS = frozenset(
    {"model", "messages", "system", "tools", "tool_choice", "max_tokens", "stream", "stop_sequences"}
    | {"temperature", "top_k", "top_p", "thinking", "output_config"}
)
TOOL_FIELDS = ("name", "description", "input_schema")
CHOICE_FIELDS = ("name", "disable_parallel_tool_use")
BLOCK_FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "image": ("source",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id", "content", "is_error"),
    "thinking": ("thinking", "signature"),
    "redacted_thinking": ("data",),
}
BLOCKS: Mapping[str, tuple[str, ...]] = {
    "system": ("text",),
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "tool_result": ("text", "image"),
}
IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
# Of the betas that Snowflake documents, those that something here makes use of, and sent only where it does: each one
# more is one more that could be refused.
EFFORT_BETA = "effort-2025-11-24"
THINKING_BETA = "interleaved-thinking-2025-05-14"


def messages_request(
    body: Mapping[str, Any],
    *,
    limits: Limits,
    betas: Iterable[str] = (),
    refusals: Refusals | None = None,
    keep: Container[str] = frozenset(),
) -> tuple[JSON, list[str], list[str]]:
    """Rewrite a Messages request so that Cortex takes it; `betas` are those of the client.

    `keep` names top-level keys that are not for the wire and stay untouched. Returns the new request, the betas to send
    with it, and a short phrase for each thing dropped or changed.
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
    messages = results_after_calls(plain_messages(body["messages"], note), note)
    messages = ends_with_user(messages, note)
    limit_images(messages, note)
    cache_marks(tools, system, messages, whole_prompt=bool(body.get("cache_control")))
    choice = plain_choice(body.get("tool_choice"), tools, note)
    out |= {"messages": messages, "system": system, "tools": tools, "tool_choice": choice}
    out |= max_tokens(body, limits, note)
    out["thinking"] = thinking(
        {**out, "output_config": body.get("output_config")}, asked=body.get("thinking"), note=note
    )
    wanted = effort(body)
    if (out["thinking"] or {}).get("type") in {"adaptive", "enabled"}:
        # Anthropic's: a thinking model samples its own way, and 1 is what a temperature that is left out means.
        for key in ("temperature", "top_k", "top_p"):
            out.pop(key, None)
    else:
        out = sampling(out, note)
    sent = [beta for beta in useful_betas(out, betas, note, effort=wanted) if beta not in refusals.betas]
    taken = wanted if wanted and EFFORT_BETA in sent else {}
    out["output_config"] = {**taken, **output_format(body, note)} or None
    out = {key: value for key, value in out.items() if value not in (None, [])}
    for path in refusals.fields.get(str(body["model"]).rpartition("/")[2], ()):
        out = without(out, path)
    out = {key: value for key, value in out.items() if value != {}}  # nothing is left of it
    return {**{key: value for key, value in body.items() if key in keep}, **out}, sent, notes


def plain_messages(messages: Sequence[JSON], note: Note) -> list[JSON]:
    """docs/cortex.md#messages-strict: an unknown block or field is a 400, and so is an empty text. Roles alternate.

    Claude Code's newer `role: "system"` inside `messages` becomes what its older releases wrote: a user's reminder.
    """
    out: list[JSON] = []
    for message in messages:
        role, parts = message.get("role"), _parts(message.get("content"))
        if role == "system":
            role, parts = "user", [_reminder(part, note) for part in parts if part.get("text")]
        blocks = plain_blocks(parts, str(role), note)
        if blocks and out and out[-1]["role"] == role:
            out[-1] = {"role": role, "content": [*out[-1]["content"], *blocks]}
        elif blocks:
            out.append({"role": role, "content": blocks})
    if not out or out[0]["role"] != "user":
        out.insert(0, {"role": "user", "content": [_text(EMPTY)]})
    return out


def _reminder(part: JSON, note: Note) -> JSON:
    return {**_text(f"<system-reminder>\n{part['text']}\n</system-reminder>"), **_mark(part, note)}


def plain_system(system: object, note: Note) -> list[JSON]:
    """The system prompt as blocks, without the line in which Claude Code tells Anthropic its version: it differs from
    session to session, so that no two of them could share what is cached after it."""
    blocks = plain_blocks(_parts(system), "system", note)
    return [block for block in blocks if not block["text"].startswith("x-anthropic-billing-header:")]


def plain_blocks(parts: Iterable[JSON], place: str, note: Note) -> list[JSON]:
    """The blocks as Cortex takes them in this place: a role, or the inside of a tool result."""
    return [block for part in parts if (block := _plain_block(part, place, note)) is not None]


def _plain_block(part: JSON, place: str, note: Note) -> JSON | None:
    kind = str(part.get("type"))
    if kind not in BLOCKS.get(place, ()) or (kind == "image" and not _is_image(part)):
        return _in_words(part, note)
    out = _only(part, BLOCK_FIELDS[kind], note, kind)
    if kind == "text" and not str(part.get("text") or "").strip():
        return None
    if kind == "thinking" and not part.get("signature"):
        note("thinking without a signature dropped")  # it cannot go back to anybody
        return None
    mark = _mark(part, note) if "thinking" not in kind else {}
    if kind == "image":
        out["source"] = {"type": "base64", "media_type": _media_type(part), "data": part["source"]["data"]}
    elif kind == "tool_use" and not isinstance(part.get("input"), dict):
        out["input"] = {"input": part["input"]} if part.get("input") else {}
    elif kind == "tool_result":
        out["content"] = plain_blocks(_parts(part.get("content")), kind, note) or [_text(NO_OUTPUT)]
        for block in out["content"]:  # a mark inside is the whole result's
            mark = {"cache_control": block.pop("cache_control")} if "cache_control" in block else mark
    return {**out, **mark}


def _in_words(part: JSON, note: Note) -> JSON | None:
    """A block that Cortex does not take: its text where it has one, else a sentence that tells the model."""
    source = part.get("source")
    text = part.get("text") or (source.get("data") if isinstance(source, dict) and source.get("type") == "text" else "")
    if isinstance(text, str) and text.strip():
        note(f"block {part.get('type')} replaced by its text")
        return {**_text(text), **_mark(part, note)}
    kind = str(part.get("type") or "block without a type")
    if kind in {"document", "image"}:
        media = _media_type(part) or (source.get("type") if isinstance(source, dict) else None)
        kind = "PDF" if media == "application/pdf" else f"{kind} ({media})"
    return plain_part({**part, "type": kind}, note)


def _media_type(part: JSON) -> str:
    source = part.get("source")
    media = str(source.get("media_type") or "") if isinstance(source, dict) else ""
    return "image/jpeg" if media == "image/jpg" else media


def _is_image(part: JSON) -> bool:
    source = part.get("source")
    base64 = isinstance(source, dict) and source.get("type") == "base64" and bool(source.get("data"))
    return base64 and _media_type(part) in IMAGE_TYPES


def _text(text: str) -> JSON:
    return {"type": "text", "text": text}


def _parts(content: object) -> list[JSON]:
    return content if isinstance(content, list) else [_text(content)] if isinstance(content, str) else []


def _only(value: JSON, fields: Container[str], note: Note, what: str) -> JSON:
    for key in value:
        if key not in fields and key not in {"type", "cache_control"}:
            note(f"{what} field {key} dropped")
    return {key: item for key, item in value.items() if key in fields or key == "type"}


def _mark(part: JSON, note: Note) -> JSON:
    if not isinstance(part.get("cache_control"), dict):
        return {}
    _only(part["cache_control"], (), note, "cache_control")  # whether Cortex takes a `ttl` is not known
    return {"cache_control": MARK}


def results_after_calls(messages: Sequence[JSON], note: Note) -> list[JSON]:
    """docs/cortex.md#messages-results: each result stands in the very next user turn, before everything else.

    A missing result is filled in; a result without its call, or a second one, becomes text. Their order stays the
    client's, which marks the last one for the cache. Calls get ids that are unique and that Cortex takes
    (docs/cortex.md#messages-tool-ids), and so do their results.
    """
    out: list[JSON] = []
    seen: set[str] = set()
    waiting: dict[str, list[str]] = {}  # by the client's id, the ids that its calls got
    for message in (*messages, {"role": "", "content": []}):
        first: list[JSON] = []
        rest: list[JSON] = []
        for block in message["content"]:
            if block["type"] != "tool_result":
                rest.append(block)
            elif waiting.get(str(block.get("tool_use_id"))):
                first.append({**block, "tool_use_id": waiting[str(block["tool_use_id"])].pop(0)})
            else:
                note("tool result without its call turned into text")
                rest += [_text(LOST_RESULT), *block["content"]]
        first += [_no_result(call, note) for call in chain.from_iterable(waiting.values())]
        if first and message["role"] != "user":
            out.append({"role": "user", "content": first})
            first = []
        waiting = {}
        for place, block in enumerate(rest):
            if block["type"] == "tool_use":
                identity = plain_id(block.get("id"), seen)
                waiting.setdefault(str(block.get("id")), []).append(identity)
                rest[place] = {**block, "id": identity}
        if first or rest:
            out.append({"role": message["role"], "content": [*first, *rest]})
    return out


def _no_result(call: str, note: Note) -> JSON:
    note("missing tool result filled in")
    return {"type": "tool_result", "tool_use_id": call, "content": [_text(NO_RESULT)]}


def limit_images(messages: Sequence[JSON], note: Note) -> None:
    """docs/cortex.md#chat-images, docs/cortex.md#chat-size: the chat route's rule, in place, as these blocks are ours
    by now."""
    images = [block for message in messages for block in _with_inner(message) if block["type"] == "image"]
    urls = [{"type": "image_url", "image_url": {"url": image["source"]["data"]}} for image in images]
    (kept,) = contents.limit_images([{"role": "user", "content": urls}], note)
    for image, part in zip(images, kept["content"], strict=True):
        if part["type"] == "text":
            mark = _mark(image, note)
            image.clear()
            image.update(part, **mark)


def _with_inner(message: JSON) -> Iterator[JSON]:
    for block in message["content"]:
        yield block
        if block["type"] == "tool_result":
            yield from block["content"]


def cache_marks(tools: list[JSON], system: list[JSON], messages: list[JSON], *, whole_prompt: bool) -> None:
    """docs/cortex.md#messages-cache: more than 4 marks are a 400, and so is one on the request itself, which asks for a
    mark on the last block (`whole_prompt`). In place; of too many stay the last of what all requests share, and the
    newest.
    """
    blocks = list(chain.from_iterable(message["content"] for message in messages))
    if whole_prompt and "thinking" not in blocks[-1]["type"]:
        blocks[-1]["cache_control"] = MARK
    shared = [block for block in (*tools, *system) if "cache_control" in block]
    newest = [block for block in blocks if "cache_control" in block][::-1]
    for block in [*shared[-1:], *newest, *shared[-2::-1]][MAX_MARKS:]:
        del block["cache_control"]


def plain_tools(tools: Iterable[JSON], note: Note) -> list[JSON]:
    """docs/cortex.md#messages-strict: a tool's unknown field (`eager_input_streaming`) is a 400. Tools that Anthropic's
    servers would run (`web_search_…`) go: Cortex has none. So does `$schema`, as in LiteLLM's provider for
    Snowflake."""
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
    """The tool choice, where there are tools and the one it names is among them."""
    names = [tool["name"] for tool in tools]
    if not isinstance(choice, dict) or not names or choice.get("name") not in (None, *names):
        return None
    return _only(choice, CHOICE_FIELDS, note, "tool_choice")


def thinking(body: Mapping[str, Any], *, asked: object, note: Note) -> JSON | None:
    """docs/cortex.md#messages-thinking: `adaptive`, or `enabled` with a budget, by the model, and nothing beside it.

    `body` is what else will leave. Anthropic's rules: a budget is at least 1024 and below `max_tokens`; no thinking
    together with a forced tool, nor with a budget in a turn whose calls were made without thinking.
    """
    if not isinstance(asked, dict) or not asked.get("type"):
        return None
    plain = _only(asked, ("budget_tokens",), note, "thinking")
    if asked["type"] == "disabled":
        return {"type": "disabled"}
    if (body.get("tool_choice") or {}).get("type") in {"any", "tool"}:
        return None
    if is_adaptive(body["model"]):
        return {"type": "adaptive"}
    last: JSON = next((m for m in reversed(body["messages"]) if m["role"] == "assistant"), {"content": []})
    kinds = [block["type"] for block in last["content"]]
    if "tool_use" in kinds and "thinking" not in kinds[0]:
        note("no thinking for the rest of a turn that was begun without it")
        return None
    # A budget of the client's is what it wants; one of ours leaves room for an answer.
    most = int(body.get("max_tokens") or 0) - 1
    budget = plain.get("budget_tokens") or min(EFFORT_BUDGETS[_effort(body) or "medium"], most // 2)
    budget = min(max(int(budget), MIN_BUDGET), most)
    return {"type": "enabled", "budget_tokens": budget} if budget >= MIN_BUDGET else None


def effort(body: Mapping[str, Any]) -> JSON | None:
    """docs/cortex.md#messages-betas: an effort goes with the beta `effort-2025-11-24`. Anthropic has it for models that
    think adaptively and for Opus 4.5.

    "high" is what a request without an effort gets: left out, as one thing less that could be refused.
    """
    wanted = _effort(body)
    takes = is_adaptive(body["model"]) or "opus-4-5" in body["model"]
    return {"effort": wanted} if takes and wanted in {"low", "medium"} else None


def output_format(body: Mapping[str, Any], note: Note) -> JSON:
    """docs/cortex.md#messages-output-format: what an answer must look like, by a JSON schema. (Older clients of
    Anthropic's API say it beside `output_config`.)"""
    config = body.get("output_config")
    wanted = (config.get("format") if isinstance(config, dict) else None) or body.get("output_format")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return {}
    return {"format": _only(wanted, ("schema",), note, "output_config.format")}


def useful_betas(body: JSON, betas: Iterable[str], note: Note, *, effort: JSON | None) -> list[str]:
    """docs/cortex.md#messages-betas: an unknown `anthropic-beta` is a 400. Those that this body makes use of."""
    useful = {THINKING_BETA} if (body["thinking"] or {}).get("type") == "enabled" else set()
    for beta in sorted(set(betas) - {THINKING_BETA, EFFORT_BETA}):
        note(f"beta {beta} dropped")
    return sorted(useful & set(betas)) + ([EFFORT_BETA] if effort else [])


def _effort(body: Mapping[str, Any]) -> str | None:
    config = body.get("output_config")
    named = config.get("effort") if isinstance(config, dict) else None
    return EFFORTS.get(named) if isinstance(named, str) else None
