"""Looks whether an account's host is there, right after its name was typed: with the standard library alone, because
nothing is installed then."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener, getproxies

from bundle.network import company_proxy, redirected, why_unreachable

PATH = "/api/v2/cortex/v1/chat/completions"
SECONDS = 10.0


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def trouble_with(base_url: str) -> tuple[str, str] | None:
    """What is wrong with this host and what to check, or None. Snowflake answers in JSON, also to a request without a
    token. For an account that does not exist, its servers answer with a web page."""
    proxies = _proxies(getproxies(), urlsplit(base_url).scheme)
    if proxies is None:
        return None
    host = urlsplit(base_url).hostname or ""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    request = Request(base_url + PATH, b"{}", headers)  # noqa: S310 - https, or the stand-in on this machine
    try:
        with build_opener(ProxyHandler(proxies), _NoRedirect).open(request, timeout=SECONDS) as response:
            status, location, body = response.status, "", response.read(100_000)
    except HTTPError as answer:
        status, location, body = answer.code, answer.headers.get("location") or "", b""
        with answer, suppress(OSError, http.client.HTTPException):
            body = answer.read(100_000)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return why_unreachable(host, company_proxy(base_url), error)
    if 300 <= status < 400:
        return redirected(base_url, status, location)
    try:
        if isinstance(json.loads(body), dict):
            return None
    except ValueError:
        pass
    found = f"{host} answers ({status}), but not as Snowflake does for an account that exists"
    return found, "Check the account. Check also whether your network shows a login page first"


def _proxies(found: Mapping[str, str], scheme: str) -> dict[str, str] | None:
    """The proxies for urllib; None if it cannot use the one that is set (SOCKS)."""
    address = found.get(scheme) or (found.get("all") if scheme == "https" else None)
    if address and address.lower().startswith("socks"):
        return None
    return {scheme: address} if address else {}


def names_are_found() -> bool:
    """Whether this machine finds hosts by name at all: without a network, no account is wrong."""
    try:
        return bool(socket.getaddrinfo("app.snowflake.com", 443))
    except OSError:
        return False
