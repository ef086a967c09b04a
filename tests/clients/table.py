"""The features that the SDKs try, with the right outcome on each route: one list for the tests and for the page.

The outcomes are "yes", "as text" (the model reads it as text), "in part: …" and "not supported: …", with the reason in
words. None: the feature does not exist there. The checks return the part before the colon; both SDKs must see the same.
docs/clients.md shows this table (docs/generate.py writes it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ROUTES = ("chat", "messages", "gpt")
SDKS = ("python", "typescript")
NAMES = ("Claude, Chat Completions", "Claude, Messages API", "GPT")

YES, AS_TEXT = "yes", "as text"
ONE_NUMBER = "in part: Cortex reports reads and writes as one number, so writes count as reads"
DROPPED = "not supported: left out, the request is answered without it"
NO_PREFILL = "not supported: these models take none; a user message is added that says to continue"
ONLY_ANTHROPIC = "not supported: 400 in words, before anything is sent to Cortex"
NO_API = "not supported: 404, Cortex has no such API"
GPT_THINKS_ALONE = "not supported: GPT shows no thinking"
LEFT_OUT = "not supported: the model is told that a file was left out"


@dataclass(frozen=True)
class Feature:
    """One row. `name` is the name of the check in both languages; `sdks` are those that have the feature."""

    name: str
    title: str
    chat: str | None = YES
    messages: str | None = YES
    gpt: str | None = YES
    sdks: tuple[str, ...] = SDKS

    def expected(self, route: str) -> str | None:
        return {"chat": self.chat, "messages": self.messages, "gpt": self.gpt}[route]


def same(name: str, title: str, outcome: str) -> Feature:
    """A feature with one outcome on every route."""
    return Feature(name, title, outcome, outcome, outcome)


GROUPS: dict[str, tuple[Feature, ...]] = {
    "Answers": (
        Feature("message", "a message: text, role, stop reason, an id that begins with `msg_`"),
        Feature("usage", "the numbers of tokens, with those of the cache"),
        Feature("system_prompt", "a system prompt, as a string or as blocks"),
        Feature("stream", "a stream: text events, the final message"),
        Feature("stream_usage", "the numbers of tokens in a stream, from its first event on"),
        Feature("long_stream", "a stream of 400 pieces"),
        Feature("many_at_once", "32 requests at once"),
        Feature("client_without_async", "the client without `async`", sdks=("python",)),
        Feature("max_tokens", "`max_tokens`, and the stop reason when it is reached"),
        Feature(
            "stop_sequences",
            "stop sequences",
            "not supported: Cortex ignores them for Claude on this route",
            YES,
            "in part: the answer ends there, but `stop_reason` is `end_turn`",
        ),
        Feature(
            "sampling",
            "`temperature`, `top_p`, `top_k`",
            "in part: this API has no `top_k`",
            YES,
            "in part: this API has no `top_k`",
        ),
        Feature(
            "sampling_of_newer_models",
            "`temperature` with Claude 4.7 and newer",
            "not supported: left out, these models have one temperature",
            "not supported: left out, these models have one temperature",
            None,
        ),
        Feature(
            "prefill",
            "an assistant message at the end, as the beginning of the answer (Claude 4.5, GPT)",
        ),
        Feature("prefill_of_newer_models", "the same with Claude 4.6 and newer", NO_PREFILL, NO_PREFILL, None),
        Feature("structured_output", "structured output: `messages.parse`, `output_config.format`"),
        Feature("thinking", "thinking, with a budget and adaptive", gpt=GPT_THINKS_ALONE),
        Feature("thinking_sent_back", "thinking that goes back with the next request", gpt=GPT_THINKS_ALONE),
        Feature(
            "thinking_of_a_stream_sent_back",
            "the same after a stream",
            "not supported: Cortex's streams have no signatures on this route, so it is left out",
            gpt=GPT_THINKS_ALONE,
        ),
        Feature(
            "effort",
            "`output_config.effort`",
            "in part: only together with `thinking`",
        ),
    ),
    "Tools": (
        Feature("stream_tool_call", "a tool call in a stream, in pieces of JSON"),
        Feature("parallel_tool_calls", "several tool calls in one answer, and their results"),
        Feature("tool_choice", "`tool_choice`: `auto`, `any`, `tool`, `none`"),
        Feature("tool_schema", "a schema with a property that is `true`"),
        Feature("tool_runner", "the tool runner of the SDK"),
        Feature("tool_result_error", "a result with `is_error`", AS_TEXT, YES, AS_TEXT),
        Feature("tool_result_image", "a result with an image"),
        same("tool_result_document", "a result with a document or a search result", AS_TEXT),
        same("server_tool", "Anthropic's server tools alone (`web_search_…`)", ONLY_ANTHROPIC),
        same(
            "server_tool_beside_others",
            "server tools beside other tools",
            "not supported: left out, the other tools work",
        ),
        same("client_tool_of_anthropic", "Anthropic's client tools alone (`bash_20250124`)", ONLY_ANTHROPIC),
    ),
    "What a request may contain": (
        Feature("image", "an image as base64"),
        same("image_by_url", "an image by its URL", "not supported: the model is told that an image was left out"),
        same("text_document", "a document with text or blocks of text, its title, citations asked for", AS_TEXT),
        Feature(
            "pdf_document",
            "a PDF",
            LEFT_OUT,
            "not supported: nobody knows; it is sent, and if Cortex refuses it, the model is told that it was left out",
            LEFT_OUT,
        ),
        same("file_in_a_message", "a document by the id of an uploaded file", LEFT_OUT),
        same("search_result", "a search result", AS_TEXT),
        same("results_of_server_tools", "calls and results of server tools in the history", AS_TEXT),
        Feature(
            "cache_marks", "`cache_control` on a block", ONE_NUMBER, YES, "not supported: GPT caches without marks"
        ),
        Feature(
            "cache_mark_of_the_request",
            "`cache_control` on the request",
            gpt="not supported: GPT caches without marks",
        ),
        same("metadata", "`metadata.user_id`", "not supported: left out, because it names a user or a device"),
        same(
            "threads",
            "`thread`: the server keeps the history",
            "not supported: 400 `thread_unsupported_request`; the tool runner goes on without it",
        ),
        same("context_management", "`context_management`", DROPPED),
        same("mcp_servers", "`mcp_servers`: MCP servers that Anthropic would call", DROPPED),
        same("container", "`container`", DROPPED),
        same("service_tier", "`service_tier`, `speed`", DROPPED),
    ),
    "Errors, models and connections": (
        Feature("bad_request", "a field of a wrong shape: `BadRequestError` that names it"),
        Feature("wrong_key", "a wrong key: `AuthenticationError`"),
        Feature("both_headers_of_a_key", "the key as `api_key` or as `auth_token`"),
        Feature("permission", "no rights in Snowflake: `PermissionDeniedError` with what to do"),
        same(
            "unknown_model",
            "a model that no row has",
            "in part: `BadRequestError` with what to do, where Anthropic has `NotFoundError`",
        ),
        Feature("rate_limit", "too many requests: `RateLimitError`"),
        Feature("overloaded", "Cortex is busy: `RateLimitError`"),
        Feature("server_error", "an error inside Cortex: `InternalServerError`"),
        Feature("retried", "the SDK tries again where that can help, and only there"),
        Feature("error_in_a_stream", "a stream that breaks off is an error, never half an answer"),
        Feature("request_ids", "request ids of answers and streams"),
        Feature("request_ids_of_errors", "request ids of errors"),
        Feature("token_counting", "`messages.count_tokens`: an estimate"),
        Feature("models_list", "`models.list`"),
        Feature("models_retrieve", "`models.retrieve`; `NotFoundError` for an unknown one"),
        same("batches", "`messages.batches`", NO_API),
        same("files", "`files`", NO_API),
        Feature("cancelled_stream", "a stream that is closed ends the call to Cortex"),
        Feature("cancelled_request", "a request that is cancelled ends the call to Cortex"),
        Feature("timeout", "a timeout ends the call to Cortex"),
    ),
    "Agent SDKs": (
        Feature("agent_sdk", "a session of the Agent SDK that calls a tool of its own MCP server", gpt=None),
    ),
}
FEATURES: tuple[Feature, ...] = tuple(feature for group in GROUPS.values() for feature in group)


def cases() -> Iterator[tuple[Feature, str, str]]:
    """Every feature with an SDK and a route that have it."""
    for feature in FEATURES:
        for sdk in feature.sdks:
            yield from ((feature, sdk, route) for route in ROUTES if feature.expected(route) is not None)


def markdown() -> str:
    """The table as docs/clients.md shows it."""
    lines = [f"| Feature | {' | '.join(NAMES)} |", f"|---|{'---|' * len(NAMES)}"]
    for group, features in GROUPS.items():
        lines.append(f"| **{group}** |{' |' * len(NAMES)}")
        for feature in features:
            title = feature.title if feature.sdks == SDKS else f"{feature.title} (Python only)"
            lines.append(f"| {title} | {' | '.join(feature.expected(route) or 'does not apply' for route in ROUTES)} |")
    return "\n".join(lines) + "\n"
