"""What an error of Cortex means, and what fixes it.

Cortex answers in Snowflake's envelope, with a status that Claude Code's retry logic would often misread, and in words
that name no remedy. `explain` turns one into Anthropic's terms: the status that makes Claude Code do the right thing,
and a message that its user can act on. Pure; used by the proxy for what passes, and by doctor for what it finds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


@dataclass(frozen=True)
class Explained:
    """An error in Anthropic's terms. The first line of `message` says what is wrong, the others what fixes it."""

    status: int
    kind: str
    message: str
    retry: bool  # whether the same request may succeed later


class _Case(NamedTuple):
    status: int  # what Cortex answers; 0 for any
    words: str  # a pattern for its words; the first case that fits counts
    remedy: str
    retry: bool = False
    becomes: int = 0  # the status for Claude Code, where it is another


_KEY = """\
Snowflake does not take this key for this user. The statement that registers it: python3 auto_refresh.py --public-key
If it is registered, this says why (as ACCOUNTADMIN): SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('{uuid}');
394300 is the login name, 394302 or 394303 this machine's clock, 394304 the key, 394307 the account."""

CASES = (
    # As an error, or as the body of a 200 (docs/cortex.md#status-goaway, docs/cortex.md#status-session-token).
    _Case(0, r"^392606 |GOAWAY", "This server of Snowflake is closing; trying another.", retry=True, becomes=503),
    _Case(
        0,
        r"^390112 ",
        "Snowflake has ended the session behind this token; trying again. If it lasts: make doctor",
        retry=True,
        becomes=503,
    ),
    # docs/cortex.md#status-throttled
    _Case(400, r"throttled by remote service", "Cortex is busy; trying again.", retry=True, becomes=429),
    _Case(
        400,
        r"max_tokens is deprecated",
        "LiteLLM runs without the patch. Fix it: python3 patches/apply_patch.py && make stop start",
    ),
    _Case(
        400,
        r"max tokens of \d+ exceeded",
        "Put that number, or a lower one, as max_output_tokens into the model's row of litellm_config.template.yaml.",
    ),
    _Case(
        400,
        r"available in (your|this) region",
        "The model is not in this account's region. As ACCOUNTADMIN:\n"
        "ALTER ACCOUNT SET CORTEX_ENABLED_CROSS_REGION = 'ANY_REGION';",
    ),
    _Case(
        400,
        r"unknown model",
        "Cortex has no such model for this account. Another region may have it; as ACCOUNTADMIN:\n"
        "ALTER ACCOUNT SET CORTEX_ENABLED_CROSS_REGION = 'ANY_REGION';\n"
        "If that is set, give the row another model in litellm_config.template.yaml; `make doctor ARGS=--live` shows "
        "which ones answer.",
    ),
    _Case(
        400,
        r"toolUse|final position",
        "Cortex does not take this conversation's tool calls. /compact or /clear starts afresh; please report it.",
    ),
    # docs/cortex.md#status-unauthorized, docs/cortex.md#status-budget, docs/cortex.md#status-forbidden, and so on
    _Case(401, r"390303|OAuth", "Something on the way changed the token's type: a gateway, or SNOWFLAKE_HOST. " + _KEY),
    _Case(401, r"", _KEY),
    _Case(402, r"", "The budget of this account or user for Cortex is used up: an administrator can raise it."),
    _Case(403, r"003001|not allowed to access this endpoint", "Trial accounts have no Cortex REST API: upgrade it."),
    _Case(
        403,
        r"390422|is not allowed to access Snowflake",
        "A network policy keeps this machine out: use the company's VPN, or have its address allowed\n"
        "(ALTER NETWORK POLICY … SET ALLOWED_IP_LIST …).",
    ),
    _Case(
        403,
        r"Model .*not allowed",
        "The account's list of allowed models leaves this one out. As ACCOUNTADMIN:\n"
        "ALTER ACCOUNT SET CORTEX_MODELS_ALLOWLIST = 'All'; (or add the model to the list)",
    ),
    _Case(
        403,
        r"",
        "The user's default role may not use Cortex. As ACCOUNTADMIN, with that role's name:\n"
        "GRANT DATABASE ROLE SNOWFLAKE.CORTEX_USER TO ROLE <role>; (DESC USER shows DEFAULT_ROLE)",
    ),
    _Case(404, r"", "There is no Cortex at this address. Check the account and SNOWFLAKE_HOST: make doctor"),
    _Case(413, r"", "The request is larger than Cortex takes (20 MiB). /compact makes it smaller."),
    _Case(429, r"", "Cortex limits how much this account may ask at once; trying again.", retry=True),
    _Case(502, r"without content, twice", "The model has nothing to say to this: ask in other words, or /compact."),
    _Case(503, r"left out from now on", "Trying again without it.", retry=True),  # our own words, of what was learnt
    _Case(503, r"timed out", "The model took too long; trying again.", retry=True),
    _Case(
        500,
        r"internal error",
        "Trying again. If the same session fails again and again, /compact or /clear fixes it.",
        retry=True,
    ),
)
# Of the SQL API; what is not here means what it means above.
SQL_CASES = (
    _Case(
        0,
        r"(?i)warehouse",
        "The query needs a warehouse that the user's default role may use. Name one in .env:\n"
        "SNOWFLAKE_WAREHOUSE=COMPUTE_WH",
    ),
    _Case(404, r"", "There is no Snowflake account at this address. Check the account and SNOWFLAKE_HOST: make doctor"),
    _Case(429, r"", "Snowflake limits how much this account may ask at once. Try again in a minute."),
    *(case for case in CASES if case.status == 401 or "390422" in case.words),
)
_LATER = _Case(0, r"", "Trying again. `make doctor` looks for the cause.", retry=True)
_NEVER = _Case(0, r"", "")
_QUERY = _Case(0, r"", "Look closer with: make doctor")
_UUID = re.compile(r"\[([0-9a-f-]{36})\]")
MAX_OUTPUT_TOKENS = 131_072  # docs/cortex.md#chat-output-limit
MAX_WORDS = 2_000  # of a text that comes from outside, as far as a pattern sees it
# How services say that a context is full (docs/cortex.md#status-context-full): Cortex, Anthropic, Bedrock, OpenAI. (Not
# Anthropic's "input length and `max_tokens` exceed context limit": Claude Code knows it, and asks for less output.)
_WINDOW = re.compile(r"max tokens of (?P<window>\d{1,9}) exceeded")
_CONTEXT_FULL = (
    re.compile(r"(?i)prompt is too long(?:: (?P<prompt>\d{1,9}) tokens > (?P<window>\d{1,9}))?"),
    re.compile(r"(?i)maximum context length is (?P<window>\d{1,9}) tokens"),
    re.compile(r"(?i)configured limit of (?P<window>\d{1,9}) tokens"),
    re.compile(r"(?i)input is too long|context_length_exceeded|exceeds? the (?:model's )?(?:maximum )?context"),
    re.compile(r"(?i)too many (?:input|prompt) tokens(?! per)|input (?:token count|tokens) exceeds?"),
)
_MAY_SAY_SO = frozenset({400, 413, 422, 500, 502})  # 502 is also what an error inside a 200 becomes


def context_full(words: str, asked: int | None = None) -> tuple[int, int] | None:
    """(tokens of the prompt, tokens of the window) where an answer's words say that the context is full; 0 for a number
    that they do not tell.

    `asked` is the most output tokens that were asked for: Cortex refuses too many of those in the same words, and a
    number that is not above it is a limit of the output, unless no output may be that long.
    """
    words = words[:MAX_WORDS]
    if found := _WINDOW.search(words):
        window = int(found["window"])
        return (0, window) if asked is None or window > min(asked, MAX_OUTPUT_TOKENS) else None
    for pattern in _CONTEXT_FULL:
        if found := pattern.search(words):
            told = {"prompt": "0", "window": "0", **{key: value or "0" for key, value in found.groupdict().items()}}
            return int(told["prompt"]), int(told["window"])
    return None


def words_of(body: str) -> tuple[str, str]:
    """(code, message) of Snowflake's envelope (docs/cortex.md#status-envelope); another body is its own message, a web
    page is named as one."""
    try:
        envelope = json.loads(body)
        # Anthropic's and OpenAI's shape has its words one level down.
        inner = envelope["error"] if isinstance(envelope.get("error"), dict) else envelope
        code = next((each[key] for each in (envelope, inner) for key in ("code", "error_code") if each.get(key)), "")
        if code or "message" in inner:
            return str(code), str(inner.get("message") or "no words")
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    if re.match(r"\s*<", body):
        return "", "a web page instead of an answer (a log-in page of the network, or another server)"
    return "", " ".join(body.split())[:500] or "no words"


def explain(status: int, body: str, *, asked: int | None = None, count: Callable[[], int] = int) -> Explained:
    """Explain an answer of Cortex by its HTTP status and body.

    `asked` is the most output tokens that were asked for, `count` estimates the tokens of the prompt: where the context
    is full, Claude Code compacts by itself if it is told so in Anthropic's words, with both numbers.
    """
    code, words = words_of(body)
    if status in _MAY_SAY_SO and (full := context_full(words, asked)):
        prompt, window = full
        prompt = max(prompt or count(), window + 1)
        message = f"prompt is too long: {prompt} tokens > {window or prompt - 1} maximum"
        return _explained(400, message, retry=False)
    case = _find(CASES, status, code, words, default=_LATER if status >= 500 else _NEVER)
    return _explained(case.becomes or status, f"Snowflake Cortex: {words}\n{case.remedy}", retry=case.retry)


def explain_query(url: str, status: int, code: str, words: str) -> str:
    """What an error of the SQL API at `url` means and what fixes it, from the status and Snowflake's code and words."""
    case = _find(SQL_CASES, status, code, words, default=_QUERY)
    return f"{url} refused the query ({status}): {' '.join(f'{code} {words}'.split())}\n{case.remedy}"


def _find(cases: Sequence[_Case], status: int, code: str, words: str, *, default: _Case) -> _Case:
    text = f"{code} {words}"[:MAX_WORDS]
    case = next((case for case in cases if case.status in (0, status) and re.search(case.words, text)), default)
    failure = _UUID.search(words)
    return case._replace(remedy=case.remedy.replace("{uuid}", failure[1] if failure else "UUID"))


def explain_failure(status: int, words: str) -> Explained:
    """Explain an error that LiteLLM made itself, because no answer came or none was asked for."""
    # Its class names before its words, and what it says behind them, tell a user nothing.
    words = re.sub(r"^(litellm\.\w+: |\w+Exception - |\w+Error: )+", "", " ".join(words.split()))
    words = words.partition(" LiteLLM: model group ")[0] or "no words"
    if model := re.search(r"model=(\S+)\. There are no healthy deployments", words):
        message = f"no row of litellm_config.template.yaml answers for the model {model[1]}.\nAdd one, or pick: /model"
        return _explained(400, message, retry=False)
    if re.search(r"(?i)connect|timed? ?out|not completed|not whole|ssl|certificate", words):
        message = f"Snowflake Cortex cannot be reached, or broke off: {words}"
        return _explained(502, f"{message}\nNetwork, VPN, DNS or certificates? make doctor", retry=True)
    return _explained(status, words, retry=status >= 500)


def _explained(status: int, message: str, *, retry: bool) -> Explained:
    return Explained(status, KINDS.get(status, "api_error"), message.strip(), retry)
