"""Finds out why a host cannot be reached: its name, the network, a company's HTTP proxy, or a certificate."""

from __future__ import annotations

import re
import socket
import ssl
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass


def company_proxy(url: str) -> str:
    """HOST:PORT of the HTTP proxy that requests to `url` use, without its password; empty if they use none."""
    parts, proxies = urlsplit(url), getproxies()
    address = proxies.get(parts.scheme) or proxies.get("all") or ""
    return "" if proxy_bypass(parts.hostname or "") else re.sub(r"^(\w+://)?(.*@)?|/$", "", address)


def why_unreachable(host: str, through: str, error: BaseException) -> tuple[str, str]:
    """What is wrong and how to fix it, from an error of httpx and its causes. `through` is company_proxy's answer."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(each, ssl.SSLError) for each in causes):
        fix = "A company proxy that decrypts TLS has its own certificates: export SSL_CERT_FILE=…, then make stop start"
        return f"the certificate of {host} is not trusted: {error}", fix
    if through:
        fix = f"Check HTTPS_PROXY (user and password too), or do not use the proxy: export NO_PROXY={host}"
        return f"the HTTP proxy {through} does not let the request through: {error}", fix
    if any(isinstance(each, socket.gaierror) for each in causes):
        return f"there is no host {host}", "Check SNOWFLAKE_ACCOUNT in .env (a locator needs its region), DNS and VPN"
    fix = "Check network, VPN and firewall; in a company perhaps: export HTTPS_PROXY=http://HOST:PORT"
    return f"{host} cannot be reached: {str(error) or type(error).__name__}", fix


def redirected(url: str, status: int, location: str) -> tuple[str, str]:
    """What an answer of `url` says that sends the request elsewhere, and how to fix it. No redirect is followed: the
    request holds the token and the whole prompt."""
    try:
        target = urlsplit(urljoin(url, location)).hostname or ""
    except ValueError:
        target = location
    found = f"{urlsplit(url).hostname} sends requests on to {re.sub(r'[^.:0-9A-Za-z_-]', '?', target[:100])} ({status})"
    return f"{found}; not followed", "Check SNOWFLAKE_ACCOUNT and SNOWFLAKE_HOST, and log in to the network or the VPN"
