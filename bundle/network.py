"""The proxy of a company: which one a request uses, and in which form. And why a host cannot be reached: its name, the
network, that proxy, or a certificate. Imports only the standard library: it is used before anything is installed."""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import socket
import ssl
from collections.abc import MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    import httpx

from bundle.bootstrap import make
from bundle.errors import ConfigError, printable

# How the address of a proxy may begin, and how httpx wants it. Desktops write `socks`, and mean SOCKS 5.
_SCHEMES = {"http": "http", "https": "https", "socks": "socks5", "socks5": "socks5", "socks5h": "socks5h"}
_HOST = re.compile(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", re.ASCII)
_EXCEPTION = re.compile(r"(\w+://)?[\w.*-]+(:\d{1,4})?(/\d{1,3})?", re.ASCII)


def _chosen(url: str) -> tuple[str, str]:
    """The variable that names a proxy for `url`, and its value; empty texts if the request goes directly."""
    parts, proxies = urlsplit(url), getproxies()
    kind = parts.scheme if proxies.get(parts.scheme) else "all"
    value = proxies.get(kind, "")
    if not value or proxy_bypass(parts.hostname or ""):
        return "", ""
    names = [name for name in os.environ if name.lower() == f"{kind}_proxy" and os.environ[name] == value]
    return names[0] if names else "the proxy in this machine's settings", value


def company_proxy(url: str) -> str:
    """HOST:PORT of the proxy that requests to `url` use, without its password; empty if they use none."""
    return _shown(_chosen(url)[1])


def _shown(address: str) -> str:
    return re.sub(r"^(\w+://)?(.*@)?|/$", "", address)


def proxy_for(url: str) -> str:
    """The proxy that requests to `url` use, as a URL that httpx takes; empty if they use none. Raises ConfigError."""
    name, value = _chosen(url)
    return _usable(name, value) if value else ""


def _usable(name: str, value: str) -> str:
    scheme, rest = value.split("://", 1) if "://" in value else ("http", value)
    where = printable(_shown(value), 100)
    again = f"then run: {make('stop', 'start')}"
    if scheme.lower().startswith("socks4"):
        raise ConfigError(
            f"{name} names a SOCKS 4 proxy ({where}). Only SOCKS 5 and HTTP proxies work here.\n"
            f"If the program there speaks SOCKS 5 too, as most do: export {name}={shlex.quote(f'socks5://{where}')}\n"
            f"Otherwise: unset {name}\n{again[0].upper()}{again[1:]}"
        )
    with suppress(ValueError):
        parts = urlsplit(f"//{rest}")
        host = parts.netloc.rpartition("@")[2].rpartition(":")[0] if parts.port else parts.netloc.rpartition("@")[2]
        if scheme.lower() in _SCHEMES and _HOST.fullmatch(host):
            return f"{_SCHEMES[scheme.lower()]}://{rest}"
    raise ConfigError(
        f"{name} is not the address of a proxy: {printable(scheme, 20)}://{where}\n"
        f"Correct it (export {name}=http://HOST:PORT) or remove it (unset {name}), {again}"
    )


def transport_to(url: str) -> httpx.HTTPTransport:
    """How our own tools reach `url`. (By itself, httpx fails if any variable names a proxy in a form that it cannot
    read.) Plain http is only for the stand-in on this machine, which is never behind a proxy."""
    import httpx  # noqa: PLC0415

    return httpx.HTTPTransport(proxy=(proxy_for(url) if url.startswith("https:") else "") or None)


def make_readable(environ: MutableMapping[str, str], url: str) -> None:
    """Change the variables of a proxy in `environ` so that LiteLLM's HTTP clients can read them. One entry that they
    cannot read would end them, even if the requests to `url` do not need it. Raises ConfigError for a proxy that the
    requests to `url` need and cannot use."""
    needed = proxy_for(url)
    for name in list(environ):
        kind = name.lower().removesuffix("_proxy")
        if kind == "no":
            environ[name] = ",".join(_readable(environ[name]))
        elif kind in {"http", "https", "all"} and environ[name]:
            try:
                environ[name] = _usable(name, environ[name])
            except ConfigError:  # not needed for `url`
                del environ[name]
    if needed.startswith("socks"):
        environ["DISABLE_AIOHTTP_TRANSPORT"] = "True"  # aiohttp has no SOCKS; LiteLLM then uses httpx, which has it


def _readable(no_proxy: str) -> list[str]:
    """The entries of NO_PROXY that httpx can read. It cannot read networks of IPv6, which container tools write. No
    host name is in such a network, so without them the same requests go directly."""
    found = []
    for entry in (part.strip() for part in no_proxy.split(",")):
        address, _, bits = entry.removeprefix("[").removesuffix("]").partition("/")
        with suppress(ValueError):
            host = str(ipaddress.IPv6Address(address))
            found += [host] if bits in {"", "128"} else []
            continue
        if _EXCEPTION.fullmatch(entry):
            found.append(entry)
    return found


def why_unreachable(host: str, through: str, error: BaseException) -> tuple[str, str]:
    """What is wrong and how to fix it, from an error of httpx and its causes. `through` is company_proxy's answer."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(each, ssl.SSLError) for each in causes):
        fix = "A company proxy that decrypts TLS has its own certificates: export SSL_CERT_FILE=…, then: "
        fix += make("stop", "start")
        return f"the certificate of {host} is not trusted: {error}", fix
    if through:
        fix = "Check HTTPS_PROXY or ALL_PROXY (user and password too)"
        fix += f", or do not use the proxy: export NO_PROXY={host}"
        return f"the proxy {through} does not let the request through: {error}", fix
    if any(isinstance(each, socket.gaierror) for each in causes):
        return (
            f"there is no host {host}",
            "Check the account (a locator needs its region), a SNOWFLAKE_HOST, DNS and VPN",
        )
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
