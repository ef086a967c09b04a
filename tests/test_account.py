"""bundle/account.py: an account or a host is understood as it is pasted, or refused with a reason."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.account import parse_account, parse_host, with_region
from bundle.errors import ConfigError
from bundle.questions import shortest


@pytest.mark.parametrize(
    ("text", "account", "host"),
    [
        ("myorg-myacct", "MYORG-MYACCT", "myorg-myacct.snowflakecomputing.com"),
        ("MyOrg-My_Acct", "MYORG-MY_ACCT", "myorg-my-acct.snowflakecomputing.com"),
        ("myorg.myacct", "MYORG-MYACCT", "myorg-myacct.snowflakecomputing.com"),
        ("xy12345", "XY12345", "xy12345.snowflakecomputing.com"),
        ("xy12345.eu-central-1", "XY12345", "xy12345.eu-central-1.snowflakecomputing.com"),
        ("xy12345.west-europe.azure", "XY12345", "xy12345.west-europe.azure.snowflakecomputing.com"),
        ("acme-x1.global", "ACME", "acme-x1.global.snowflakecomputing.com"),
        ("https://myorg-my-acct.snowflakecomputing.com", "MYORG-MY-ACCT", "myorg-my-acct.snowflakecomputing.com"),
        (
            "https://myorg-a.privatelink.snowflakecomputing.com/",
            "MYORG-A",
            "myorg-a.privatelink.snowflakecomputing.com",
        ),
        ("ab123.snowflakecomputing.cn", "AB123", "ab123.snowflakecomputing.cn"),
        ("https://app.snowflake.com/myorg/my_acct/#/homepage", "MYORG-MY_ACCT", "myorg-my-acct.snowflakecomputing.com"),
        ("https://app.snowflake.com/eu-central-1/xy12345/w", "XY12345", "xy12345.eu-central-1.snowflakecomputing.com"),
        ("app.snowflake.com/west-europe.azure/acme", "ACME", "acme.west-europe.azure.snowflakecomputing.com"),
        ("https://app.us-gov-west-1.snowflake.com/myorg/acct", "MYORG-ACCT", "myorg-acct.snowflakecomputing.com"),
        # China has a domain of its own.
        ("https://app.snowflake.cn/myorg/acct", "MYORG-ACCT", "myorg-acct.snowflakecomputing.cn"),
        ("xy12345.cn-northwest-1.aws", "XY12345", "xy12345.cn-northwest-1.aws.snowflakecomputing.cn"),
        # With private link the host has another domain, and the account is the same.
        ("myorg-acct.privatelink", "MYORG-ACCT", "myorg-acct.privatelink.snowflakecomputing.com"),
        ("myorg.acct.privatelink", "MYORG-ACCT", "myorg-acct.privatelink.snowflakecomputing.com"),
        ("xy12345.us-east-1.privatelink", "XY12345", "xy12345.us-east-1.privatelink.snowflakecomputing.com"),
        (
            "https://app-myorg-my_acct.privatelink.snowflakecomputing.com/#/homepage",
            "MYORG-MY_ACCT",
            "myorg-my-acct.privatelink.snowflakecomputing.com",
        ),
        (
            "https://app.us-east-1.privatelink.snowflakecomputing.com/us-east-1/xy12345/",
            "XY12345",
            "xy12345.us-east-1.privatelink.snowflakecomputing.com",
        ),
        # As other programs show it.
        ("'MYORG-MYACCT';", "MYORG-MYACCT", "myorg-myacct.snowflakecomputing.com"),
        ("myorg-myacct.snowflakecomputing.com:443", "MYORG-MYACCT", "myorg-myacct.snowflakecomputing.com"),
        (
            "jdbc:snowflake://myorg-myacct.snowflakecomputing.com/?db=x",
            "MYORG-MYACCT",
            "myorg-myacct.snowflakecomputing.com",
        ),
        ("snowflake://jane:word@myorg-myacct/db", "MYORG-MYACCT", "myorg-myacct.snowflakecomputing.com"),
        (
            "https://myorg-acct.snowflakecomputing.com/console/login#/",
            "MYORG-ACCT",
            "myorg-acct.snowflakecomputing.com",
        ),
    ],
)
def test_an_account_is_understood_however_it_is_pasted(text: str, account: str, host: str) -> None:
    assert parse_account(text) == (account, host)


@pytest.mark.parametrize("text", ["acme.eu-central-1", "xy12345.prod"])
def test_an_account_that_can_be_read_in_two_ways_is_refused_with_both(text: str) -> None:
    head, tail = text.split(".")
    with pytest.raises(ConfigError, match="two ways") as caught:
        parse_account(text)
    assert f"{head}-{tail}" in str(caught.value)
    assert f"{head}.{tail}.aws" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("YOUR-ACCOUNT", "", "my org", "acc$ount", "https://", "https://[x", "app", "acme.com", "jane@acme.com"),
        # Pages that no account has for itself.
        *("https://app.snowflake.com", "https://app.snowflake.com/#/login", "https://app.snowflake.com/myorg/"),
        *("app.snowflake.com", "https://app.snowflake.com/console/login", "https://docs.snowflake.com/en/user-guide"),
        *("https://app.us-east-1.privatelink.snowflakecomputing.com", "https://acme.com/myorg/acct"),
    ],
)
def test_what_is_no_account_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="not a Snowflake account identifier") as refused:
        parse_account(text)
    assert "It looks like MYORG-MYACCOUNT" in str(refused.value)


def test_a_password_in_what_was_pasted_is_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_account("https://jane:word@acme.com/")
    assert "word" not in str(refused.value)


@given(st.text(st.sampled_from("ab1-_./:@[]#? "), max_size=30) | st.text(max_size=30))
def test_any_text_is_an_account_with_a_host_or_is_refused(text: str) -> None:
    try:
        account, host = parse_account(text)
    except ConfigError:
        return
    assert re.fullmatch(r"[A-Z0-9][A-Z0-9_-]*", account)
    assert parse_host(host) == f"https://{host}"
    assert parse_account(host)[1] == host


@pytest.mark.parametrize(
    ("account", "region", "joined"),
    [
        ("xy12345", "eu-central-1", ("XY12345", "xy12345.eu-central-1.snowflakecomputing.com")),
        ("acme", "west-europe.azure", ("ACME", "acme.west-europe.azure.snowflakecomputing.com")),
        ("xy12345", "cn-northwest-1", ("XY12345", "xy12345.cn-northwest-1.snowflakecomputing.cn")),
        ("xy12345", "us-west-2", ("XY12345", "xy12345.snowflakecomputing.com")),
        ("xy12345", "", ("XY12345", "xy12345.snowflakecomputing.com")),
    ],
)
def test_the_region_of_a_connection_belongs_to_its_host(account: str, region: str, joined: tuple[str, str]) -> None:
    assert parse_account(with_region(account, region)) == joined


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("abc.example.com", "https://abc.example.com"),
        ("https://abc.example.com/", "https://abc.example.com"),
        ("http://127.0.0.1:8003", "http://127.0.0.1:8003"),
        ("http://[::1]:8003", "http://[::1]:8003"),
        ("MyOrg-My_Acct.snowflakecomputing.com", "https://myorg-my-acct.snowflakecomputing.com"),
    ],
)
def test_a_host_may_be_given(text: str, url: str) -> None:
    assert parse_host(text) == url


@pytest.mark.keeps("token-to-snowflake-only")
@pytest.mark.parametrize(
    "text",
    [
        *("http://abc.example.com", "http://10.0.0.1", "ftp://abc", "abc/def", "a b"),
        *("my_host.example.com", "https://abc:x", "https://[abc"),
        *("https://me:word@abc.example.com", "https://abc.example.com#.snowflakecomputing.com"),
    ],
)
def test_a_host_without_https_or_with_more_than_a_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^`host` of connection") as refused:
        parse_host(text, "`host` of connection [work]")
    assert "word" not in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("https://app.snowflake.com/myorg/my_acct/#/homepage", "MYORG-MY_ACCT"),
        ("https://app.snowflake.com/eu-west-1/xy12345/", "xy12345.eu-west-1"),
        ("https://xy12345.eu-central-1.snowflakecomputing.com/console", "xy12345.eu-central-1"),
        ("myorg-acct.privatelink.snowflakecomputing.com", "myorg-acct.privatelink"),
    ],
)
def test_an_account_is_kept_in_its_shortest_form_that_means_the_same(typed: str, kept: str) -> None:
    understood = parse_account(typed)
    assert shortest(typed, *understood) == kept
    assert parse_account(kept) == understood
