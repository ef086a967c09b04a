"""Snowflake's SQL API: one statement as the configured user, and what its errors mean (docs/cortex.md#sql-api)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from bundle.settings import Settings
from bundle.tokens import sign

STATEMENTS = "/api/v2/statements"
PATIENCE_SECONDS = 600  # a warehouse that must wake up and a large view take minutes, not hours
DOCTOR = "Look closer with: python3 doctor.py"
STRANGE = f"something that is not from Snowflake's SQL API: a login page of the network, or a proxy?\n{DOCTOR}"


class QueryError(Exception):
    """Snowflake could not be asked or refused; `str()` is the whole message with the remedy. `code` is Snowflake's."""

    def __init__(self, message: str, code: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.code, self.detail = code, detail


def query(settings: Settings, sql: str, sleep: Callable[[float], None] = time.sleep) -> list[dict[str, str | None]]:
    """Run one statement as the configured user; one mapping of column to text a row. Raises QueryError, ConfigError."""
    token = sign(settings, time.time()).value
    headers = {
        "Authorization": f"Bearer {token}",
        "X-Snowflake-Authorization-Token-Type": "KEYPAIR_JWT",
        "Accept": "application/json",
        "User-Agent": "claude-code-on-snowflake-cortex",
    }
    body = {"statement": sql, "timeout": PATIENCE_SECONDS}
    if settings.warehouse:
        body["warehouse"] = settings.warehouse
    try:
        # HTTPS_PROXY and SSL_CERT_FILE count, but a stand-in on this machine is never behind a proxy.
        https = settings.base_url.startswith("https:")
        with httpx.Client(headers=headers, timeout=60, trust_env=https) as client:
            answer = client.post(settings.base_url + STATEMENTS, json=body)
            waited, pause = 0.0, 0.5
            while answer.status_code == 202:
                if waited >= PATIENCE_SECONDS:
                    raise QueryError(f"the query is still running after {PATIENCE_SECONDS} s: ask for fewer --days.")
                sleep(pause)
                waited, pause = waited + pause, min(pause * 1.5, 5.0)
                answer = client.get(_own_url(settings, _document(settings, answer).get("statementStatusUrl")))
            first = _document(settings, answer)
            meta, rows = first["resultSetMetaData"], list(first["data"])
            for number in range(1, len(meta.get("partitionInfo", [None]))):
                url = _own_url(settings, f"{STATEMENTS}/{first['statementHandle']}")
                rows += _document(settings, client.get(url, params={"partition": number}))["data"]
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise QueryError(unreachable(settings, error)) from None
    except (KeyError, TypeError, AttributeError):
        raise QueryError(f"{settings.base_url} answered with {STRANGE}") from None
    names = [column["name"] for column in meta["rowType"]]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _own_url(settings: Settings, path: object) -> str:
    url = urljoin(settings.base_url, str(path or ""))
    if urlsplit(url)[:2] != urlsplit(settings.base_url)[:2]:  # the token must not follow a link to somewhere else
        raise QueryError(f"{settings.base_url} sends the query on to another host; not followed.\n{DOCTOR}")
    return url


def _document(settings: Settings, answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if answer.status_code in {200, 202} and isinstance(document, dict):
        return document
    if not isinstance(document, dict) and answer.status_code != 404:
        raise QueryError(f"{settings.base_url} answered {answer.status_code} with {STRANGE}")
    found = document if isinstance(document, dict) else {}
    code, detail = str(found.get("code", "")), " ".join(str(found.get("message", "")).split())
    raise QueryError(remedy(settings, answer.status_code, code, detail), code, detail)


def remedy(settings: Settings, status: int, code: str, detail: str) -> str:
    """What a failed call means and what fixes it, from the HTTP status and Snowflake's code and message."""
    host, user = urlsplit(settings.base_url).hostname, settings.user
    if status == 401:
        return (
            f"Snowflake refused the key of {settings.account}.{user}: {detail}\n"
            f"Register it with the statement that this prints: python3 auto_refresh.py --public-key\n{DOCTOR}"
        )
    if status == 403:
        return (
            f"Snowflake does not let {user} in: {code} {detail}\n"
            f"A network policy, or a proxy on the way, may be the reason: ask an administrator. {DOCTOR}"
        )
    if status == 404:
        return f"there is no Snowflake account at {host}. Check SNOWFLAKE_ACCOUNT (it came from {settings.origin})."
    if "warehouse" in detail.lower():
        given = f"the warehouse {settings.warehouse} is not usable" if settings.warehouse else "no warehouse is set"
        return (
            f"the query needs a warehouse, and {given}: {detail}\n"
            f"Name one that {user}'s default role may use, in .env: SNOWFLAKE_WAREHOUSE=COMPUTE_WH"
        )
    if status == 429:
        return "Snowflake has too many requests from this account. Try again in a minute."
    return f"Snowflake failed the query with {status} {code}: {detail or 'no message'}\n{DOCTOR}"


def unreachable(settings: Settings, error: Exception) -> str:
    """What a call that got no answer means."""
    proxy = next((name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY") if os.environ.get(name)), None)
    through = f"through the proxy in {proxy}" if proxy else "directly; behind a company proxy, set HTTPS_PROXY"
    return (
        f"cannot reach {settings.base_url} ({through}): {error or type(error).__name__}\n"
        f"Check the account ({settings.account}, from {settings.origin}) and the network. {DOCTOR}"
    )
