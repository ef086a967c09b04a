"""Which credential is used: the key pair, or a programmatic access token (PAT, docs/cortex.md#token-pat).

The rule: a private key that is named or that is there comes first. Without one, the PAT is used. The environment comes
last here: PM2 passes no secret of a shell to the processes, and the tools in a shell use the same PAT as these.

Standard library only: the first questions come before anything is installed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bundle.errors import ConfigError, hide
from bundle.files import read_own
from bundle.key_forms import free_path

# The values of the header that tells Snowflake what kind of token a request carries (docs/cortex.md#token-type).
TOKEN_TYPE = "X-Snowflake-Authorization-Token-Type"  # noqa: S105 - the name of a header
KEY_PAIR, PAT = "KEYPAIR_JWT", "PROGRAMMATIC_ACCESS_TOKEN"

# docs/cortex.md#pat-made, docs/cortex.md#pat-lifetime
HOW_TO_MAKE = """\
In Snowsight: your name at the bottom left, then Settings (or My profile), Authentication, Programmatic access tokens.
In SQL, for yourself: ALTER USER ADD PROGRAMMATIC ACCESS TOKEN claude_cortex DAYS_TO_EXPIRY = 90;"""
PUT = f"Put one there, as one line. To make one:\n{HOW_TO_MAKE}"


@dataclass(frozen=True)
class Pat:
    """Where a programmatic access token stands: in a file of its own (`path`), or among other settings (`value`).
    `place` says it for messages. `holder` is the file that must be private because it has the value in it."""

    place: str
    value: str = field(default="", repr=False)
    path: Path | None = None
    holder: Path | None = None
    in_shell: bool = False  # only the environment has it
    in_env_file: bool = False


class Credential(NamedTuple):
    """What logs in: `pat`, or if it is None the private key. `named_by` says what names the key; "" if it is only
    looked for in its usual place. `note` is about a token that is there and not used, and `files` are those that a
    token may stand in."""

    key: Path
    named_by: str
    pat: Pat | None
    note: str
    files: tuple[Path, ...]


def choose(key: Path, named_by: str, pats: Sequence[Pat]) -> Credential:
    """The rule. `pats` are the tokens that are set, the first one first."""
    files = tuple(pat.path for pat in pats if pat.path)
    pat = pats[0] if pats else None
    if pat is None or not (named_by or key.exists()):
        return Credential(key, named_by, pat, "", files)
    because = f"{named_by} names a private key" if named_by else f"there is a private key: {key}"
    aside = free_path(key.with_name(f"{key.name}.old"))
    fix = f"remove {named_by}" if named_by else shlex.join(["mv", "-n", str(key), str(aside)])
    note = f"{pat.place} is not used, because {because}.\nTo use it in place of the key pair: {fix}"
    return Credential(key, named_by, None, note, files)


def pats_of(env_file: Path, in_env_file: str, path: str, of_connection: Pat | None, in_shell: str) -> list[Pat]:
    """The tokens that are set, in the order in which they count: SNOWFLAKE_PAT in `.env`, SNOWFLAKE_PAT_FILE, the
    connection's, SNOWFLAKE_PAT in the environment. "" stands for what is not set."""
    found = []
    if in_env_file:
        found.append(Pat(f"SNOWFLAKE_PAT in {env_file}", in_env_file, holder=env_file, in_env_file=True))
    if path:
        file = Path(path).expanduser()
        found.append(Pat(f"the file {file} (SNOWFLAKE_PAT_FILE)", path=file))
    if of_connection is not None:
        found.append(of_connection)
    if in_shell:
        found.append(Pat("SNOWFLAKE_PAT in the environment", in_shell, in_shell=True))
    return found


def pat_of(connection: Mapping[str, str], origin: str, file: Path) -> Pat | None:
    """The token of a connection of Snowflake's own tools, in the order in which they look (docs/cortex.md#pat-toml)."""
    if connection.get("authenticator", "").upper() != PAT:
        return None
    if path := connection.get("token_file_path"):
        return Pat(f"the file {path} (token_file_path of {origin})", path=Path(path).expanduser())
    for name in ("token", "password"):
        if value := connection.get(name):
            return Pat(f"{name} of {origin}", value, holder=file)
    return None


def read_pat(pat: Pat) -> str:
    """The token as it is at this moment. Raises ConfigError if it cannot be used. It is never shown or logged after
    this: `hide` takes it out of every text that leaves."""
    value = pat.value
    try:
        if pat.path is not None:
            value = read_own(pat.path).decode("utf-8", "replace")
        hide(value.strip())
        for file in filter(None, (pat.path, pat.holder)):
            if file.stat().st_mode & 0o077:
                fix = f"Fix it with: chmod 600 {shlex.quote(str(file))}"
                raise ConfigError(f"other users can read {pat.place}.\n{fix}")
    except FileNotFoundError:
        raise ConfigError(f"there is no programmatic access token: {pat.place} does not exist.\n{PUT}") from None
    except OSError as error:
        check = f"Check with: ls -ld {shlex.quote(str(pat.path or pat.holder))}"
        raise ConfigError(f"cannot read {pat.place}: {error.strerror}.\n{check}") from None
    return checked_pat(value, pat.place)


def checked_pat(text: str, place: str) -> str:
    """The token without the white space around it. Raises ConfigError for what cannot be one: nothing but its header
    is known of its form (docs/cortex.md#token-pat)."""
    token = text.strip()
    if not re.fullmatch(r"[!-~]{20,4000}", token):
        raise ConfigError(
            f"{place} is no programmatic access token. Such a token is one word of 20 characters or more.\n{PUT}"
        )
    return token


def into_env_file(env_file: Path) -> str:
    """The command that puts SNOWFLAKE_PAT of a shell into `.env`. The value itself is not in the command."""
    quoted = shlex.quote(str(env_file))
    return f"""(umask 077; printf "SNOWFLAKE_PAT='%s'\\n" "$SNOWFLAKE_PAT" >> {quoted}) && chmod 600 {quoted}"""


def refuse_shell_only(pat: Pat | None, env_file: Path) -> None:
    """Raise ConfigError for a token that only this shell has: the processes would not find it."""
    if pat is not None and pat.in_shell:
        raise ConfigError(
            "SNOWFLAKE_PAT is only in the environment of this shell, and PM2 passes no secret of a shell on.\n"
            f"Put it into .env: {into_env_file(env_file)}"
        )
