"""The file for a bug report: what is taken out of its texts, and how they are put together. Pure functions: report.py
reads the texts.

What is private is known by its value (no pattern can tell a user's name from a word), or by its form. Values go first,
because a form could take a piece of one and leave the rest.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from urllib.parse import quote

from bundle.errors import clean, redact

LINES = 100  # of each log
LINE = 500  # characters of a line in the file
SECRETS = frozenset({"key", "passphrase", "token"})  # these are also replaced inside a longer word

# ---------------------------------------------------------------------------------------------------------- by value

_SEPARATOR = re.compile(r"(\s+|[-_./])")
_BEFORE = (
    r"(?:(?<![^\W_])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"  # "\n" and "%2F" end in a letter, but no word begins there
)
_AFTER = r"(?![^\W_])"


def assigned(text: str) -> Iterator[tuple[str, str]]:
    """(name, value) of each line of `.env`, TOML or Python that sets something, also where the file is not valid. A
    line that sets nothing has no name: it may be a secret that was pasted into the wrong place."""
    for line in text.removeprefix("\ufeff").splitlines():
        if found := re.match(r"\s*(?:export\s+)?[\"']?([\w.-]+)[\"']?\s*[=:]\s*(.*)$", line):
            values = {found[2].strip(), found[2].strip().strip("\"'"), found[2].partition(" #")[0].strip().strip("\"'")}
            if found[2][:1] in {'"', "'", "{", "["}:
                values |= set(re.findall(r"[\"']([^\"']+)[\"']", found[2]))
            yield from ((found[1], value) for value in sorted(values) if value)
        elif table := re.match(r"\s*\[+(?:connections\.)?[\"']?([^\]\"']+)[\"']?\]", line):
            yield "", table[1]
        elif line.strip() and not line.lstrip().startswith("#"):
            yield "", line.strip()


def account_names(text: str) -> set[str]:
    """The account as it was written, and its parts: each of them alone would name it."""
    parts = set(re.split(r"[^\w-]+", text)) - {"", "https", "http", "app", "snowflakecomputing", "snowflake", "com"}
    names = {text, *(part for part in parts if len(part) > 2 or len(parts) == 1)}
    for part in parts:
        is_region = len(parts) > 1 and re.search(r"-\d+$", part)  # LOCATOR.eu-central-1
        names |= set() if is_region else set(part.split("-", 1))
    return names - {""}


def without_values(text: str, private: Mapping[str, str]) -> str:
    """The text with each private value replaced by the word for its kind. Of two values the longer one goes first, and
    nothing is replaced inside a word, so that a user called "a" costs no letters."""
    kinds = {form: kind for value, kind in private.items() if value.strip() for form in _forms(value.strip())}
    ordered = sorted(kinds, key=len, reverse=True)
    if not ordered:
        return text
    values = re.compile("|".join(f"({_pattern(form, kinds[form])})" for form in ordered), re.IGNORECASE)
    return values.sub(lambda found: f"[{kinds[ordered[(found.lastindex or 1) - 1]]}]", text)


def _forms(value: str) -> set[str]:
    """How a value may stand in a log: plain, in a URL, in JSON, in Python's quotes, in a shell command."""
    return {
        *(value, quote(value, safe=" /"), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]),
        *(repr(value)[1:-1], shlex.quote(value)[1:-1] if "'" in value else value),
    }


def _pattern(form: str, kind: str) -> str:
    # Claude Code writes /home/jane as -home-jane, hosts have "-" where accounts have "_", logs squeeze spaces.
    parts = [
        r"(?:\s|%20|\+)+"
        if part.isspace()
        else r"(?:[-_./ ]|\\/|%2F)"
        if _SEPARATOR.fullmatch(part)
        else re.escape(part)
        for part in _SEPARATOR.split(form)
    ]
    inside = kind in SECRETS and len(form) >= 8
    before = _BEFORE if form[0].isalnum() and not inside else ""
    return f"{before}{''.join(parts)}{_AFTER if form[-1].isalnum() and not inside else ''}"


# ----------------------------------------------------------------------------------------------------------- by form

# Each has a bound or a fixed beginning, so that the time grows in line with the text.
_FORMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\x1b\[[0-9;]*[A-Za-z]", ""),
        (r"-----BEGIN [\s\S]{1,10000}?-----END [^\n-]{1,50}-----", "[key]"),
        (r"[^\n]{0,100}\n[^\n]{0,100}-----END [^\n]*", "[key]"),  # the log begins in the middle of a key
        (r"\bSHA256:[\w+/=-]+", "[fingerprint]"),
        (r"\bsk-[\w-]{6,}", "[key]"),
        (r"(?i)\bbearer\s+[^\s\"',\[]+", "Bearer [token]"),
        (
            r"(?i)((?:password|passphrase|passwd|pwd|secret|api_?key|token)[\"']?=[\"']?)(?!\d+\b|\[)[^\s\"']+",
            r"\1[secret]",
        ),
        (r"(?<=://)[^\s/@\"']{1,200}@", ""),
        (r"[\w.+%-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,5}", "[e-mail]"),
        (r"(?i)[\w.\[\]-]{1,200}?\.snowflakecomputing\.(?:com|cn)\b", "[host]"),
        (r"(?i)\bapp\.snowflake\.(?:com|cn)/[^\s\"']+", "app.snowflake.com/[account]"),
        (r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", "[id]"),
        (r"(?i)(request[_ -]?id[\"']?\s?[:=]\s?[\"']?)[\w-]+", r"\1[id]"),
        (r"(?i)\b(?:req|msg|toolu|chatcmpl|call|resp)[_-][\w-]{8,}", "[id]"),
        (r"\b[0-9a-f]{24,}\b", "[id]"),
        (r"[A-Za-z0-9+/]{40,}={0,2}", "[key]"),
        (r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[A-Z])(?=[\w-]*[a-z])[\w-]{40,}", "[key]"),
    )
]
_PATH = re.compile(
    r"(?P<quote>['\"`])(?P<quoted>(?:~|\[home\])?/(?!/)[^'\"`\n]+)(?P=quote)"
    r"|(?<![\w.\]/~<-])(?P<plain>(?:file://|~|\[home\])?/(?!/)[^\s'\"`,;:()<>|\[\]]+)"
)
# Folders that every machine has, the paths of requests, Claude Code's commands, and files whose names tell nothing.
_HARMLESS = re.compile(
    r"/(?:usr|bin|sbin|lib|lib64|dev|proc|sys|System|opt/homebrew|v1|api|health|model|login|compact|clear)(?:[/?]|$)"
    r"|(?:~|\[home\])/(?:\.ssh/snowflake_key\.(?:p8|pub)|\.claude/settings\.json|\.claude\.json|\.pm2"
    r"|\.snowflake(?:/(?:connections|config)\.toml)?)$"
)
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])")


def without_forms(text: str) -> str:
    """The text without what looks private: tokens, keys, fingerprints, e-mails, ids, hosts, paths and addresses."""
    text = redact(text)
    for pattern, replacement in _FORMS:
        text = pattern.sub(replacement, text)
    text = _PATH.sub(_without_path, text)
    text = _IPV4.sub(lambda found: found[0] if found[0].startswith("127.") else "[address]", text)
    return _IPV6.sub(_without_address, text)


def _without_path(found: re.Match[str]) -> str:
    mark, path = found["quote"] or "", found["quoted"] or found["plain"]
    return found[0] if _HARMLESS.match(path) else f"{mark}[path]{mark}"


def _without_address(found: re.Match[str]) -> str:
    with suppress(ValueError):
        if found[0] not in {"::", "::1"} and ipaddress.IPv6Address(found[0]).packed:
            return "[address]"
    return found[0]


# --------------------------------------------------------------------------------------------------------- of prompts

_FIELD = re.compile(
    r"([\"'](?:content|text|input|arguments|prompt|system|thinking|messages|description)[\"']\s?:\s?)[^\n]+"
)
_QUOTED = re.compile(r"(?<!\w)(?:\"[^\"\n]{12,}\"|'[^'\n]{12,}'|`(?!make )[^`\n]{12,}`|“[^”\n]{12,}”)(?!\w)")
_CORTEX = re.compile(r"(Snowflake Cortex: )([^\n]*)")
_WORD = re.compile(r"\w[\w.-]*")
_NUMBER = re.compile(r"\d{1,7}\.?")


def without_prompts(text: str, known: Set[str]) -> str:
    """The text without pieces of a request: errors of Cortex and of LiteLLM may quote one. Of Cortex's words only those
    stay that are in `known`, in lower case: the words of errors and fields that Cortex is known to use."""
    text = _CORTEX.sub(lambda found: f"{found[1]}{_only(known, found[2])}", text)
    text = _FIELD.sub(r"\1[text]", text)
    return _QUOTED.sub(lambda found: "[text]" if " " in found[0] else found[0], text)


def _only(known: Set[str], words: str) -> str:
    def keep(found: re.Match[str]) -> str:
        is_known = found[0].lower().strip(".-") in known or _NUMBER.fullmatch(found[0])
        return found[0] if is_known else "…"

    kept = _WORD.sub(keep, words)
    return re.sub(r"…(?:[\s,.'\"]*…)+", "…", kept)


def words_of(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return {word.lower().strip(".-") for word in _WORD.findall(text)}


# --------------------------------------------------------------------------------------------------------- the whole


def safe(text: str, private: Mapping[str, str]) -> str:
    """The text as it may stand in the file."""
    lines = without_forms(without_values(text, private)).splitlines()
    return "\n".join(clean(line, LINE).rstrip() for line in lines).replace("```", "'''")


def compose(sections: Mapping[str, str]) -> str:
    """The file: a heading and a block for each section. Their texts must be safe."""
    blocks = [f"## {title}\n\n```text\n{text.strip() or 'nothing'}\n```\n" for title, text in sections.items()]
    return "\n".join(["# Claude Code on Snowflake Cortex: for a bug report\n", *blocks])
