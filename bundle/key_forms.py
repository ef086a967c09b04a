"""What is in a file that should be a private key and is none that can be used, and how to get one that can. Pure.

No command here writes over a file, also when it is pasted twice: `set -C` makes the shell refuse that.
"""

from __future__ import annotations

import base64
import binascii
import shlex
from contextlib import suppress
from itertools import count
from pathlib import Path


def how_to_make_a_key(path: Path) -> str:
    """The command that makes a key at `path`, or beside it if something is there."""
    target = free_path(path, ".p8" if path.suffix == ".pub" else None)
    return f"Make one with:\n{_writing(target, 'openssl genrsa 2048 | openssl pkcs8 -topk8 -nocrypt', path)}"


def refusal(path: Path, content: bytes) -> str | None:
    """The message about a file that holds no PEM private key as Snowflake takes it; None if it may hold one."""
    if b"PRIVATE KEY-----" in content:
        return _openssh(path, content) if b"BEGIN OPENSSH PRIVATE KEY-----" in content else None
    if is_public(content):
        return f"{path} is a public key; SNOWFLAKE_PRIVATE_KEY_PATH must name the private key.\n{_private_half(path)}"
    if content.startswith(b"PuTTY-User-Key-File"):
        fix = "In PuTTYgen, load it and choose Conversions, Export OpenSSH key. Then name the new file:"
        return f"{path} is a key of PuTTY.\n{fix}\n  SNOWFLAKE_PRIVATE_KEY_PATH=…"
    if content[:1] == b"\x30" and not content.isascii():  # how ASN.1 begins
        source = shlex.quote(str(path))
        command = _writing(free_path(path, ".p8"), f"openssl pkey -inform DER -in {source}", path)
        return f"{path} is in DER form, or is no key; a PEM file is needed.\nIf it is a key, make a copy:\n{command}"
    return f"{path} is not a PEM private key; that starts with -----BEGIN PRIVATE KEY-----.\n{how_to_make_a_key(path)}"


def is_public(content: bytes) -> bool:
    """Whether the file holds a public key alone, which everybody may read."""
    ssh = content.startswith((b"ssh-", b"ecdsa-", b"---- BEGIN SSH2"))
    return b"PRIVATE KEY-----" not in content and (ssh or b"PUBLIC KEY-----" in content)


def _openssh(path: Path, content: bytes) -> str:
    """ssh-keygen converts in place, so the command works on a copy."""
    body = b"".join(content.partition(b"KEY-----")[2].partition(b"-----END")[0].split())
    with suppress(binascii.Error):
        if b"ssh-rsa" not in base64.b64decode(body):  # the type stands in it, also in an encrypted one
            return f"{path} is not an RSA key; Snowflake accepts only RSA keys.\n{how_to_make_a_key(path)}"
    source, target = shlex.quote(str(path)), shlex.quote(str(free_path(path, ".p8")))
    command = f"(umask 077; set -C; cat {source} > {target} && ssh-keygen -p -m PKCS8 -f {target})"
    return (
        f"{path} is a key in OpenSSH's form; it must start with -----BEGIN PRIVATE KEY-----.\n"
        f"If it is an RSA key, convert a copy (an empty new passphrase means none):\n  {command}\n{_name_it(target)}"
    )


def _private_half(path: Path) -> str:
    """The private key beside a public one, or how to make a key."""
    stem = path.with_suffix("") if path.suffix == ".pub" else path
    for candidate in (stem.with_suffix(".p8"), stem.with_suffix(".pem"), stem):
        if candidate != path and candidate.is_file():
            return f"It may be the one beside it. {_name_it(shlex.quote(str(candidate)))}"
    return how_to_make_a_key(path)


def _writing(target: Path, command: str, path: Path) -> str:
    quoted, folder = shlex.quote(str(target)), shlex.quote(str(target.parent))
    make_folder = "" if target.parent.is_dir() else f"mkdir -p {folder}; "
    line = f"  (umask 077; {make_folder}set -C; {command} > {quoted})"
    return line if target == path else f"{line}\n{_name_it(quoted)}"


def _name_it(quoted: str) -> str:
    return f"Then put this into .env:\n  SNOWFLAKE_PRIVATE_KEY_PATH={quoted}"


def free_path(path: Path, suffix: str | None = None) -> Path:
    """`path`, or a name beside it that nothing has. With `suffix`, a name that ends so."""
    wanted = path if suffix is None else path.with_suffix(suffix)
    names = (wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}") for number in count(2))
    return wanted if not wanted.exists() else next(name for name in names if not name.exists())
