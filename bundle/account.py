"""Parsers for account identifiers and host names in the forms that people use. Pure functions."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from bundle.errors import ConfigError, printable

_DOMAIN = re.compile(r"(?P<private>\.privatelink)?\.snowflakecomputing\.(?P<top>com|cn)$")
_LABEL = re.compile(r"[a-z0-9][a-z0-9_-]*")
_LOCATOR = re.compile(r"[a-z]{2,3}\d{4,6}$")
_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-?\d+$|.*(west|north|east|south|central)")
# Snowsight: app.snowflake.com/ORG/ACCOUNT, app.REGION.snowflake.com/…, app.REGION.privatelink.snowflakecomputing.com/…
_SNOWSIGHT = re.compile(
    r"app(\.[a-z0-9-]+)*(\.snowflake|(?P<private>\.privatelink)\.snowflakecomputing)\.(?P<top>com|cn)"
)
_PRIVATE_SNOWSIGHT = re.compile(r"app-(?=[a-z0-9]+-[a-z0-9_-]+\.privatelink\.snowflakecomputing\.)")
_NO_ORGANIZATION = frozenset({"console", "login", "oauth", "oauth2"})  # first words of other paths of Snowsight
_CLOUDS = frozenset({"aws", "azure", "gcp"})
_NO_ACCOUNT = frozenset({"app", "www", "com", "net", "org", "io", "cn", "your"})


def parse_account(text: str) -> tuple[str, str]:
    """Read an account identifier, host name or URL; return (account for the claims, default host).

    `ORG-ACCOUNT` and `ORG.ACCOUNT` give ORG-ACCOUNT; `LOCATOR.region[.cloud]` gives LOCATOR
    (docs/cortex.md#jwt-account). A last `.privatelink` belongs to the host alone. Raises ConfigError for any other
    text, and for a text with one dot that could be either.
    """
    name = _name(text)
    domain = _DOMAIN.search(name)
    labels = (name[: domain.start()] if domain else name).split(".")
    private = domain["private"] or "" if domain else ""
    if not domain and len(labels) > 1 and labels[-1] == "privatelink":
        private = f".{labels.pop()}"
    head, rest = labels[0], labels[1:]
    top = domain["top"] if domain else "cn" if any(label.startswith("cn-") for label in rest) else "com"
    suffix = f"{private}.snowflakecomputing.{top}"
    unknown = not domain and (len(rest) > 1 and rest[-1] not in _CLOUDS)
    if unknown or not all(map(_LABEL.fullmatch, labels)) or _NO_ACCOUNT & {head, *rest} or name.startswith("your-"):
        raise ConfigError(
            f"{_shown(text)} is not a Snowflake account identifier.\n"
            "It looks like MYORG-MYACCOUNT; run this in Snowsight to see yours:\n"
            "  SELECT CURRENT_ORGANIZATION_NAME() || '-' || CURRENT_ACCOUNT_NAME();"
        )
    if rest == ["global"]:  # like Snowflake's connector, which cuts such a name at its first hyphen
        return head.split("-")[0].upper(), f"{head}.global{suffix}"
    if len(rest) == 1 and not domain:
        is_locator, is_region = bool(_LOCATOR.match(head)), bool(_REGION.match(rest[0]))
        # Both: LOCATOR.region. Neither: ORG.ACCOUNT. Only one of them: the text is ambiguous.
        if is_locator != is_region:
            raise ConfigError(
                f"the account {_shown(text)} can be read in two ways. Write the one that you mean:\n"
                f"  {head}-{rest[0]}     organization {head}, account {rest[0]}\n"
                f"  {head}.{rest[0]}.aws  account locator {head} in region {rest[0]} (or .azure, .gcp)"
            )
        if not is_locator:
            head, rest = f"{head}-{rest[0]}", []
    host = ".".join([head, *rest]).replace("_", "-")
    return head.upper(), f"{host}{suffix}"


def _name(text: str) -> str:
    """The identifier or host name in what was pasted, in lower case; "" if the text is about no account."""
    pasted = text.strip().rstrip(";").strip("\"'` ").lower().removeprefix("jdbc:")
    is_url = "/" in pasted
    try:
        parts = urlsplit(pasted if "//" in pasted else f"//{pasted}")
        host = parts.hostname or ""
    except ValueError:
        return ""
    if snowsight := _SNOWSIGHT.fullmatch(host):
        first, second, *_ = [*parts.path.strip("/").split("/"), "", ""]
        if not second or first in _NO_ORGANIZATION:
            return ""
        # An organization's name has no hyphen and no dot, a region's has one: ORG/ACCOUNT or region/LOCATOR.
        name = f"{second}.{first}" if re.search(r"[-.]", first) else f"{first}-{second}"
        return f"{name}{snowsight['private'] or ''}.snowflakecomputing.{snowsight['top']}"
    if is_url and not _DOMAIN.search(host) and parts.scheme != "snowflake":
        return ""
    if "@" in pasted and not is_url:  # an e-mail address
        return ""
    return _PRIVATE_SNOWSIGHT.sub("", host)


def _shown(text: str) -> str:
    """The text for a message, without the password that a URL may hold."""
    return repr(re.sub(r"//[^/@]*@", "//…@", printable(text, 100)))


def with_region(account: str, region: str) -> str:
    """A connection's `account` with its `region`, as Snowflake's connector joins them."""
    if not region or region.lower() == "us-west-2" or not re.fullmatch(r"[\w.-]+", account) or _DOMAIN.search(account):
        return account
    top = "cn" if region.lower().startswith("cn-") else "com"
    return f"{account.partition('.')[0]}.{region}.snowflakecomputing.{top}"


def parse_host(text: str, where: str = "SNOWFLAKE_HOST") -> str:
    """Return https://HOST for a host name or URL. http:// is allowed only for a loopback address (the test server).
    `where` is the place of the setting, for messages."""
    try:
        parts = urlsplit(text.strip() if "://" in text else f"https://{text.strip()}")
        host, netloc, _ = parts.hostname or "", parts.netloc.lower(), parts.port
    except ValueError:
        host, netloc, parts = "", "", urlsplit("")
    if _DOMAIN.search(host):  # Snowflake's hosts have hyphens where an account's name has underscores
        host, netloc = host.replace("_", "-"), netloc.replace("_", "-")
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    only_host = not more and re.fullmatch(r"[a-z0-9.:-]+", host)
    if not only_host or parts.scheme not in {"http", "https"}:
        raise ConfigError(f"{where} is {_shown(text)}; it must be a host name like ACCOUNT.snowflakecomputing.com.")
    if parts.scheme == "http" and not re.fullmatch(r"localhost|127(\.\d+){3}|::1", host):
        raise ConfigError(f"{where} is {_shown(text)}; a token must not be sent unencrypted. Use https://{host}")
    return f"{parts.scheme}://{netloc}"
