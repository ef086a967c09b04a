"""Why a host cannot be reached: the name, the network, a company's HTTP proxy, or a certificate."""

from __future__ import annotations

import re
import socket
import ssl
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def company_proxy(url: str) -> str:
    """HOST:PORT of the HTTP proxy between here and `url`, without its password; empty when there is none."""
    parts, proxies = urlsplit(url), getproxies()
    address = proxies.get(parts.scheme) or proxies.get("all") or ""
    return "" if proxy_bypass(parts.hostname or "") else re.sub(r"^(\w+://)?(.*@)?|/$", "", address)


def why_unreachable(host: str, through: str, error: BaseException) -> tuple[str, str]:
    """What is wrong and what fixes it, from an error of httpx and the errors inside it. `through`: `company_proxy`."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(isinstance(one, ssl.SSLError) for one in chain):
        fix = "A company proxy that opens TLS has its own certificates: export SSL_CERT_FILE=…, then make stop start"
        return f"the certificate of {host} is not trusted: {error}", fix
    if through:
        fix = f"Check HTTPS_PROXY (user and password too), or go around it: export NO_PROXY={host}"
        return f"the HTTP proxy {through} does not let us through: {error}", fix
    if any(isinstance(one, socket.gaierror) for one in chain):
        return f"there is no host {host}", "Check SNOWFLAKE_ACCOUNT in .env (a locator needs its region), DNS and VPN"
    fix = "Check network, VPN and firewall; in a company perhaps: export HTTPS_PROXY=http://HOST:PORT"
    return f"{host} cannot be reached: {str(error) or type(error).__name__}", fix
