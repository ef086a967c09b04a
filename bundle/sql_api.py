"""Snowflake's SQL API: runs a statement as the configured user and explains errors (docs/cortex.md#sql-api)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from bundle.bootstrap import BUNDLE, make
from bundle.cortex.errors import as_pat, explain_query, words_of
from bundle.network import company_proxy, redirected, transport_to, why_unreachable
from bundle.settings import Settings
from bundle.tokens import auth_headers, token_now

STATEMENTS = "/api/v2/statements"
MAX_ANSWER_BYTES = 32 * 2**20  # a year of usage is a few hundred kilobytes
SLACK_SECONDS = 60  # for the answers themselves, beside the waiting for a statement
PATIENCE_SECONDS = 600  # a suspended warehouse and a large view take minutes, not hours
DOCTOR = f"Find the cause with: {make('doctor')}"
NOT_THE_API = f"text that is not from Snowflake's SQL API, perhaps from a login page or a proxy.\n{DOCTOR}"


class QueryError(Exception):
    """The query failed. `str()` is the whole message with the remedy; `code` and `detail` are Snowflake's."""

    def __init__(self, message: str, code: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.code, self.detail = code, detail


def query(
    settings: Settings, sql: str, sleep: Callable[[float], None] = time.sleep, *, patience: float = PATIENCE_SECONDS
) -> list[dict[str, str | None]]:
    """Run one statement as the configured user, for at most `patience` seconds. Returns one dict (column: text) per
    row. Raises QueryError, ConfigError."""
    headers = auth_headers(token_now(settings, time.time()))
    headers |= {"Accept": "application/json", "User-Agent": "claude-code-on-snowflake-cortex"}
    body: dict[str, Any] = {"statement": sql, "timeout": int(patience)}
    if settings.warehouse:
        body["warehouse"] = settings.warehouse
    try:
        with httpx.Client(
            headers=headers, timeout=min(60, patience), transport=transport_to(settings.base_url)
        ) as client:
            read = partial(_answer, client, time.monotonic() + patience + SLACK_SECONDS)
            answer = read("POST", settings.base_url + STATEMENTS, json=body)
            waited, pause = 0.0, 0.5
            while answer.status_code == 202:
                if waited >= patience:
                    raise QueryError(
                        f"the query is still running after {patience:g} s. Try again later, or ask for less."
                    )
                sleep(pause)
                waited, pause = waited + pause, min(pause * 1.5, 5.0)
                answer = read("GET", _own_url(settings, _document(settings, answer).get("statementStatusUrl")))
            first = _document(settings, answer)
            meta, rows = first["resultSetMetaData"], list(first["data"])
            for number in range(1, len(meta.get("partitionInfo", [None]))):
                url = _own_url(settings, f"{STATEMENTS}/{first['statementHandle']}")
                rows += _document(settings, read("GET", url, params={"partition": number}))["data"]
        names = [str(column["name"]) for column in meta["rowType"]]
        return [dict(zip(names, row, strict=True)) for row in rows]
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        host = urlsplit(settings.base_url).hostname or ""
        raise QueryError("\n".join(why_unreachable(host, company_proxy(settings.base_url), error))) from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise QueryError(f"{settings.base_url} answered with {NOT_THE_API}") from None


def _answer(client: httpx.Client, deadline: float, method: str, url: str, **arguments: Any) -> httpx.Response:
    """The answer to a request, of bounded size and in bounded time (`deadline` is of the monotonic clock).

    A server that never ends its answer must not fill the memory of the refresher.
    Raises httpx.HTTPError, QueryError.
    """
    with client.stream(method, url, **arguments) as answer:
        content = bytearray()
        for piece in answer.iter_bytes():
            content += piece
            if len(content) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                raise QueryError(f"{answer.url.copy_with(query=None)} sends an answer without end.\n{DOCTOR}")
    # The content is decoded by now.
    headers = {name: value for name, value in answer.headers.items() if name != "content-encoding"}
    return httpx.Response(answer.status_code, headers=headers, content=bytes(content), request=answer.request)


def _own_url(settings: Settings, path: object) -> str:
    url = urljoin(settings.base_url, str(path or ""))
    if urlsplit(url)[:2] != urlsplit(settings.base_url)[:2]:  # the token must not go to another host
        raise QueryError(f"{settings.base_url} redirects the query to another host; not followed.\n{DOCTOR}")
    return url


def _document(settings: Settings, answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except (ValueError, RecursionError):
        document = None
    if answer.is_redirect:
        found = redirected(str(answer.url), answer.status_code, answer.headers.get("location", ""))
        raise QueryError("\n".join(found))
    if answer.status_code in {200, 202} and isinstance(document, dict):
        return document
    if not isinstance(document, dict) and answer.status_code != 404:
        raise QueryError(f"{settings.base_url} answered {answer.status_code} with {NOT_THE_API}")
    code, words = words_of(answer.text if settings.pat is None else as_pat(answer.status_code, answer.text))
    raise QueryError(explain_query(settings.base_url, answer.status_code, code, words, BUNDLE), code, words)
