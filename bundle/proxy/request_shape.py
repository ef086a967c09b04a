"""The shape of a Messages request, as Anthropic's API documents it: a request that a client has built wrong gets one
sentence that names the field, before LiteLLM sees the request.

LiteLLM answers such a request with a 500 and words of Python, after which clients send it again. The types below are
those of Anthropic's SDK, with three differences. What Claude Code sends in its histories and the bundle repairs passes
(empty texts, images of another type, thinking without a signature). Fields that are not here pass, and later code
drops them. Tools of any other type than `custom` pass, because `refuse_foreign_tools` tells about them.

`tests/test_request_shape.py` compares the types of blocks with those of the SDK.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import NotRequired, TypedDict

from bundle.errors import printable

MAX_WORDS = 300  # characters of a message
MAX_KNOWN = 8  # types that a message lists; more are not readable
# Tags of alternatives that are no part of the body. They are left out of the path of a field.
_TEXT, _LIST, _OBJECT, _OTHER = "<text>", "<list>", "<object>", "<other>"
FIRST = Field(fail_fast=True)  # of a list, only the first fault is looked for


def _text_or_list(value: object) -> str:
    return _LIST if isinstance(value, list) else _TEXT


def _object_or_list(value: object) -> str:
    return _LIST if isinstance(value, list) else _OBJECT


class CacheControl(TypedDict):
    type: Literal["ephemeral"]
    ttl: NotRequired[str | None]


class _Markable(TypedDict):
    cache_control: NotRequired[CacheControl | None]


class Base64Source(TypedDict):
    type: Literal["base64"]
    media_type: str
    data: str


class UrlSource(TypedDict):
    type: Literal["url"]
    url: str


class FileSource(TypedDict):
    type: Literal["file"]
    file_id: str


class TextSource(TypedDict):
    type: Literal["text"]
    media_type: str
    data: str


ImageSource = Annotated[Base64Source | UrlSource | FileSource, Discriminator("type")]


class Text(_Markable):
    type: Literal["text"]
    text: str
    citations: NotRequired[list[Any] | None]


class Image(_Markable):
    type: Literal["image"]
    source: ImageSource


Texts = Annotated[list[Text], FIRST]
TextOrImage = Annotated[Text | Image, Discriminator("type")]
TextOrTexts = Annotated[Annotated[str, Tag(_TEXT)] | Annotated[Texts, Tag(_LIST)], Discriminator(_text_or_list)]


class ContentSource(TypedDict):
    type: Literal["content"]
    content: Annotated[
        Annotated[str, Tag(_TEXT)] | Annotated[list[TextOrImage], FIRST, Tag(_LIST)], Discriminator(_text_or_list)
    ]


class Document(_Markable):
    type: Literal["document"]
    source: Annotated[Base64Source | TextSource | ContentSource | UrlSource | FileSource, Discriminator("type")]
    title: NotRequired[str | None]
    context: NotRequired[str | None]
    citations: NotRequired[dict[str, Any] | None]


class SearchResult(_Markable):
    type: Literal["search_result"]
    source: str
    title: str
    content: Texts


class ToolReference(_Markable):
    type: Literal["tool_reference"]
    tool_name: str


class BrowserState(_Markable):
    type: Literal["browser_state"]
    tabs: list[Any]


ResultBlock = Annotated[Text | Image | Document | SearchResult | ToolReference | BrowserState, Discriminator("type")]
ResultContent = Annotated[
    Annotated[str, Tag(_TEXT)] | Annotated[list[ResultBlock], FIRST, Tag(_LIST)], Discriminator(_text_or_list)
]


class ToolUse(_Markable):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResult(_Markable):
    type: Literal["tool_result"]
    tool_use_id: str
    content: NotRequired[ResultContent | None]
    is_error: NotRequired[bool | None]


class Thinking(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: NotRequired[str | None]


class RedactedThinking(TypedDict):
    type: Literal["redacted_thinking"]
    data: str


class ServerToolUse(_Markable):
    type: Literal["server_tool_use", "mcp_tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ServerToolResult(_Markable):
    type: Literal[
        "web_search_tool_result",
        "web_fetch_tool_result",
        "advisor_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
    ]
    tool_use_id: str
    content: Annotated[
        Annotated[list[dict[str, Any]], FIRST, Tag(_LIST)] | Annotated[dict[str, Any], Tag(_OBJECT)],
        Discriminator(_object_or_list),
    ]


class McpToolResult(_Markable):
    type: Literal["mcp_tool_result"]
    tool_use_id: str
    content: NotRequired[TextOrTexts | None]
    is_error: NotRequired[bool | None]


class Other(_Markable):
    """Blocks of which nothing is read."""

    type: Literal["container_upload", "compaction", "tool_addition", "tool_removal", "mcp_tool_listing", "fallback"]


_OwnBlock = Text | ToolUse | ToolResult | Thinking | RedactedThinking | Image | Document | SearchResult | ToolReference
Block = Annotated[_OwnBlock | ServerToolUse | ServerToolResult | McpToolResult | Other, Discriminator("type")]


class Message(TypedDict):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[str, Tag(_TEXT)] | Annotated[list[Block], FIRST, Tag(_LIST)], Discriminator(_text_or_list)
    ]


class CustomTool(_Markable):
    name: Annotated[str, Field(min_length=1)]
    input_schema: dict[str, Any]
    description: NotRequired[str | None]


class OtherTool(_Markable):
    type: str
    name: NotRequired[str | None]


def _kind_of_tool(tool: object) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return "custom" if kind is None or kind == "custom" else _OTHER


Tool = Annotated[Annotated[CustomTool, Tag("custom")] | Annotated[OtherTool, Tag(_OTHER)], Discriminator(_kind_of_tool)]


class AnyChoice(TypedDict):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: NotRequired[bool | None]


class ToolChoice(TypedDict):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: NotRequired[bool | None]


class ThinkingEnabled(TypedDict):
    type: Literal["enabled"]
    budget_tokens: int


class OtherThinking(TypedDict):
    type: Literal["adaptive", "between_tools", "disabled"]


def _object_or_other(value: object) -> str:
    return _OBJECT if isinstance(value, dict) else _OTHER


# The schema of an answer, as far as LiteLLM goes into it.
AnswerSchema = TypedDict(
    "AnswerSchema",
    {
        "items": NotRequired["Schema"],
        "properties": NotRequired["dict[str, Schema]"],
        "$defs": NotRequired["dict[str, Schema]"],
        "definitions": NotRequired["dict[str, Schema]"],
        "anyOf": NotRequired["list[Schema]"],
        "oneOf": NotRequired["list[Schema]"],
        "allOf": NotRequired["list[Schema]"],
    },
)
Schema = Annotated[Annotated[AnswerSchema, Tag(_OBJECT)] | Annotated[Any, Tag(_OTHER)], Discriminator(_object_or_other)]


class JsonFormat(TypedDict):
    type: Literal["json_schema"]
    schema: AnswerSchema


class OutputConfig(TypedDict):
    effort: NotRequired[str | None]
    format: NotRequired[JsonFormat | None]


Fraction = Annotated[float, Field(ge=0, le=1)]


class Counted(TypedDict):
    """The body of `count_tokens`."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1), FIRST]
    system: NotRequired[TextOrTexts | None]
    tools: NotRequired[Annotated[list[Tool], FIRST] | None]
    tool_choice: NotRequired[Annotated[AnyChoice | ToolChoice, Discriminator("type")] | None]
    thinking: NotRequired[Annotated[ThinkingEnabled | OtherThinking, Discriminator("type")] | None]
    output_config: NotRequired[OutputConfig | None]
    output_format: NotRequired[JsonFormat | None]
    cache_control: NotRequired[CacheControl | None]


class Request(Counted):
    """The body of `messages`."""

    max_tokens: Annotated[int, Field(ge=1)]
    stream: NotRequired[bool | None]
    stop_sequences: NotRequired[Annotated[list[str], FIRST] | None]
    temperature: NotRequired[Fraction | None]
    top_p: NotRequired[Fraction | None]
    top_k: NotRequired[Annotated[int, Field(ge=0)] | None]


_REQUEST, _COUNTED = TypeAdapter(Request), TypeAdapter(Counted)


def fault(body: dict[str, Any], *, counting: bool = False) -> str:
    """What is wrong with a body, as Anthropic's API says it (`max_tokens: Field required`); "" if nothing is.
    `counting`: the body is one of `count_tokens`. The body is never changed."""
    try:
        (_COUNTED if counting else _REQUEST).validate_python(body, strict=True)
    except ValidationError as error:
        return _in_words(error.errors(include_url=False)[0])
    return ""


def _in_words(error: ErrorDetails) -> str:
    path, words = [str(part) for part in error["loc"]], error["msg"]
    context, given = error.get("ctx", {}), error["input"]
    if error["type"] == "union_tag_not_found":
        path, words = [*path, "type"], "Field required"
    elif error["type"] == "union_tag_invalid":
        known, path, words = str(context["expected_tags"]), [*path, "type"], "Input should be a valid string"
        if isinstance(given, dict) and isinstance(given.get("type"), str):
            words = f"Input tag '{printable(context['tag'], 50)}' is not known"
            words += f". Expected one of {known}" if known.count(",") < MAX_KNOWN else ""
    elif error["type"] in {"dict_type", "model_attributes_type"}:
        words = "Input should be a valid dictionary"
        words = f"{words} or list" if path[-1] == _OBJECT else words
    elif path[-1] == _TEXT:
        words = "Input should be a valid string or list"
    elif error["type"] == "too_short":
        words = "at least one message is required"
    return printable(f"{'.'.join(part for part in path if part[:1] != '<')}: {words}", MAX_WORDS)
