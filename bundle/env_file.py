"""Reads and writes `.env`, with Python's own library alone: the first questions come before anything is installed.

The form is that of python-dotenv without interpolation. A line that is no setting is refused, not passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import ConfigError
from bundle.files import write_private

_SPACE = r"[^\S\r\n]*"
_EMPTY = re.compile(r"(?:\s|#[^\r\n]*)*")
_NAME = re.compile(rf"(?:export[^\S\r\n]+)?([A-Za-z_][\w.-]*){_SPACE}=")
_QUOTE = re.compile(rf"{_SPACE}(['\"]?)")
# In quotes, a backslash escapes whatever follows, so that an escaped backslash is not taken for an escaped quote.
_VALUES = {
    "'": re.compile(rf"{_SPACE}'((?:\\.|[^'\\])*)'", re.DOTALL),
    '"': re.compile(rf'{_SPACE}"((?:\\.|[^"\\])*)"', re.DOTALL),
    "": re.compile(r"([^\r\n]*)"),
}
_END = re.compile(rf"(?:{_SPACE}\#[^\r\n]*)?{_SPACE}(?:\r\n|\n|\r|\Z)")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True)
class Entry:
    """One setting: its name and value, the number of its line, and where in the text it begins and ends."""

    name: str
    value: str
    line: int
    start: int
    end: int


def parse(text: str, path: Path) -> list[Entry]:
    """The settings in the text of `.env`, in their order. A mistake raises ConfigError with file and line; the line
    itself is not shown, because it may hold a secret."""
    entries, position = [], _skip_empty(text, 0)
    while position < len(text):
        start, line = position, len(re.findall(r"\r\n|\n|\r", text[:position])) + 1
        name = _NAME.match(text, position)
        if not name:
            raise _mistake(path, line, "this is not NAME=value")
        opening = _QUOTE.match(text, name.end())
        quote = opening[1] if opening else ""
        value = _VALUES[quote].match(text, name.end())
        end = value and _END.match(text, value.end())
        if not value or not end:
            raise _mistake(path, line, f"the value of {name[1]} has no closing quote, or something follows after it")
        entries.append(Entry(name[1], _unquoted(value[1], quote), line, start, end.end()))
        position = _skip_empty(text, end.end())
    return entries


def _skip_empty(text: str, position: int) -> int:
    """Where the next setting begins, after empty lines and comments."""
    found = _EMPTY.match(text, position)
    return found.end() if found else position


def _unquoted(value: str, quote: str) -> str:
    if quote == "'":
        return re.sub(r"\\([\\'])", r"\1", value)
    if quote == '"':
        return re.sub(r"\\([\\'\"abfnrtv])", lambda found: _ESCAPES.get(found[1], found[1]), value)
    return re.sub(r"\s+#.*", "", value).strip()


def _mistake(path: Path, line: int, what: str) -> ConfigError:
    return ConfigError(f"{path}, line {line}: {what}.\nFix that line, or put a # before it.")


def read_text(path: Path) -> str:
    """The text of `.env`, without the mark that some editors put at the start of a file."""
    return path.read_text(encoding="utf-8-sig")


def set_in_env_file(path: Path, name: str, value: str) -> None:
    """Set a variable in `.env` and keep every other line. Only its owner can read the file then. Raises ConfigError."""
    path = path.resolve()  # a linked .env stays a link
    try:
        text = read_text(path)
    except FileNotFoundError:
        text = "# .env.example lists what else can be set here.\n"
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}.\nFix that file, or move it away.") from None
    write_private(path, with_setting(text, name, value, path))


def with_setting(text: str, name: str, value: str, path: Path) -> str:
    """The text of `.env` with this setting, in the first form that reads back as it was given."""
    before = parse(text, path)
    expected = [(entry.name, entry.value) for entry in before if entry.name != name]
    single = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    double = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    for form in (value, single, double) if value.isalnum() else (single, double, value):
        changed = _replaced(text, before, name, f"{name}={form}\n")
        try:
            after = parse(changed, path)
        except ConfigError:
            continue
        others = [(entry.name, entry.value) for entry in after if entry.name != name]
        if others == expected and {entry.value for entry in after if entry.name == name} == {value}:
            return changed
    raise ConfigError(f"{path} cannot hold this value of {name}: no form of it reads back.\nChoose another one.")


def _replaced(text: str, entries: list[Entry], name: str, line: str) -> str:
    ours = [entry for entry in entries if entry.name == name]
    if not ours:
        return text + ("\n" if text and text[-1] not in "\r\n" else "") + line
    for entry in reversed(ours):
        text = text[: entry.start] + line + text[entry.end :]
    return text
