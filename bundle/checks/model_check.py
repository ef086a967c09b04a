"""Does a model answer what Claude Code sends? If one route of Cortex refuses it, does the other route accept it?

A minimal test request is not enough: Cortex answered such a request while it refused every request of Claude Code (for
example, thinking without a temperature). So the request here contains one example of everything that Claude Code sends.
An answer is accepted only if it is complete: its last event came, and it contains text or a tool call. Only `check` and
`ask_cortex` send requests; the other functions are pure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import httpx

from bundle.bootstrap import BUNDLE, make
from bundle.cortex.answers import ChatAnswer, EventLines, IncompleteAnswerError, MessagesAnswer, RequestFacts
from bundle.cortex.errors import explain
from bundle.cortex.messages import messages_request
from bundle.cortex.models import JSON, MARK, MIN_BUDGET, Limits
from bundle.cortex.requests import chat_request
from bundle.errors import ConfigError
from bundle.network import transport_to
from bundle.proof import listener
from bundle.render import template_rows
from bundle.settings import CLAUDE_ROUTES, Settings
from bundle.tokens import auth_headers, token_now


@dataclass(frozen=True)
class Route:
    """A route to a Claude model: its value in CLAUDE_ROUTE, its name in a sentence, and its path on Cortex."""

    word: str
    name: str
    path: str


CHAT = Route("chat", "chat completions", "/api/v2/cortex/v1/chat/completions")
MESSAGES = Route("messages", "the Messages API", "/api/v2/cortex/v1/messages")

VERSION = {"anthropic-version": "2023-06-01"}
# The betas that Claude Code sends after point_claude.py has switched the experimental betas off.
BETAS = ("claude-code-20250219", "interleaved-thinking-2025-05-14")
HEADERS = {**VERSION, "anthropic-beta": ",".join(BETAS)}
# Unused tokens cost nothing. The limit must be larger than the budget that Cortex makes of an effort, which is not
# documented: with a much lower limit, Cortex could refuse this request but accept Claude Code's own requests.
MAX_TOKENS = 5000
ANSWER_SECONDS = 90.0
PAUSES: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 2.0)  # a route may refuse several fields, one in each answer

_STRING: JSON = {"type": "string"}


def _object(properties: JSON, *required: str) -> JSON:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _tool(name: str, description: str, properties: JSON, required: str) -> JSON:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_object(properties, required)}
    return {"name": name, "description": description, "input_schema": schema}


_OFFSET: JSON = {"type": "integer", "minimum": 0, "maximum": 9007199254740991}
_COMMAND: JSON = {"command": {**_STRING, "description": "The command"}, "timeout": {"type": "number"}}
_STATUS: JSON = {**_STRING, "enum": ["pending", "completed"]}
_TODO = _object({"content": {**_STRING, "minLength": 1}, "status": _STATUS}, "content", "status")
TOOLS = (
    _tool("Bash", "Runs a command in a shell.", _COMMAND, "command"),
    _tool("Read", "Reads a file.", {"file_path": _STRING, "offset": _OFFSET}, "file_path"),
    _tool("TodoWrite", "Keeps a list of things to do.", {"todos": {"type": "array", "items": _TODO}}, "todos"),
)


def request(model: str) -> JSON:
    """What Claude Code would send. The expected answer is one word."""
    system = [
        {"type": "text", "text": "You are Claude Code, Anthropic's official CLI for Claude."},
        {"type": "text", "text": "You help with programming. Answer as briefly as you can.", "cache_control": MARK},
    ]
    content = [
        {"type": "text", "text": "<system-reminder>\nThis is a check of the connection.\n</system-reminder>"},
        {"type": "text", "text": "Say OK, and use no tool.", "cache_control": MARK},
    ]
    return {
        "model": model,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "thinking": {"type": "enabled", "budget_tokens": MIN_BUDGET},
        "system": system,
        "tools": [*TOOLS],
        "messages": [{"role": "user", "content": content}],
        "metadata": {"user_id": "doctor"},
    }


def for_cortex(route: Route, model: str) -> tuple[JSON, dict[str, str]]:
    """The same request as the proxy would send it on this route, with its headers."""
    claude_request = request(model)
    if route is MESSAGES:
        body, betas, *_ = messages_request(claude_request, limits=Limits(), betas=BETAS)
        return body, {**VERSION, **({"anthropic-beta": ",".join(betas)} if betas else {})}
    body, *_ = chat_request(_as_openai(claude_request), family="claude", limits=Limits())
    return body, {}


def _as_openai(body: JSON) -> JSON:
    """The request in OpenAI's format, as LiteLLM makes it; the patch renames the limit to `max_completion_tokens`."""

    def function(tool: JSON) -> JSON:
        return {"name": tool["name"], "description": tool["description"], "parameters": tool["input_schema"]}

    return {
        **{key: body[key] for key in ("model", "stream", "thinking")},
        "max_completion_tokens": body["max_tokens"],
        "messages": [{"role": "system", "content": body["system"]}, *body["messages"]],
        "tools": [{"type": "function", "function": function(tool)} for tool in body["tools"]],
    }


@dataclass(frozen=True)
class Verdict:
    """The result of a request. `state` is "good" for a complete answer, "again" if the same request may succeed later,
    "refused" if this route does not accept the request and no setting of the account explains that, and "failed"
    otherwise. The first line of `words` says what is wrong, the other lines say what fixes it. `left_out` names the
    fields that the proxy has removed from the request, because Cortex refuses them. `model` is the model that has
    answered. If it stands in for a newer one, `newer` has the status and the words with which Cortex refuses that."""

    state: Literal["good", "again", "refused", "failed"]
    words: str = ""
    left_out: tuple[str, ...] = ()
    model: str = ""
    newer: str = ""


def of_proxy(status: int, headers: Mapping[str, str], text: str) -> Verdict:
    """The result of an answer of the proxy. The names in `headers` are in lower case. Raises ValueError, LookupError or
    TypeError for an answer that the proxy never sends."""
    if status == 200:
        if (verdict := _of_stream(MESSAGES, text)).state != "good":
            return verdict
        names = [name.strip() for name in headers.get("x-cortex-left-out", "").split(",")]
        model, newer = (headers.get(f"x-cortex-{name}", "") for name in ("model", "refused"))
        return replace(verdict, left_out=tuple(filter(None, names)), model=model, newer=newer)
    message = str(json.loads(text)["error"]["message"])
    # (Claude Code retries on the same statuses.)
    retry = headers.get("x-should-retry") != "false" and (status >= 429 or status in {401, 408, 409})
    return _of_error(status, message, retry=retry)


def of_cortex(route: Route, status: int, text: str) -> Verdict:
    """The result of an answer that comes directly from Cortex."""
    if status == 200:
        return _of_stream(route, text)
    error = explain(status, text, BUNDLE, asked=MAX_TOKENS)
    return _of_error(error.status, error.message, retry=error.retry)


def _of_error(status: int, message: str, *, retry: bool) -> Verdict:
    if retry:
        return Verdict("again", message)
    # A message with a second line names its own fix (a region, the list of models, the patch): no other route helps.
    has_fix = "\n" in message.strip()
    return Verdict("refused" if status == 400 and not has_fix else "failed", message)


def _of_stream(route: Route, text: str) -> Verdict:
    """The result of a stream, which is read with the same code as in the proxy."""
    lines = EventLines()
    reader = MessagesAnswer() if route is MESSAGES else ChatAnswer(RequestFacts(MAX_TOKENS))
    try:
        for data in [*lines.feed(text.encode()), *lines.end()]:
            list(reader.feed(data))
        list(reader.end())
    except IncompleteAnswerError as error:
        return Verdict("again", str(error))
    return Verdict("good")


@dataclass(frozen=True)
class Report:
    """The result for one model. `answers` is "in part" if Cortex refuses a field and the proxy removes that field.
    `better` is the other route if it accepts the whole request and this route does not. `model` is the model that
    answers, if it is not the one that the row has."""

    answers: Literal["whole", "in part", "no"]
    found: str
    remedy: str = ""
    better: Route | None = None
    model: str = ""


def report(here: Verdict, route: Route | None, there: Verdict | None = None) -> Report:
    """Combine the results of the proxy (`here`) and of the other route (`there`, None if it was not tested). `route` is
    the proxy's route, or None if the model has only one route."""
    if here.state == "good" and not here.left_out:
        return Report("whole", "answers")
    answers: Literal["in part", "no"] = "in part" if here.state == "good" else "no"
    problem, _, remedy = here.words.partition("\n")
    names = " and ".join(f"`{name}`" for name in here.left_out)
    if route is None or here.state not in {"good", "refused"}:
        return Report(answers, f"answers without {names}, which Cortex refuses" if names else problem, remedy)
    found = f"Cortex refuses {names or f'what Claude Code sends ({_bare(problem)})'} on {route.name}"
    if there is None:
        return Report(answers, found, remedy)
    other = other_route(route)
    if there.state == "good":
        return Report(answers, f"{found} and takes {'it' if names else 'that'} on {other.name}", better=other)
    problem, _, remedy = there.words.partition("\n")
    return Report(answers, f"{found}, and on {other.name}: {_bare(problem)}", remedy)


def with_successor(found: Report, here: Verdict, model: str, row: str) -> Report:
    """Say in a report that another model answers in place of the row's `model`. `row` is the name of the row."""
    if here.state != "good" or here.model in {"", model}:
        return found
    status, _, words = here.newer.partition(" ")
    remedy = explain(int(status or 0), words, BUNDLE).message.partition("\n")[2]
    own = f"Then: {make('stop', 'start')}\nTo stay with {here.model}, write it in place of `newest` in the row {row}."
    said = f"{here.model} answers in place of {model}, which Cortex refuses: {words}"
    if found.answers != "whole":
        said, own = f"{said}. {found.found}", f"{own}\n{found.remedy}"
    return replace(found, found=said, remedy=f"{remedy}\n{own}".strip(), model=here.model)


def other_route(route: Route) -> Route:
    return MESSAGES if route is CHAT else CHAT


def _bare(words: str) -> str:
    return words.removeprefix("Snowflake Cortex: ").rstrip(".")


def check(settings: Settings, master_key: str, model: str, name: str, *, has_routes: bool) -> Report:
    """Send Claude Code's request for the row `name` through the proxy. If the row's route refuses it, try the other
    route, directly at Cortex. `has_routes`: the model is a model of Cortex."""
    body, url = request(name.replace("*", "doctor")), f"http://127.0.0.1:{settings.proxy_port}/v1/messages?beta=true"

    def through_the_proxy() -> Verdict:
        if (found := listener(settings.proxy_port, master_key)).state != "ours":
            raise ConfigError(f"{found.found}\n{found.fix}")
        answer = post(url, body, {**HEADERS, "Authorization": f"Bearer {master_key}"})
        return of_proxy(answer.status_code, answer.headers, answer.text)

    try:
        here = patiently(through_the_proxy)
    except ConfigError as error:
        found, _, fix = str(error).partition("\n")
        return Report("no", found, fix)
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        return Report("no", f"no answer through the proxy ({type(error).__name__})", f"See why: {make('logs')}")
    provider, _, bare = model.partition("/")
    route = {"openai": CHAT, "snowflake": MESSAGES}.get(provider) if has_routes and bare.startswith("claude") else None
    if route is None or not (here.left_out or here.state == "refused"):
        return with_successor(report(here, route), here, bare, name)
    there = ask_cortex(settings, here.model or bare, other_route(route))
    return with_successor(with_remedy(settings, bare, name, report(here, route, there)), here, bare, name)


def ask_cortex(settings: Settings, model: str, route: Route) -> Verdict | None:
    """The result of the request on a route, directly at Cortex. None if Cortex cannot be reached."""
    body, headers = for_cortex(route, model)

    def directly() -> Verdict:
        answer = post(settings.base_url + route.path, body, {**headers, **auth_headers(token)})
        return of_cortex(route, answer.status_code, answer.text)

    try:
        token = token_now(settings, time.time())
        return patiently(directly)
    except (httpx.HTTPError, ConfigError):
        return None


def post(url: str, body: JSON, headers: Mapping[str, str], seconds: float = ANSWER_SECONDS) -> httpx.Response:
    with httpx.Client(transport=transport_to(url), timeout=httpx.Timeout(seconds, connect=5)) as client:
        return client.post(url, headers=headers, json=body)


def patiently(send: Callable[[], Verdict]) -> Verdict:
    """Send a request, and repeat it a few times while it may succeed later. Claude Code does the same."""
    for pause in PAUSES:
        if (verdict := send()).state != "again":
            return verdict
        time.sleep(pause)
    return send()


def with_remedy(settings: Settings, model: str, name: str, found: Report) -> Report:
    """Add to a report how to change to the better route. `better` becomes None if a new CLAUDE_ROUTE would not help."""
    if found.better is None:
        return found
    word, wanted = found.better.word, f"{CLAUDE_ROUTES[found.better.word]}/{model}"
    try:
        rows = template_rows(settings, word)
    except ConfigError:  # the template is not valid; the check `template` shows the error
        return replace(found, better=None)
    if not any(row["model_name"] == name and row["litellm_params"]["model"] == wanted for row in rows):
        remedy = f"Its row in litellm_config.template.yaml must say {wanted}. The change takes effect within seconds."
        return replace(found, remedy=remedy, better=None)
    if settings.claude_route_from == "the environment":  # it has priority over .env, also for the processes of PM2
        return replace(found, remedy=f"export CLAUDE_ROUTE={word}\n{make('stop', 'start')}")
    remedy = f"Put this line into {settings.folder / '.env'}. It takes effect within seconds:\nCLAUDE_ROUTE={word}"
    return replace(found, remedy=remedy)
