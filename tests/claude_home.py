"""A HOME with a settings file of Claude Code, and point_claude.py run in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from bundle.bootstrap import BUNDLE
from bundle.claude_settings import UserSettings
from bundle.render import render
from tests.set_up import BareSetUp

TEMPLATE = (BUNDLE / "litellm_config.template.yaml").read_text()
VALUES = {"SNOWFLAKE_JWT": "the.token.here", "LITELLM_MASTER_KEY": "sk-key", "CORTEX_URL": "https://h"}
BLOCK: dict[str, Any] = {
    "env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8001", "ANTHROPIC_AUTH_TOKEN": "sk-proxy", "SWITCH": "1"},
    "permissions": {"deny": ["WebSearch"]},
}
USERS = {
    "empty file": "",
    "two spaces": '{\n  "model": "opus",\n  "env": {\n    "A": "1"\n  }\n}\n',
    "no last newline": '{\n    "permissions": {\n        "allow": ["Bash(ls)"],\n        "deny": []\n    }\n}',
    "tabs": '{\n\t"env": {},\n\t"permissions": {\n\t\t"deny": [\n\t\t\t"Read(./.env)"\n\t\t]\n\t}\n}\n',
    "one line": '{"env":{"ANTHROPIC_BASE_URL":"https://other.example"},"permissions":{"deny":["A","WebSearch"]}}',
    "windows newlines": '{\r\n  "env": {\r\n    "A": "1"\r\n  }\r\n}\r\n',
    "byte order mark": '\ufeff{ "a" : 1 }',
    "strings": '{"hooks": {"x": "echo \\"{[,:]}\\" \\\\"}, "ü": "\\u00fc\\ud83d\\ude00 😀 \\ud83d", "n": 1.50e3}',
    "a key": '{\n  "env": {\n    "ANTHROPIC_AUTH_TOKEN": "mine"\n  },\n  "statusLine": null\n}\n',
}


def on_messages_route(template: str) -> str:
    """The template with all Claude models on the Messages API."""
    return re.sub(r"model: openai/(claude|newest)", r"model: snowflake/\1", template)


def with_model(text: str, model: str) -> str:
    """The template with the commented row of that model switched on."""
    lines = text.splitlines()
    start = lines.index(f"  #- {{ model_name: {model},")
    for index in range(start, start + 3):
        lines[index] = lines[index].replace("#", "", 1)
    return "\n".join(lines) + "\n"


def text_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def rows_of(template: str) -> list[dict[str, Any]]:
    """The rows that a template produces."""
    return list(yaml.safe_load(render(template, VALUES))["model_list"])


def answered_by(row: str, model: str) -> Callable[[str], str]:
    """An edit of the template: another model in the row with this name."""
    line = "model_name: {}\n    litellm_params: {{ <<: *cortex, model: openai/{} }}"
    assert line.format(row, "newest") in TEMPLATE
    return lambda template: template.replace(line.format(row, "newest"), line.format(row, model))


class Home:
    """A HOME with a settings file, and point_claude.py run in it."""

    def __init__(self, set_up: BareSetUp) -> None:
        self.set_up, self.folder = set_up, set_up.folder / ".claude"
        self.path = self.folder / "settings.json"
        self.folder.mkdir()

    def write(self, text: str, mode: int = 0o600) -> bytes:
        self.path.write_bytes(text.encode())
        self.path.chmod(mode)
        return text.encode()

    def run(self, *options: str, **environ: str) -> Any:
        done = self.set_up.run("point_claude.py", *options, seconds=60, **environ)
        assert "Traceback" not in done.stderr, done.stderr
        assert "sk-" not in done.stdout + done.stderr
        return done

    def good(self, *options: str, **environ: str) -> str:
        done = self.run(*options, **environ)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    @property
    def settings(self) -> UserSettings:
        return UserSettings(self.set_up.environ)

    @property
    def tree(self) -> Any:
        return json.loads(self.path.read_text(encoding="utf-8-sig"))

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())
