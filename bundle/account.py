"""Parsers for account identifiers and host names in the forms that people use. Pure functions."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from bundle.errors import ConfigError

_DOMAIN = re.compile(r"(?P<private>\.privatelink)?\.snowflakecomputing\.(?P<top>com|cn)$")
_LOCATOR = re.compile(r"[a-z]{2,3}\d{4,6}$")
_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-?\d+$|.*(west|north|east|south|central)")


def parse_account(text: str) -> tuple[str, str]:
    """Read an account identifier, host name or URL; return (account for the claims, default host).

    `ORG-ACCOUNT` and `ORG.ACCOUNT` give ORG-ACCOUNT; `LOCATOR.region[.cloud]` gives LOCATOR
    (docs/cortex.md#jwt-account). Raises ConfigError for any other text, and for a text with one dot that could be
    either.
    """
    name = text.strip().lower()
    if "//" in name or "/" in name:
        parts = urlsplit(name if "//" in name else f"//{name}")
        first, second, *_ = [*parts.path.strip("/").split("/"), "", ""]
        if (parts.hostname or "").startswith("app.snowflake.") and second:  # Snowsight: ORG/ACCOUNT or region/LOCATOR
            name = f"{second}.{first}" if _REGION.match(first) and _LOCATOR.match(second) else f"{first}-{second}"
        else:
            name = parts.hostname or ""
    domain = _DOMAIN.search(name)
    suffix = domain.group(0) if domain else ".snowflakecomputing.com"
    name = name[: domain.start()] if domain else name
    labels = name.split(".")
    if not all(re.fullmatch(r"[a-z0-9][a-z0-9_-]*", label) for label in labels) or name.startswith("your-"):
        raise ConfigError(
            f"{text!r} is not a Snowflake account identifier.\n"
            "It looks like MYORG-MYACCOUNT; run this in Snowsight to see yours:\n"
            "  SELECT CURRENT_ORGANIZATION_NAME() || '-' || CURRENT_ACCOUNT_NAME();"
        )
    head, rest = labels[0], labels[1:]
    if rest == ["global"]:  # like Snowflake's connector, which cuts such a name at its first hyphen
        return head.split("-")[0].upper(), f"{name}{suffix}"
    if len(rest) == 1 and not domain:
        is_locator, is_region = bool(_LOCATOR.match(head)), bool(_REGION.match(rest[0]))
        # Both: LOCATOR.region. Neither: ORG.ACCOUNT. Only one of them: the text is ambiguous.
        if is_locator != is_region:
            raise ConfigError(
                f"the account {text!r} can be read in two ways. Write the one that you mean:\n"
                f"  {head}-{rest[0]}     organization {head}, account {rest[0]}\n"
                f"  {head}.{rest[0]}.aws  account locator {head} in region {rest[0]} (or .azure, .gcp)"
            )
        if not is_locator:
            head, rest = f"{head}-{rest[0]}", []
    host = ".".join([head, *rest]).replace("_", "-")
    return head.upper(), f"{host}{suffix}"


def parse_host(text: str) -> str:
    """Return https://HOST for a host name or URL. http:// is allowed only for a loopback address (the test server)."""
    parts = urlsplit(text if "://" in text else f"https://{text}")
    host = parts.hostname or ""
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    only_host = not more and re.fullmatch(r"[a-z0-9.:-]+", host)
    if not only_host or parts.scheme not in {"http", "https"}:
        raise ConfigError(f"SNOWFLAKE_HOST is {text!r}; it must be a host name like ACCOUNT.snowflakecomputing.com.")
    if parts.scheme == "http" and not re.fullmatch(r"localhost|127(\.\d+){3}|::1", host):
        raise ConfigError(f"SNOWFLAKE_HOST is {text!r}; a token must not be sent unencrypted. Use https://{host}")
    return f"{parts.scheme}://{parts.netloc.lower()}"
