"""bundle/tokens.py: the claims, the fingerprint and the signature are what Snowflake checks."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from bundle.errors import ConfigError
from bundle.settings import Settings
from bundle.tokens import claims, fingerprint, load_key, sign, token_times
from tests.set_up import pem
from tests.user import KEY, NOW, put


def test_the_claims_are_what_snowflake_documents() -> None:
    assert claims("myorg-acct", "jane", "SHA256:abc", NOW) == {
        "iss": "MYORG-ACCT.JANE.SHA256:abc",
        "sub": "MYORG-ACCT.JANE",
        "iat": 1_799_999_940,
        "exp": 1_800_003_540,
    }


@pytest.mark.parametrize("ahead", [0.0, 10.9, 59.0])
def test_a_clock_that_is_less_than_a_minute_ahead_signs_no_token_from_the_future(ahead: float) -> None:
    issued, expires = token_times(jwt.encode(claims("a", "u", "SHA256:abc", NOW + ahead), "x" * 32))
    assert issued <= NOW
    assert expires - issued == 3600  # Snowflake allows no more


def test_the_life_of_a_token_is_counted_from_the_time_of_its_signature(settings: Settings) -> None:
    token, second = sign(settings, NOW), int(NOW)
    assert (token.issued_at, token.expires_at) == (second, second + 3540)
    assert token_times(token.value) == (second - 60, second + 3540)


def test_the_fingerprint_is_the_one_that_desc_user_shows() -> None:
    der = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert fingerprint(KEY) == "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode()


def test_a_token_is_signed_with_rs256_by_the_key(settings: Settings) -> None:
    token = sign(settings, NOW)
    assert jwt.get_unverified_header(token.value)["alg"] == "RS256"
    decoded = jwt.decode(
        token.value, KEY.public_key(), algorithms=["RS256"], options={"verify_iat": False, "verify_exp": False}
    )
    assert decoded == claims("MYORG-MY_ACCT", "JANE", fingerprint(KEY), NOW)
    assert token.value not in repr(token)


def test_an_encrypted_key_opens_with_its_passphrase(home: Path) -> None:
    path = put(home / "k", pem(KEY, "open sesame"))
    assert load_key(path, "open sesame").private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize("present", [None, "-----BEGIN PUBLIC KEY-----", "not a key"])
def test_the_printed_command_makes_a_key_and_overwrites_nothing(tmp_path: Path, present: str | None) -> None:
    path = tmp_path / "it's here" / "key.p8"
    path.parent.mkdir()
    if present is not None:
        put(path, present)
    with pytest.raises(ConfigError) as refused:
        load_key(path, None)
    command = next(line for line in str(refused.value).splitlines() if "openssl" in line)
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=60)
    made = path if present is None else path.with_name("key_2.p8")
    assert load_key(made, None).key_size == 2048
    if present is not None:
        assert path.read_text() == present
        assert "SNOWFLAKE_PRIVATE_KEY_PATH=" in str(refused.value)
