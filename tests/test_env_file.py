"""bundle/env_file.py: `.env` is read as python-dotenv reads it, what is set reads back, and nonsense is named."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from bundle.env_file import parse, set_in_env_file, with_setting
from bundle.errors import ConfigError
from bundle.settings import load_settings
from tests.set_up import ACCOUNT
from tests.user import put

PATH = Path("/somewhere/.env")
# What makes the form difficult, and letters.
HARD = st.text(st.sampled_from("ab'\"\\# =$\t\né{}"), max_size=12)


def ours(text: str) -> dict[str, str]:
    return {entry.name: entry.value for entry in parse(text, PATH)}


def theirs(text: str) -> dict[str, str | None]:
    return dict(dotenv_values(stream=io.StringIO(text), interpolate=False))


@given(st.lists(st.tuples(st.sampled_from(["A=", "export B =", "C= ", "D", "# ", ""]), HARD), max_size=4))
def test_what_is_read_is_what_dotenv_reads(lines: list[tuple[str, str]]) -> None:
    text = "\n".join(start + rest for start, rest in lines)
    try:
        found = ours(text)
    except ConfigError:
        return  # a line that dotenv passes over
    assert found == theirs(text)


@given(HARD, st.sampled_from(["", "A='x'\n", 'C="y" # why\n', "# it's mine", "export B=old\nC='z'\nB=older"]))
def test_what_is_set_reads_back_and_everything_else_stays(value: str, text: str) -> None:
    try:
        changed = with_setting(text, "B", value, PATH)
    except ConfigError:
        return  # no form of this value reads back: the file stays as it is
    assert ours(changed) == {**ours(text), "B": value}
    assert {**theirs(changed)} == {**theirs(text), "B": value}


@pytest.mark.parametrize(
    "value", ["open sesame", "it's", 'say "no"', "C:\\keys\\", " both ends ", "#1", "a # b", "${HOME}"]
)
def test_a_passphrase_of_any_letters_can_be_set(value: str) -> None:
    assert ours(with_setting("A='x'\n", "PRIVATE_KEY_PASSPHRASE", value, PATH))["PRIVATE_KEY_PASSPHRASE"] == value


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("SNOWFLAKE_ACCOUNT: A-B\n", 1, "this is not NAME=value"),
        ("A=1\n\n# why\nhello\n", 4, "this is not NAME=value"),
        ("A=1\r\n-----BEGIN PRIVATE KEY-----\r\n", 2, "this is not NAME=value"),
        ("A='one\nB=2\n", 1, "the value of A has no closing quote, or something follows after it"),
        ("A=1\nB='x' y\n", 2, "the value of B has no closing quote, or something follows after it"),
    ],
)
def test_a_line_that_is_no_setting_is_named_by_file_and_line_and_not_shown(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text, PATH)
    assert str(refused.value).startswith(f"{PATH}, line {line}: {words}.\n")
    assert "hello" not in str(refused.value)
    assert "BEGIN" not in str(refused.value)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = put(tmp_path / ".env", "\ufeffA=1\r\nB=2\r\n".encode(), 0o644)
    set_in_env_file(path, "B", "3")
    assert path.read_text() == "A=1\nB=3\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_value_is_set_in_place_and_every_other_line_stays(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nSNOWFLAKE_ACCOUNT=\nexport SNOWFLAKE_USER = old # why\nPROXY_PORT=8002")
    path.chmod(0o600)
    for name, value in (("SNOWFLAKE_ACCOUNT", "A-B"), ("SNOWFLAKE_USER", "new"), ("OTHER", "x")):
        set_in_env_file(path, name, value)
    assert path.read_text().splitlines() == [
        "# mine",
        "SNOWFLAKE_ACCOUNT='A-B'",
        "SNOWFLAKE_USER=new",
        "PROXY_PORT=8002",
        "OTHER=x",
    ]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("user", ["jane.doe@example.com", "it's \\me", "a b # c", "${HOME}"])
def test_any_user_name_reads_back_from_env_as_it_was_typed(tmp_path: Path, user: str) -> None:
    set_in_env_file(tmp_path / ".env", "SNOWFLAKE_ACCOUNT", ACCOUNT)
    set_in_env_file(tmp_path / ".env", "SNOWFLAKE_USER", user)
    environ = {"HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path)}
    assert load_settings(environ).user == user.upper()


def test_a_linked_env_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("A=1\n")
    (tmp_path / ".env").symlink_to("real")
    set_in_env_file(tmp_path / ".env", "B", "2")
    assert (tmp_path / ".env").is_symlink()
    assert (tmp_path / "real").read_text() == "A=1\nB=2\n"
