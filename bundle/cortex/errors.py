"""Explains an error of Cortex: what it means, and how to fix it.

The problem: Cortex's errors have Snowflake's form, a status that Claude Code would often misread, and words that do not
say how to fix the problem. The mechanism: `explain` looks up the status and the words in a table (CASES). It returns a
status on which Claude Code tries again or stops, as it should, and a message that the user can act on. Pure functions,
used by the proxy, by doctor and by usage.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    """An error in Anthropic's terms. The first line of `message` says what is wrong; the others say how to fix it."""

    status: int
    kind: str
    message: str
    retry: bool  # whether the same request may succeed later


class _Case(NamedTuple):
    status: int  # Cortex's status; 0 stands for any status
    words: str  # a pattern for Cortex's code and message; the first case that fits counts
    remedy: str  # its commands have the places {make} and {folder}
    retry: bool = False
    becomes: int = 0  # the status for Claude Code, if it differs from Cortex's
    of_model: bool = False  # Cortex refuses the model, whatever the request says: another one may answer


# Remedies that are too long for a line of the tables below.
_KEY = """\
Snowflake does not accept this key for this user. This shows the statement that registers it:
python3 {folder}auto_refresh.py --public-key
If it is registered, this shows the reason (as ACCOUNTADMIN): SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('{uuid}');
394300 means a wrong login name, 394302 or 394303 a wrong clock here, 394304 a wrong key, 394307 a wrong account."""
_PAT = """\
Snowflake does not accept this programmatic access token: it has ended, was disabled or removed, has lost its role, \
or is of another account. In Snowsight, this shows which: SHOW USER PROGRAMMATIC ACCESS TOKENS;
To make a new one: ALTER USER ADD PROGRAMMATIC ACCESS TOKEN claude_cortex_2 DAYS_TO_EXPIRY = 90;
Put it in the place of the old one, where it is used within seconds; or paste it here: python3 {folder}configure.py"""
_PAT_POLICY = """\
Snowflake takes a programmatic access token only from a user who has a network policy. An administrator can set one:
ALTER USER <user> SET NETWORK_POLICY = <policy>; or allow such tokens without one, in an authentication policy:
PAT_POLICY = (NETWORK_POLICY_EVALUATION = ENFORCED_NOT_REQUIRED)"""
_SESSION = "Snowflake has ended the session behind this token; trying again. If this continues, run: {make} doctor"
_PATCH = "LiteLLM runs without the patch. Fix it: python3 {folder}patches/apply_patch.py && {make} stop start"
_OUTPUT = (
    "In litellm_config.template.yaml, set max_output_tokens in the model's row to the number in this message, or lower."
)
_CALLS = "Cortex refused the tool calls. Use /compact or /clear, and please report this."
_REGION = "As ACCOUNTADMIN:\nALTER ACCOUNT SET CORTEX_ENABLED_CROSS_REGION = 'ANY_REGION';"
_MODEL = f"""\
Cortex has no such model for this account. Another region may have it. {_REGION}
If that is set already, choose another model in litellm_config.template.yaml: `{{make}} models` shows which ones \
the account has."""
_ADDRESS = """\
A network policy blocks this machine. Use the company's VPN, or ask for this machine's address to be allowed
(ALTER NETWORK POLICY … SET ALLOWED_IP_LIST …)."""
_ALLOWED_MODELS = """\
This model is not on the account's list of allowed models. As ACCOUNTADMIN:
ALTER ACCOUNT SET CORTEX_MODELS_ALLOWLIST = 'All'; (or add the model to the list)"""
_ROLE = """\
The user's default role (or the role of a restricted access token) may not use Cortex. As ACCOUNTADMIN, with its name:
GRANT DATABASE ROLE SNOWFLAKE.CORTEX_USER TO ROLE <role>; (DESC USER shows DEFAULT_ROLE)"""
_WAREHOUSE = """\
The query needs a warehouse that the user's default role may use. Name one in .env:
SNOWFLAKE_WAREHOUSE=COMPUTE_WH"""

CASES = (
    # As an error, or as the body of a 200 (docs/cortex.md#status-goaway, docs/cortex.md#status-session-token).
    _Case(0, r"^392606 |GOAWAY", "This server of Snowflake is shutting down; trying another.", retry=True, becomes=503),
    _Case(0, r"^390112 ", _SESSION, retry=True, becomes=503),
    # docs/cortex.md#status-throttled
    _Case(400, r"throttled by remote service", "Cortex is busy; trying again.", retry=True, becomes=429),
    _Case(400, r"max_tokens is deprecated", _PATCH),
    _Case(400, r"max tokens of \d+ exceeded", _OUTPUT),
    _Case(
        400, r"available in (your|this) region", f"This model is not in the account's region. {_REGION}", of_model=True
    ),
    _Case(400, r"unknown model", _MODEL, of_model=True),
    _Case(400, r"toolUse|final position", _CALLS),
    # docs/cortex.md#pat-policy, docs/cortex.md#pat-refused
    _Case(401, r"390432|policy is required", _PAT_POLICY),
    _Case(401, r"394400|Programmatic access token", _PAT),
    # docs/cortex.md#status-unauthorized, docs/cortex.md#status-budget, docs/cortex.md#status-forbidden, and so on
    _Case(401, r"390303|OAuth", "A gateway or a wrong SNOWFLAKE_HOST may have changed the token's type. " + _KEY),
    _Case(401, r"", _KEY),
    _Case(402, r"", "The Cortex budget of this account or user is spent: an administrator can raise it."),
    _Case(403, r"003001|not allowed to access this endpoint", "Trial accounts have no Cortex: upgrade the account."),
    _Case(403, r"390422|is not allowed to access Snowflake", _ADDRESS),
    _Case(403, r"Model \S+ not allowed", _ALLOWED_MODELS, of_model=True),
    _Case(403, r"", _ROLE),
    _Case(404, r"", "There is no Cortex at this address. Check the account and SNOWFLAKE_HOST: {make} doctor"),
    _Case(413, r"", "The request is larger than Cortex accepts (20 MiB). /compact makes it smaller."),
    _Case(429, r"", "Cortex limits how much this account may ask at once; trying again.", retry=True),
    _Case(502, r"without content, twice", "The model's answer was empty twice. Ask in other words, or use /compact."),
    _Case(503, r"left out from now on", "Trying again without that field.", retry=True),  # (from hooks.py)
    _Case(503, r"answers from now on", "Trying again with that model.", retry=True),  # (from hooks.py)
    _Case(503, r"timed out", "The model took too long; trying again.", retry=True),
    _Case(500, r"internal error", "Trying again. If a session fails repeatedly, use /compact or /clear.", retry=True),
)
# Errors of the SQL API. Two kinds mean the same as for Cortex: a refused key, and a network policy.
SQL_CASES = (
    _Case(0, r"(?i)warehouse", _WAREHOUSE),
    _Case(
        404, r"", "There is no Snowflake account at this address. Check the account and SNOWFLAKE_HOST: {make} doctor"
    ),
    _Case(429, r"", "Snowflake limits how much this account may ask at once. Try again in a minute."),
    *(case for case in CASES if case.status == 401 or "390422" in case.words),
)
# For errors that no case fits.
_ANY_5XX = _Case(0, r"", "Trying again. `{make} doctor` looks for the cause.", retry=True)
_ANY_4XX = _Case(0, r"", "")
_ANY_QUERY = _Case(0, r"", "To find the cause, run: {make} doctor")
_UUID = re.compile(r"\[([0-9a-f-]{36})\]")
MAX_OUTPUT_TOKENS = 131_072  # docs/cortex.md#chat-output-limit
MAX_CHARACTERS = 2_000  # patterns look only at the beginning of a text that comes from outside, so that they stay fast
# How services say that a context is full (docs/cortex.md#status-context-full): Cortex, Anthropic, Bedrock, OpenAI.
# Anthropic's "input length and `max_tokens` exceed context limit" is not here: Claude Code itself then asks for less.
_WINDOW = re.compile(r"max tokens of (?P<window>\d{1,9}) exceeded")
_CONTEXT_FULL = (
    re.compile(r"(?i)prompt is too long(?:: (?P<prompt>\d{1,9}) tokens > (?P<window>\d{1,9}))?"),
    re.compile(r"(?i)maximum context length is (?P<window>\d{1,9}) tokens"),
    re.compile(r"(?i)configured limit of (?P<window>\d{1,9}) tokens"),
    re.compile(r"(?i)input is too long|context_length_exceeded|exceeds? the (?:model's )?(?:maximum )?context"),
    re.compile(r"(?i)too many (?:input|prompt) tokens(?! per)|input (?:token count|tokens) exceeds?"),
)
_CONTEXT_FULL_STATUSES = frozenset({400, 413, 422, 500, 502})  # hooks.py turns an error inside a 200 into a 502


def context_full(words: str, asked: int | None = None) -> tuple[int, int] | None:
    """Returns (tokens of the prompt, tokens of the window) if the text of an answer says that the context is full, else
    None. 0 stands for a number that the text does not give.

    `asked` is the maximum of output tokens that the request asked for. Cortex's "max tokens of N exceeded" has two
    meanings. If N is at most `asked` and at most 131072, N is the model's output limit. Otherwise N is the window.
    """
    words = words[:MAX_CHARACTERS]
    if found := _WINDOW.search(words):
        window = int(found["window"])
        return (0, window) if asked is None or window > min(asked, MAX_OUTPUT_TOKENS) else None
    for pattern in _CONTEXT_FULL:
        if found := pattern.search(words):
            numbers = found.groupdict()
            return int(numbers.get("prompt") or 0), int(numbers.get("window") or 0)
    return None


def words_of(body: str) -> tuple[str, str]:
    """(code, message) of Snowflake's envelope (docs/cortex.md#status-envelope). For a web page, the message
    says that it is one. Any other body is returned as the message. Both are one line of bounded length."""
    try:
        envelope = json.loads(body)
        # Anthropic and OpenAI put the message inside `error`.
        inner = envelope["error"] if isinstance(envelope.get("error"), dict) else envelope
        code = next((each[key] for each in (envelope, inner) for key in ("code", "error_code") if each.get(key)), "")
        if code or "message" in inner:
            return str(code)[:100], _one_line(str(inner.get("message") or ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    if body[:MAX_CHARACTERS].lstrip().startswith("<"):
        return "", "a web page instead of an answer (a log-in page of the network, or another server)"
    return "", _one_line(body[:500])


def as_pat(status: int, body: str) -> str:
    """The body of an answer to a request with a programmatic access token. A refusal gets words that say what was
    refused: of a token, Snowflake's words do not always tell its type (docs/cortex.md#pat-refused)."""
    if status != 401:
        return body
    code, words = words_of(body)
    kind = "Programmatic access token"
    return json.dumps({"code": code, "message": words if kind in words else f"{kind}: {words}"})


def _one_line(text: str) -> str:
    """The beginning of a text that comes from outside: a newline in it could forge a line of a log."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:MAX_CHARACTERS])
    return " ".join(plain.split()) or "no words"


def commands(text: str, folder: Path | None = None) -> str:
    """The text with its commands: such that work in every folder, or without `folder`, in the bundle's own."""
    if folder is None:
        return text.replace("{make}", "make").replace("{folder}", "")
    quoted = shlex.quote(str(folder))
    return text.replace("{make}", f"make -C {quoted}").replace("{folder}", f"{quoted}/")


def explain(
    status: int,
    body: str,
    folder: Path | None = None,
    *,
    asked: int | None = None,
    count: Callable[[], int] = lambda: 0,
) -> Explained:
    """Explain an answer of Cortex by its HTTP status and body. `folder` is the bundle's, for the commands.

    `asked` is the maximum of output tokens that the request asked for, and `count` estimates the tokens of the prompt.
    Both are used only if the context is full: Claude Code then compacts the conversation by itself, if the message is
    Anthropic's "prompt is too long" with two numbers (docs/cortex.md#status-context-words).
    """
    code, words = words_of(body)
    if status in _CONTEXT_FULL_STATUSES and (full := context_full(words, asked)):
        prompt, window = full
        prompt = max(prompt or count(), window + 1)
        message = f"prompt is too long: {prompt} tokens > {window or prompt - 1} maximum"
        return _explained(400, message, retry=False)
    case = _find(CASES, status, code, words, folder, default=_ANY_5XX if status >= 500 else _ANY_4XX)
    return _explained(case.becomes or status, f"Snowflake Cortex: {words}\n{case.remedy}", retry=case.retry)


def refuses_model(status: int, body: str) -> bool:
    """Whether an answer of Cortex refuses the model itself: not known, not allowed, or not in the region. (Something
    else than a model may not be in the region either.)"""
    code, words = words_of(body)
    return "model" in words.lower() and _find(CASES, status, code, words, None, default=_ANY_4XX).of_model


def explain_query(url: str, status: int, code: str, words: str, folder: Path | None = None) -> str:
    """Explain an error of the SQL API at `url` by its status and by Snowflake's code and words."""
    case = _find(SQL_CASES, status, code, words, folder, default=_ANY_QUERY)
    return f"{url} refused the query ({status}): {' '.join(f'{code} {words}'.split())}\n{case.remedy}"


def _find(cases: Sequence[_Case], status: int, code: str, words: str, folder: Path | None, *, default: _Case) -> _Case:
    text = f"{code} {words}"[:MAX_CHARACTERS]
    case = next((case for case in cases if case.status in (0, status) and re.search(case.words, text)), default)
    uuid = _UUID.search(words)
    return case._replace(remedy=commands(case.remedy, folder).replace("{uuid}", uuid[1] if uuid else "UUID"))


def explain_failure(status: int, words: str, failure: str = "", folder: Path | None = None) -> Explained:
    """Explain an error of LiteLLM itself: Cortex was not asked, or did not answer. `failure` says what happened to the
    connection, if that was the reason. The words cannot tell: a tool may be called mcp__db__connect."""
    if failure:
        message = f"Snowflake Cortex cannot be reached, or broke off: {failure}"
        remedy = commands("Check network, VPN, DNS and certificates: {make} doctor", folder)
        return _explained(502, f"{message}\n{remedy}", retry=True)
    # LiteLLM's class names at the start and its details at the end do not help the user.
    words = re.sub(r"^(litellm\.\w+: |\w+Exception - |\w+Error: )+", "", _one_line(words))
    words = words.partition(" LiteLLM: model group ")[0] or "no words"
    before, no_row, _ = words.partition(". There are no healthy deployments")
    if no_row:
        model = before.rpartition("model=")[2]
        message = f"no row of litellm_config.template.yaml answers for the model {model}.\nAdd one, or pick: /model"
        return _explained(400, message, retry=False)
    return _explained(status, words, retry=status >= 500 or status == 408)


def _explained(status: int, message: str, *, retry: bool) -> Explained:
    return Explained(status, KINDS.get(status, "api_error"), message.strip(), retry)
