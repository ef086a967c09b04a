"""bundle/account.py: an account or a host is understood as it is pasted, or refused with a reason."""

from __future__ import annotations

import pytest

from bundle.account import parse_account, parse_host
from bundle.errors import ConfigError


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


@pytest.mark.parametrize("text", ["YOUR-ACCOUNT", "", "my org", "acc$ount", "https://"])
def test_what_is_no_account_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a Snowflake account identifier"):
        parse_account(text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("abc.example.com", "https://abc.example.com"),
        ("https://abc.example.com/", "https://abc.example.com"),
        ("http://127.0.0.1:8003", "http://127.0.0.1:8003"),
        ("http://[::1]:8003", "http://[::1]:8003"),
    ],
)
def test_a_host_may_be_given(text: str, url: str) -> None:
    assert parse_host(text) == url


@pytest.mark.keeps("token-to-snowflake-only")
@pytest.mark.parametrize(
    "text",
    [
        *("http://abc.example.com", "http://10.0.0.1", "ftp://abc", "abc/def", "a b"),
        *("https://me:word@abc.example.com", "https://abc.example.com#.snowflakecomputing.com"),
    ],
)
def test_a_host_without_https_or_with_more_than_a_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="SNOWFLAKE_HOST"):
        parse_host(text)
