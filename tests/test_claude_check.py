"""bundle/claude_check.py: what keeps a `claude` from the proxy, or from a model, is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bundle import claude_settings
from bundle.bootstrap import script
from bundle.claude_check import NOT_POINTED, check, check_models
from bundle.settings import Settings

POINTED = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8001", "ANTHROPIC_AUTH_TOKEN": "sk-1"}
AGAIN = script("point_claude.py")


@pytest.mark.parametrize(
    ("tree", "fix"),
    [
        ({"env": {"ANTHROPIC_BASE_URL": "https://user:hidden@x.example"}}, "Take ANTHROPIC_BASE_URL out of"),
        ({"env": {"ANTHROPIC_AUTH_TOKEN": "hidden"}}, "Take ANTHROPIC_AUTH_TOKEN out of"),
        ({"env": {"ANTHROPIC_API_KEY": "hidden"}}, "Take ANTHROPIC_API_KEY out of"),
        ({"env": {"CLAUDE_CODE_USE_BEDROCK": "1"}}, "Take CLAUDE_CODE_USE_BEDROCK out of"),
        ({"env": {"CLAUDE_CODE_USE_MANTLE": "1"}}, "Take CLAUDE_CODE_USE_MANTLE out of"),
        ({"env": {"CLAUDE_CODE_USE_SOME_NEW_PROVIDER": "1"}}, "Take CLAUDE_CODE_USE_SOME_NEW_PROVIDER out of"),
        ({"apiKeyHelper": "hidden"}, "Take apiKeyHelper out of"),
        ({"env": {"HTTPS_PROXY": "http://p.example", "NO_PROXY": "corp"}}, "Add 127.0.0.1 to NO_PROXY in"),
    ],
)
def test_check_names_the_settings_that_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Any, fix: str
) -> None:
    monkeypatch.setattr(claude_settings, "MANAGED", tmp_path / "managed")
    for name in (".claude/settings.local.json", "managed/managed-settings.json", "managed/managed-settings.d/1.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tree))
        (problem,) = check(8001, "sk-1", {"HOME": str(tmp_path), **POINTED}, tmp_path)
        assert str(path) in problem.found
        assert "hidden" not in problem.found
        assert problem.final == name.startswith("managed")
        assert problem.fix == ("Only whoever manages this machine can change it" if problem.final else f"{fix} {path}")
        if problem.final and "apiKeyHelper" in fix:  # `make claude` fails too, so this is said in any case
            assert check(8001, "sk-1", {"HOME": str(tmp_path)}, tmp_path) == [NOT_POINTED, problem]
        path.unlink()


@pytest.mark.parametrize(
    ("environ", "fixes"),
    [
        ({}, []),
        ({"ANTHROPIC_BASE_URL": "http://localhost:8001/"}, [AGAIN]),
        ({"ANTHROPIC_BASE_URL": "http://localhost:8001", "https_proxy": "http://p", "NO_PROXY": "127.0.0.1"}, [AGAIN]),
        ({"ANTHROPIC_BASE_URL": "https://user:hidden@g.example"}, [AGAIN]),
        ({"ANTHROPIC_BASE_URL": "http://[::1"}, [AGAIN]),
        ({"ANTHROPIC_BASE_URL": "127.0.0.1:8001"}, [AGAIN]),
        ({"ANTHROPIC_AUTH_TOKEN": "hidden"}, [AGAIN]),
        ({"ANTHROPIC_API_KEY": "hidden"}, ["unset ANTHROPIC_API_KEY"]),
        ({"CLAUDE_CODE_USE_VERTEX": "True"}, ["unset CLAUDE_CODE_USE_VERTEX"]),
        ({"CLAUDE_CODE_USE_VERTEX": "False"}, []),
        ({"CLAUDE_CODE_USE_ANTHROPIC_AWS": "1"}, ["unset CLAUDE_CODE_USE_ANTHROPIC_AWS"]),
        ({"CLAUDE_CODE_USE_POWERSHELL_TOOL": "1"}, []),
        ({"HTTPS_PROXY": "http://p"}, [AGAIN]),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "127.0.0.1", "no_proxy": "corp"}, [AGAIN]),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, []),
    ],
)
def test_each_problem_comes_with_what_fixes_it(tmp_path: Path, environ: dict[str, str], fixes: list[str]) -> None:
    problems = check(8001, "sk-1", {"HOME": str(tmp_path), **POINTED, **environ}, tmp_path)
    assert [problem.fix for problem in problems] == fixes
    assert "hidden" not in str(problems)
    assert not any(problem.final for problem in problems)


@pytest.mark.parametrize(
    ("tree", "exported", "found", "fix"),
    [
        ({}, {"ANTHROPIC_MODEL": "gpt-5"}, "ANTHROPIC_MODEL is gpt-5", "unset ANTHROPIC_MODEL"),
        ({"model": "my/model"}, {}, "model is my/model", "Take model out of {path}"),
        (
            {"env": {"CLAUDE_CODE_SUBAGENT_MODEL": "x"}},
            {},
            "MODEL is x",
            "Take CLAUDE_CODE_SUBAGENT_MODEL out of {path}",
        ),
        ({"env": {"ANTHROPIC_MODEL": "opus"}}, {"ANTHROPIC_MODEL": "gpt-5"}, "", ""),
        ({"model": "anthropic/claude-sonnet-4.5"}, {"ANTHROPIC_MODEL": "us.anthropic.claude-opus-4-6-v1"}, "", ""),
        ({"model": "opusplan[1m]"}, {"ANTHROPIC_MODEL": "default"}, "", ""),
        ({"model": None}, {"ANTHROPIC_MODEL": ""}, "", ""),
    ],
)
def test_a_setting_that_asks_for_a_model_without_a_row_is_named_with_its_place(
    tmp_path: Path, settings: Settings, tree: Any, exported: dict[str, str], found: str, fix: str
) -> None:
    path = tmp_path / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text(json.dumps(tree))
    problems = check_models(settings, {"HOME": str(tmp_path), **exported}, tmp_path)
    assert [problem.fix for problem in problems] == ([fix.format(path=path)] if fix else [])
    assert not found or found in problems[0].found


def test_of_a_broken_template_nothing_is_said_here(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundle.settings.BUNDLE", tmp_path)
    for text in ("model_list: [", "model_list: 1", "[]", ""):
        (tmp_path / "litellm_config.template.yaml").write_text(text)
        assert not check_models(settings, {"HOME": str(tmp_path), "ANTHROPIC_MODEL": "gpt-5"}, tmp_path)


def test_a_base_url_with_v1_is_named_as_one(tmp_path: Path) -> None:
    (problem,) = check(8001, "sk-1", {**POINTED, "ANTHROPIC_BASE_URL": "http://127.0.0.1:8001/v1/"}, tmp_path)
    assert problem.found.startswith("ANTHROPIC_BASE_URL must not end in /v1")
