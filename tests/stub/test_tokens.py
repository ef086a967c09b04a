"""The stand-in checks the token of every request as Snowflake does, has no other endpoints, and keeps no token."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable

import httpx
import jwt
import pytest

from tests.cortex_stub import CHAT, STATEMENTS, CortexStub
from tests.cortex_tokens import load_public_key
from tests.stub.sending import OTHER_KEY, OTHER_PEM, PEM, chat, post, token

NOW = int(time.time())
BAD_TOKENS: dict[str, tuple[Callable[[], str], str]] = {
    "no token at all": (lambda: "nonsense", "394300"),
    "another user": (lambda: token(sub="ORG-ACC.YOU"), "394300"),
    "a user in lower case": (lambda: token(sub="ORG-ACC.me"), "394300"),
    "another account": (lambda: token(sub="OTHER.ME"), "394307"),
    "an account in lower case": (lambda: token(sub="org-acc.ME"), "394307"),
    "an underscore for the hyphen": (lambda: token(sub="ORG_ACC.ME"), "394307"),
    "no iat": (lambda: token(iat=None), "394301"),
    "no exp": (lambda: token(exp=None), "394301"),
    "a broken second": (lambda: token(iat=NOW + 0.5), "394301"),
    "issued in an hour": (lambda: token(iat=NOW + 3600, exp=NOW + 7200), "394302"),
    "expired": (lambda: token(iat=NOW - 3600, exp=NOW), "394303"),
    "older than an hour, whatever exp says": (lambda: token(iat=NOW - 3601, exp=NOW + 86_400), "394303"),
    "a key that is not registered": (lambda: token(OTHER_KEY), "394304"),
    "no signature algorithm": (lambda: token(algorithm="HS256"), "394305"),
    "another algorithm of the same key": (lambda: token(algorithm="RS512"), "394305"),
    "a changed signature": (lambda: token()[:-8] + "AAAAAAAA", "394306"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_bad_token_is_401_and_only_sql_tells_why(stub: CortexStub, name: str) -> None:
    make, code = BAD_TOKENS[name]
    response = post(stub, CHAT, chat(), make())
    body = response.json()
    assert response.status_code == 401
    assert body["code"] == "390144"
    assert body["message"].startswith("JWT token is invalid. [")
    assert code not in response.text
    failure = body["message"].split("[")[1].rstrip("]")
    assert stub.login_failures[failure].startswith(code)
    told = post(stub, STATEMENTS, {"statement": f"SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('{failure}')"}).json()
    assert json.loads(told["data"][0][0])["errorCode"] == code


def test_authentication_comes_before_the_body(stub: CortexStub) -> None:
    assert post(stub, CHAT, {"max_tokens": 1}, "nonsense").status_code == 401
    assert httpx.post(stub.url + CHAT, content=b"{").status_code == 401
    bearer = {"Authorization": f"Bearer {token()}"}
    assert httpx.post(stub.url + CHAT, content=b"{", headers=bearer).status_code == 400


def test_keys_rotate_through_two_slots(stub: CortexStub) -> None:
    old, new = token(), token(OTHER_KEY)
    assert [post(stub, CHAT, chat(), each).status_code for each in (old, new)] == [200, 401]
    stub.register_key("".join(OTHER_PEM.splitlines()[1:-1]), slot=2)
    assert [post(stub, CHAT, chat(), each).status_code for each in (old, new)] == [200, 200]
    stub.register_key(None, slot=1)
    assert [post(stub, CHAT, chat(), each).status_code for each in (old, new)] == [401, 200]


def test_a_clock_that_differs_is_seen_in_the_date_and_refuses_tokens(stub: CortexStub) -> None:
    stub.skew = -3600
    early = post(stub, CHAT, chat())
    stub.skew = 3600
    late = post(stub, CHAT, chat())
    assert [reason[:6] for reason in stub.login_failures.values()] == ["394302", "394303"]
    assert early.headers["date"] != late.headers["date"]


def test_underscores_in_the_claims_are_a_switch(stub: CortexStub) -> None:
    stub.underscores = True
    assert post(stub, CHAT, chat(), token(sub="ORG_ACC.ME")).status_code == 200


def test_a_login_name_may_have_periods() -> None:
    with CortexStub("org-acc", "jane.doe@example.com", [PEM]) as stub:
        name = "ORG-ACC.JANE.DOE@EXAMPLE.COM"
        fingerprint = load_public_key(PEM)[0]
        assert post(stub, CHAT, chat(), token(iss=f"{name}.{fingerprint}", sub=name)).status_code == 200


def test_another_token_type_is_refused(stub: CortexStub) -> None:
    kind = "X-Snowflake-Authorization-Token-Type"
    assert post(stub, CHAT, chat(), **{kind: "KEYPAIR_JWT"}).status_code == 200
    assert post(stub, CHAT, chat(), **{kind: "OAUTH"}).json()["code"] == "390303"


# --- paths, records -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["responses", "messages/count_tokens"])
def test_cortex_has_no_other_endpoint(stub: CortexStub, path: str) -> None:
    assert post(stub, f"/api/v2/cortex/v1/{path}", chat()).status_code == 404


def test_a_record_has_the_body_and_never_the_token(stub: CortexStub) -> None:
    bearer = token()
    post(stub, CHAT, chat("remember"), bearer)
    post(stub, CHAT, chat(max_tokens=1), bearer)
    good, bad = stub.requests
    assert good["body"]["messages"][0]["content"] == "remember"
    assert (good["status"], bad["status"]) == (200, 400)
    assert bad["refusal"].startswith("max_tokens is deprecated")
    assert good["token_id"] == hashlib.sha256(bearer.encode()).hexdigest()[:12]
    assert good["iat"] == jwt.decode(bearer, options={"verify_signature": False})["iat"]
    over_http = httpx.get(f"{stub.url}/_stub/requests").text
    for text in (json.dumps(stub.requests), over_http):
        assert bearer not in text
        assert bearer.rsplit(".", 1)[1] not in text
