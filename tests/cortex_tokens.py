"""The tokens that the stand-in accepts: those of the user's key pairs, and the user's programmatic access tokens.

Of a programmatic access token (PAT), only its text and its state count. A key-pair token is a JWT that a registered key
has signed (docs/cortex.md). `read_claims` says what is wrong with it in Snowflake's own numbers. The stand-in compares
the times in it with its own clock.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from tests.cortex_rules import JSON

TOKEN_LIFE = 3600


def load_public_key(text: str) -> tuple[str, RSAPublicKey]:
    """Fingerprint (`SHA256:…`) and key from PEM, or from its body alone as `ALTER USER` takes it."""
    body = "".join(line for line in text.splitlines() if not line.startswith("-----"))
    try:
        key = load_der_public_key(base64.b64decode(body))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"not a public key: {error}") from None
    if not isinstance(key, RSAPublicKey):
        raise ValueError("not an RSA key")
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode(), key


def read_claims(token: str, keys: Mapping[str, RSAPublicKey], account: str, user: str, *, underscores: bool) -> JSON:
    """The claims of a token signed by a registered key.

    Raises ValueError with Snowflake's reason: 394305 algorithm, 394307 account, 394300 user, 394301 iat or exp,
    394304 fingerprint, 394306 signature. `underscores`: `_` and `-` in the account are the same.
    """
    jws = jwt.PyJWS()
    try:
        parts = jws.decode_complete(token, options={"verify_signature": False})
        claims = json.loads(parts["payload"])
        issuer, subject = str(claims["iss"]), str(claims["sub"])
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        raise ValueError("394300 issuer or subject missing, or not a token") from None
    if parts["header"].get("alg") != "RS256":
        raise ValueError("394305 algorithm is not RS256")
    # A user may have periods (a login name is often an address), an account has none.
    names, _, fingerprint = issuer.rpartition(".SHA256:")
    for name in (names, subject):
        claimed, _, login = name.partition(".")
        if (claimed.replace("_", "-") if underscores else claimed) != (
            account.replace("_", "-") if underscores else account
        ):
            raise ValueError("394307 account does not match")
        if login != user:
            raise ValueError("394300 user does not match")
    if not all(type(claims.get(name)) is int for name in ("iat", "exp")):
        raise ValueError("394301 iat or exp is missing or not in whole seconds")
    key = keys.get(f"SHA256:{fingerprint}")
    if key is None:
        raise ValueError("394304 public key fingerprint is not registered")
    try:
        jws.decode(token, key, algorithms=["RS256"])
    except jwt.PyJWTError:
        raise ValueError("394306 signature does not match") from None
    return {"iat": claims["iat"], "exp": claims["exp"], "fp": f"SHA256:{fingerprint}"}


class Keys:
    """The user's two public keys, by slot, and the claims of the tokens that they have signed."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[str, RSAPublicKey]] = {}
        self._claims: dict[str, JSON] = {}

    def register(self, public_key: str | None, slot: int) -> None:
        self._slots.pop(slot, None)
        if public_key is not None:
            self._slots[slot] = load_public_key(public_key)
        self._claims = {}

    @property
    def fingerprints(self) -> tuple[str | None, ...]:
        return tuple(self._slots[slot][0] if slot in self._slots else None for slot in (1, 2))

    def claims(self, token: str, account: str, user: str, *, underscores: bool) -> JSON:
        """As `read_claims`, which runs once for each token."""
        if token not in self._claims:
            keys = dict(self._slots.values())
            self._claims[token] = read_claims(token, keys, account, user, underscores=underscores)
        return self._claims[token]


# What is wrong with a programmatic access token, by its state: the fault in cortex_faults.py. A state that is not here
# is "valid". The real service has been seen to say the same of an unknown token and of one that has ended
# (docs/cortex.md#pat-refused).
PAT_FAULTS: Mapping[str, str] = {
    "expired": "pat_expired",
    "disabled": "pat_disabled",
    "removed": "pat_invalid",
    "no policy": "pat_no_policy",
}


def taken_as_pat(kind: str, *, known: bool, as_jwt: bool) -> bool:
    """Whether the service takes a token for a programmatic access token. `kind` is the type that its header names; ""
    if there is none, and then the service inspects the token. `known`: it is one. `as_jwt`: the switch."""
    types = {"", "KEYPAIR_JWT"} if as_jwt else {""}
    return kind == "PROGRAMMATIC_ACCESS_TOKEN" or (known and kind in types)


def pat_fault(state: str | None, *, own_words: bool) -> str | None:
    """The fault for a programmatic access token in this state (None: nobody knows it), or None if it is accepted.
    `own_words`: the service says whether it has ended or is disabled."""
    if state == "valid":
        return None
    fault = PAT_FAULTS.get(state or "removed", "pat_invalid")
    return fault if own_words or fault == "pat_no_policy" else "pat_invalid"
