"""Does a model answer what Claude Code sends, and if a route of Cortex refuses it, does the other route take it?

A bare question for one word tells little: Cortex answered that while it refused every request of Claude Code (thinking
without a temperature, for one). So the request here has one of each kind of thing that Claude Code sends, and an answer
counts when it is whole: its last event came, and there was text or a tool call in it. What judges is pure, `check`
asks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import httpx

from bundle.cortex.answers import EventLines, IncompleteAnswerError, RequestFacts, StreamFix, WholeAnswer
from bundle.cortex.errors import explain
from bundle.cortex.messages import messages_request
from bundle.cortex.models import JSON, MARK, Limits
from bundle.cortex.requests import chat_request
from bundle.errors import ConfigError
from bundle.render import template_rows
from bundle.settings import CLAUDE_ROUTES, Settings
from bundle.tokens import auth_headers, sign


@dataclass(frozen=True)
class Route:
    """A way to a Claude model: the word for it in CLAUDE_ROUTE, its name in a sentence, and its path on Cortex."""

    word: str
    name: str
    path: str


CHAT = Route("chat", "chat completions", "/api/v2/cortex/v1/chat/completions")
MESSAGES = Route("messages", "the Messages API", "/api/v2/cortex/v1/messages")

# ------------------------------------------------------------------------------------------------------- the request

VERSION = {"anthropic-version": "2023-06-01"}
# Those that are left when point_claude.py has switched the experimental ones off.
BETAS = ("claude-code-20250219", "interleaved-thinking-2025-05-14")
HEADERS = {**VERSION, "anthropic-beta": ",".join(BETAS)}
BUDGET = 1024  # of thinking, the smallest that there is
# Costs nothing that is not used. Much less could be refused where Claude Code is not: how large a budget Cortex makes
# of an effort is not documented, and a budget must be smaller than this.
MAX_TOKENS = 5000

_MARK: JSON = {"cache_control": MARK}


def _tool(name: str, description: str, properties: JSON, *required: str) -> JSON:
    schema: JSON = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
    }
    schema |= {"required": list(required), "additionalProperties": False}
    return {"name": name, "description": description, "input_schema": schema}


_STRING: JSON = {"type": "string"}
_LIST_ENTRY: JSON = {
    "type": "object",
    "properties": {"content": {**_STRING, "minLength": 1}, "status": {**_STRING, "enum": ["pending", "completed"]}},
    "required": ["content", "status"],
    "additionalProperties": False,
}
TOOLS = (
    _tool(
        "Bash",
        "Runs a command in a shell.",
        {"command": {**_STRING, "description": "The command"}, "timeout": {"type": "number"}},
        "command",
    ),
    _tool(
        "Read",
        "Reads a file.",
        {"file_path": _STRING, "offset": {"type": "integer", "minimum": 0, "maximum": 9007199254740991}},
        "file_path",
    ),
    _tool("TodoWrite", "Keeps a list of things to do.", {"todos": {"type": "array", "items": _LIST_ENTRY}}, "todos"),
)


def request(model: str) -> JSON:
    """What Claude Code would send, to be answered with one word."""
    return {
        "model": model,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "thinking": {"type": "enabled", "budget_tokens": BUDGET},
        "system": [
            {"type": "text", "text": "You are Claude Code, Anthropic's official CLI for Claude."},
            {"type": "text", "text": "You help with programming. Answer as briefly as you can.", **_MARK},
        ],
        "tools": [*TOOLS],
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "text",
                        "text": "<system-reminder>\nThis is a check of the connection.\n</system-reminder>",
                    },
                    {"type": "text", "text": "Say OK, and use no tool.", **_MARK},
                ],
            }
        ],
        "metadata": {"user_id": "doctor"},
    }


def for_cortex(route: Route, model: str) -> tuple[JSON, dict[str, str]]:
    """The same request as the proxy would send it on this route, and the headers that belong to it."""
    asked = request(model)
    if route is MESSAGES:
        body, betas, *_ = messages_request(asked, limits=Limits(), betas=BETAS)
        return body, {**VERSION, **({"anthropic-beta": ",".join(betas)} if betas else {})}
    body, *_ = chat_request(_as_openai(asked), family="claude", limits=Limits())
    return body, {}


def _as_openai(asked: JSON) -> JSON:
    """In OpenAI's terms, as LiteLLM hands it to the dialect; the limit by the name that the patch gives it."""
    functions = [
        {"name": tool["name"], "description": tool["description"], "parameters": tool["input_schema"]}
        for tool in asked["tools"]
    ]
    return {
        "model": asked["model"],
        "max_completion_tokens": asked["max_tokens"],
        "stream": True,
        "thinking": asked["thinking"],
        "messages": [{"role": "system", "content": asked["system"]}, *asked["messages"]],
        "tools": [{"type": "function", "function": function} for function in functions],
    }


# -------------------------------------------------------------------------------------------------------- the answer


@dataclass(frozen=True)
class Verdict:
    """How a request went.

    "good": whole. "again": the same request may succeed later. "refused": not on this route, and no setting of the
    account explains it. "failed": everything else. The first line of `words` says what is wrong, the others what fixes
    it. `left_out` names what the proxy leaves out of such a request, because Cortex has refused it.
    """

    state: Literal["good", "again", "refused", "failed"]
    words: str = ""
    left_out: tuple[str, ...] = ()


def of_proxy(status: int, headers: Mapping[str, str], text: str) -> Verdict:
    """Judge an answer of the proxy; `headers` by lower-case name. Raises ValueError, LookupError or TypeError for what
    it never says."""
    if status == 200:
        trouble = trouble_of(MESSAGES, text)
        names = [name.strip() for name in headers.get("x-cortex-left-out", "").split(",")]
        left_out = tuple(name for name in names if name)
        return Verdict("again", trouble) if trouble else Verdict("good", left_out=left_out)
    error = json.loads(text)["error"]
    words = str(error["message"])
    final = headers.get("x-should-retry") == "false"
    if not final and (status >= 429 or status in {401, 408, 409}):  # as Claude Code itself takes them
        return Verdict("again", words)
    return Verdict("refused" if status == 400 and _is_unexplained(words) else "failed", words)


def of_cortex(route: Route, status: int, text: str) -> Verdict:
    """Judge an answer of Cortex itself."""
    if status == 200:
        trouble = trouble_of(route, text)
        return Verdict("again", trouble) if trouble else Verdict("good")
    told = explain(status, text, asked=MAX_TOKENS)
    if told.retry:
        return Verdict("again", told.message)
    return Verdict("refused" if told.status == 400 and _is_unexplained(told.message) else "failed", told.message)


def _is_unexplained(words: str) -> bool:
    # What has a remedy of its own (a region, a list of models, the patch) is fixed by that, and not by another route.
    return "\n" not in words.strip()


def trouble_of(route: Route, text: str) -> str:
    """What is wrong with a stream of this route, by the proxy's own readers; empty for a whole answer."""
    lines = EventLines()
    reader = WholeAnswer() if route is MESSAGES else StreamFix(RequestFacts(MAX_TOKENS))
    try:
        for data in [*lines.feed(text.encode()), *lines.end()]:
            list(reader.feed(data))
        list(reader.end())
    except IncompleteAnswerError as error:
        return str(error)
    return ""


# ------------------------------------------------------------------------------------------------- what it means


@dataclass(frozen=True)
class Report:
    """What there is to say of a model; `answers` to Claude Code whole, in part (Cortex refuses something that is then
    left out), or not. `better` is the other route, where that takes the whole request and this one does not."""

    answers: Literal["whole", "in part", "no"]
    found: str
    remedy: str = ""
    better: Route | None = None


def report(here: Verdict, route: Route | None, there: Verdict | None = None) -> Report:
    """Put together the verdicts of the proxy and of the other route; `route` is the proxy's, None for one without a
    choice, and `there` None where nobody was asked."""
    if here.state == "good" and not here.left_out:
        return Report("whole", "answers")
    answers: Literal["in part", "no"] = "in part" if here.state == "good" else "no"
    what, _, remedy = here.words.partition("\n")
    names = " and ".join(f"`{name}`" for name in here.left_out)
    if route is None or here.state not in {"good", "refused"}:
        return Report(answers, f"answers without {names}, which Cortex refuses" if names else what, remedy)
    why = f"Cortex refuses {names or f'what Claude Code sends ({_bare(what)})'} on {route.name}"
    if there is None:
        return Report(answers, why, remedy)
    other = other_route(route)
    if there.state == "good":
        return Report(answers, f"{why} and takes {'it' if names else 'that'} on {other.name}", better=other)
    told, _, remedy = there.words.partition("\n")
    return Report(answers, f"{why}, and on {other.name}: {_bare(told)}", remedy)


def other_route(route: Route) -> Route:
    return MESSAGES if route is CHAT else CHAT


def _bare(words: str) -> str:
    return words.removeprefix("Snowflake Cortex: ").rstrip(".")


# ------------------------------------------------------------------------------------------------------------ asking

ANSWER_SECONDS = 90.0
PAUSES: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 2.0)  # a route may refuse one thing after the other


def check(settings: Settings, master_key: str, model: str, name: str, *, has_routes: bool) -> Report:
    """Ask the model of a row, by the row's name, what Claude Code would; where its route refuses that, ask Cortex
    itself on the other one. `has_routes`: it is a model of Cortex."""
    body, url = request(name.replace("*", "doctor")), f"http://127.0.0.1:{settings.proxy_port}/v1/messages?beta=true"

    def through_the_proxy() -> Verdict:
        answer = _post(url, body, {**HEADERS, "Authorization": f"Bearer {master_key}"})
        return of_proxy(answer.status_code, answer.headers, answer.text)

    try:
        here = patiently(through_the_proxy)
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        return Report("no", f"no answer through the proxy ({type(error).__name__})", "See why: make logs")
    provider, _, bare = model.partition("/")
    route = {"openai": CHAT, "snowflake": MESSAGES}.get(provider) if has_routes and bare.startswith("claude") else None
    if route is None or not (here.left_out or here.state == "refused"):
        return report(here, route)
    found = report(here, route, check_route(settings, bare, other_route(route)))
    return with_remedy(settings, bare, name, found)


def check_route(settings: Settings, model: str, route: Route) -> Verdict | None:
    """How Cortex itself answers on a route; None when it cannot be asked."""
    body, headers = for_cortex(route, model)

    def directly() -> Verdict:
        answer = _post(settings.base_url + route.path, body, {**headers, **auth_headers(token)})
        return of_cortex(route, answer.status_code, answer.text)

    try:
        token = sign(settings, time.time()).value
        return patiently(directly)
    except (httpx.HTTPError, ConfigError):
        return None


def _post(url: str, body: JSON, headers: Mapping[str, str]) -> httpx.Response:
    # Neither the proxy nor a stand-in on this machine is ever behind a company's proxy.
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=5)
    with httpx.Client(timeout=timeout, trust_env=url.startswith("https:")) as client:
        return client.post(url, headers=headers, json=body)


def patiently(send: Callable[[], Verdict]) -> Verdict:
    """The verdict of a request that is sent again, a few times, while that may help: Claude Code does so too."""
    verdict = send()
    for pause in PAUSES:
        if verdict.state != "again":
            break
        time.sleep(pause)
        verdict = send()
    return verdict


def with_remedy(settings: Settings, model: str, name: str, found: Report) -> Report:
    """The same report with how to change to the better route; where one word does not do that, none is `better`."""
    if found.better is None:
        return found
    word = found.better.word
    wanted = f"{CLAUDE_ROUTES[word]}/{model}"
    try:
        rows = template_rows(settings, word)
    except ConfigError:  # a broken edit, which doctor names by itself: no word can change anything before it is fixed
        return replace(found, better=None)
    if not any(row["model_name"] == name and row["litellm_params"]["model"] == wanted for row in rows):
        remedy = f"Its row in litellm_config.template.yaml must say {wanted}; an edit is live within seconds."
        return replace(found, remedy=remedy, better=None)
    if settings.claude_route_from == "the environment":  # which beats .env, also in what PM2 runs
        return replace(found, remedy=f"export CLAUDE_ROUTE={word}\nmake stop start")
    remedy = f"Put this line into {settings.folder / '.env'}; it is live within seconds:\nCLAUDE_ROUTE={word}"
    return replace(found, remedy=remedy)
