"""bundle/tokens.py: the claims, the fingerprint and the signature are what Snowflake checks."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import subprocess
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from bundle.errors import ConfigError
from bundle.settings import Settings
from bundle.tokens import claims, fingerprint, load_key, sign, token_times
from configure import make_key_pair
from tests.set_up import pem, public_pem
from tests.terminal import Terminal
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
    again = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60)
    assert "cannot overwrite existing file" in again.stderr  # also when it is pasted twice
    made = path if present is None else path.with_name("key_2.p8")
    assert load_key(made, None).key_size == 2048
    if present is not None:
        assert path.read_text() == present
        assert "SNOWFLAKE_PRIVATE_KEY_PATH=" in str(refused.value)


RSA_SSH = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
)
DER = KEY.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
SSH_PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


@pytest.mark.parametrize(
    ("name", "content", "words", "made"),
    [
        ("id_rsa", RSA_SSH, "is a key in OpenSSH's form", "id_rsa.p8"),
        ("key.p8", RSA_SSH, "is a key in OpenSSH's form", "key_2.p8"),
        ("rsa_key.der", DER, "is in DER form", "rsa_key.p8"),
        ("key.p8", DER, "is in DER form", "key_2.p8"),
    ],
)
def test_a_key_in_another_form_is_named_and_the_printed_command_converts_a_copy(
    tmp_path: Path, name: str, content: bytes, words: str, made: str
) -> None:
    path = put(tmp_path / "it's here" / name, content)
    with pytest.raises(ConfigError, match=words) as refused:
        load_key(path, None)
    command = next(line for line in str(refused.value).splitlines() if "set -C" in line)
    with Terminal(["bash", "-c", command], {"PATH": os.environ["PATH"]}) as person:
        if b"OPENSSH" in content:
            person.read_until("Enter new passphrase")
            person.type("")
            person.read_until("Enter same passphrase again")
            person.type("")
        assert person.finish() == 0, person.screen
    assert path.read_bytes() == content
    assert load_key(path.with_name(made), None).private_numbers() == KEY.private_numbers()
    assert str(refused.value).endswith(f"SNOWFLAKE_PRIVATE_KEY_PATH={shlex.quote(str(path.with_name(made)))}")


def test_an_openssh_key_of_another_kind_is_not_converted_in_vain(tmp_path: Path) -> None:
    content = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    path = put(tmp_path / "id_ed25519", content)
    with pytest.raises(ConfigError, match="is not an RSA key") as refused:
        load_key(path, None)
    assert "ssh-keygen" not in str(refused.value)


def test_no_private_key_is_put_under_the_name_of_a_public_one(tmp_path: Path) -> None:
    path = put(tmp_path / "rsa_key.pub", public_pem(KEY).encode(), 0o644)
    with pytest.raises(ConfigError, match="is a public key") as refused:
        load_key(path, None)
    assert f"> {tmp_path}/rsa_key.p8)" in str(refused.value)
    with pytest.raises(ConfigError, match="name of a public key"):
        make_key_pair(tmp_path / "new.pub")
    assert not (tmp_path / "new.pub").exists()


@pytest.mark.parametrize("content", [SSH_PUBLIC, public_pem(KEY).encode()])
def test_a_public_key_is_named_as_one_with_the_private_key_beside_it(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "rsa_key.pub", content, 0o644)
    private = put(tmp_path / "rsa_key.p8", pem(KEY))
    with pytest.raises(ConfigError, match="is a public key") as refused:
        load_key(path, None)
    assert f"SNOWFLAKE_PRIVATE_KEY_PATH={private}" in str(refused.value)
    assert "chmod" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        pem(ec.generate_private_key(ec.SECP256R1())),
        b"PuTTY-User-Key-File-3: ssh-rsa",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"\x00\xff" * 50,
        b"",
    ],
)
def test_no_printed_command_writes_over_the_file_of_a_user(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "key.p8", content)
    with pytest.raises(ConfigError) as refused:
        load_key(path, None)
    for command in (line for line in str(refused.value).splitlines() if line.startswith("  (")):
        subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=60)
    assert path.read_bytes() == content


def test_a_pipe_in_the_place_of_the_private_key_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key.p8", 0o600)
    with pytest.raises(ConfigError, match="is not a file"):
        load_key(tmp_path / "key.p8", None)
