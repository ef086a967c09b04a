"""No client of the tools follows a redirect: the request holds the token. (Of the proxy: test_upstream.py.)"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bundle.checks import connections
from bundle.checks.model_check import post
from bundle.network import redirected
from bundle.settings import Settings
from bundle.sql_api import QueryError, query
from tests.upstream import RawUpstream, head

STATUSES = pytest.mark.parametrize("status", [301, 302, 303, 307, 308])


@pytest.fixture
def elsewhere() -> Iterator[RawUpstream]:
    upstream = RawUpstream()
    upstream.answer = lambda connection: connection.sendall(head(kind="application/json", Content_Length=2) + b"{}")
    yield upstream
    upstream.close()


@pytest.fixture
def here(elsewhere: RawUpstream, status: int) -> Iterator[RawUpstream]:
    upstream = RawUpstream()

    def answer(connection: socket.socket) -> None:
        to = f"http://localhost:{elsewhere.port}/"
        connection.sendall(head(f"{status} Elsewhere", "application/json", Location=to, Content_Length=2) + b"{}")

    upstream.answer = answer
    yield upstream
    upstream.close()


@pytest.mark.keeps("no-redirects")
@STATUSES
def test_a_redirect_of_a_query_is_not_followed_and_is_told(
    settings: Settings, here: RawUpstream, elsewhere: RawUpstream, status: int
) -> None:
    with pytest.raises(QueryError, match=rf"127.0.0.1 sends requests on to localhost \({status}\); not followed"):
        query(replace(settings, base_url=here.url), "SELECT 1")
    assert (len(here.requests), elsewhere.requests) == (1, [])


@pytest.mark.keeps("no-redirects")
@STATUSES
def test_a_redirect_of_a_check_is_not_followed_and_is_told(
    settings: Settings, here: RawUpstream, elsewhere: RawUpstream, status: int
) -> None:
    assert post(here.url, {}, {"Authorization": "Bearer x"}).status_code == status
    (finding,) = connections.snowflake(Installed(replace(settings, base_url=here.url)))  # type: ignore[arg-type]
    assert finding.state == "fail"
    assert "sends requests on to localhost" in finding.found
    assert elsewhere.requests == []


class Installed:
    """The part of an installation that the check looks at."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings


@pytest.mark.parametrize(
    "location", ["http://[::1", "http://evil.example\x1b[31m/", "", "\u202e", "http://" + "a" * 9999]
)
def test_what_an_address_says_is_short_and_plain(location: str) -> None:
    found, _ = redirected("https://org-account.snowflakecomputing.com/api", 307, location)
    assert found.isascii()
    assert found.isprintable()
    assert len(found) < 250
