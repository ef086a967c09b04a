"""The token that is sent now: one that the private key signs (docs/cortex.md#jwt-claims), or the user's programmatic
access token (docs/cortex.md#token-pat).

Security invariants
- Each signature reads the private key from its file; the key is never kept, copied or printed.
- A programmatic access token is read anew each time, and goes only into requests and into litellm_config.yaml.
- No message and no exception text contains a token or a passphrase.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bundle.bootstrap import script
from bundle.credential import KEY_PAIR, PAT, TOKEN_TYPE, read_pat
from bundle.errors import ConfigError
from bundle.key_forms import how_to_make_a_key, is_public, refusal
from bundle.settings import Settings

TOKEN_SECONDS = 3600  # from `iat` on, Snowflake's maximum; a later `exp` does not make the token live longer
BACKDATE_SECONDS = 60  # `iat` is that much before the signature: this machine's clock may be ahead of Snowflake's
OR_A_PAT = (
    "Or, if you may not set a key on your Snowflake user: put a programmatic access token into .env, as "
    "SNOWFLAKE_PAT=…, and run: chmod 600 .env"
)


class PassphraseError(ConfigError):
    """The private key is encrypted, and the passphrase is missing or wrong."""


def load_key(path: Path, passphrase: str | None) -> rsa.RSAPrivateKey:
    """Load the RSA private key (PEM, encrypted or not), if nobody else can read the file. Raises ConfigError."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ConfigError(f"{path} is a folder; SNOWFLAKE_PRIVATE_KEY_PATH must name the key file in it.")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise ConfigError(f"{path} is not a file; SNOWFLAKE_PRIVATE_KEY_PATH must name the key file.")
        pem = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"there is no private key at {path}.\n{how_to_make_a_key(path)}\n{OR_A_PAT}") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the private key {path}: {error.strerror}.\nCheck with: ls -ld {shlex.quote(str(path))}"
        ) from None

    if status.st_mode & 0o077 and not is_public(pem):
        raise ConfigError(
            f"other users can read the private key {path}.\nFix it with: chmod 600 {shlex.quote(str(path))}"
        )
    if message := refusal(path, pem):
        raise ConfigError(message)
    encrypted = b"ENCRYPTED" in pem
    if encrypted and not passphrase:
        raise PassphraseError(
            f"the private key {path} is encrypted.\nPut its passphrase into .env (PRIVATE_KEY_PASSPHRASE=…), or run "
            f"this in a terminal, which asks for it: {script('configure.py')}"
        )
    try:
        key = serialization.load_pem_private_key(pem, passphrase.encode() if encrypted and passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if encrypted:
            raise PassphraseError(
                f"cannot use the private key {path}: PRIVATE_KEY_PASSPHRASE does not open it.\n"
                f"Correct it in .env, or run this in a terminal, which asks for it: {script('configure.py')}"
            ) from None
        damaged = f"cannot use the private key {path}: the file is damaged or of an unknown format."
        raise ConfigError(f"{damaged}\n{how_to_make_a_key(path)}") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError(f"{path} is not an RSA key; Snowflake accepts only RSA keys.\n{how_to_make_a_key(path)}")
    if key.key_size < 2048:
        few = f"the key in {path} has {key.key_size} bits; Snowflake requires at least 2048."
        raise ConfigError(f"{few}\n{how_to_make_a_key(path)}")
    return key


def public_der(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: rsa.RSAPrivateKey) -> str:
    """`SHA256:…` as DESC USER shows it in RSA_PUBLIC_KEY_FP: base64 of the SHA-256 of the DER public key."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_der(key)).digest()).decode()


def claims(account: str, user: str, key_fingerprint: str, now: float) -> dict[str, str | int]:
    """The four claims of a key-pair JWT that is signed `now` (docs/cortex.md#jwt-claims, docs/cortex.md#jwt-hour,
    docs/cortex.md#jwt-ahead)."""
    subject = f"{account.upper()}.{user.upper()}"
    issued = int(now) - BACKDATE_SECONDS
    return {"iss": f"{subject}.{key_fingerprint}", "sub": subject, "iat": issued, "exp": issued + TOKEN_SECONDS}


@dataclass(frozen=True)
class Token:
    """A token to send. Nothing can be read from a programmatic access token: it has no end that is known here, and no
    fingerprint."""

    value: str = field(repr=False)
    issued_at: int  # when it was signed or read, in seconds since the epoch; `iat` is BACKDATE_SECONDS before
    expires_at: int | None
    fingerprint: str
    kind: str = KEY_PAIR  # the value of the header that goes with it


def token_now(settings: Settings, now: float) -> Token:
    """The token to send `now`. Raises ConfigError if the key or the programmatic access token cannot be used."""
    if settings.pat is not None:
        return Token(read_pat(settings.pat), int(now), None, "", PAT)
    return sign(settings, now)


def sign(settings: Settings, now: float) -> Token:
    """Sign a token that is valid for 59 minutes from `now`; raises ConfigError if the key cannot be used."""
    key = load_key(settings.private_key_path, settings.passphrase)
    payload = claims(settings.account, settings.user, fingerprint(key), now)
    value = jwt.encode(payload, key, algorithm="RS256")
    # Verified here, because Snowflake reports a wrong token only by a UUID. The times are not verified, because `now`
    # may differ from this machine's clock.
    decoded = jwt.decode(
        value, key.public_key(), algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
    )
    if decoded != payload:
        raise RuntimeError("the signed token does not decode to its claims")
    return Token(value, int(now), int(payload["exp"]), fingerprint(key))


def auth_headers(token: Token) -> dict[str, str]:
    """The headers with which a token is sent (docs/cortex.md#token-type)."""
    return {"Authorization": f"Bearer {token.value}", TOKEN_TYPE: token.kind}


def register_statement(user: str, key: rsa.RSAPrivateKey, *, slot: str = "RSA_PUBLIC_KEY") -> str:
    """The SQL that registers the public key; `slot` is RSA_PUBLIC_KEY_2 while keys are rotated."""
    name = user if re.fullmatch(r"[A-Z_][A-Z0-9_$]*", user) else '"' + user.replace('"', '""') + '"'
    return f"ALTER USER {name} SET {slot}='{base64.b64encode(public_der(key)).decode()}';"


def name_note(user: str) -> str:
    """What to do if the statement does not find the user. (We know only the name that the user logs in with.)"""
    return (
        f"If Snowflake says that {user} does not exist: the statement needs the user's NAME, and {user} may be only "
        "the LOGIN_NAME. This shows the NAME of who runs it: SELECT CURRENT_USER();"
    )


def token_times(token: str) -> tuple[int, int]:
    """(`iat`, `exp`) of a JWT in seconds since the epoch; (0, 0) if the text is not a JWT."""
    try:
        body = token.split(".")[1]
        payload = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return int(payload["iat"]), int(payload["exp"])
    except (IndexError, KeyError, TypeError, ValueError):
        return 0, 0
