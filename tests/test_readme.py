"""The README against the code: what it quotes is what the code has, what it tells to run exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from patches import apply_patch
from tests.conftest import BUNDLE
from usage import statement

README = (BUNDLE / "README.md").read_text()
MAKEFILE = (BUNDLE / "Makefile").read_text()
COMMANDS = "\n".join(re.findall(r"`([^`\n]+)`", README) + re.findall(r"```bash\n(.*?)```", README, re.DOTALL))


def table(heading: str) -> list[list[str]]:
    """The cells of the first table after a line that contains `heading`, without its head."""
    lines = README[README.index(heading) :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_make_target_that_it_names_exists() -> None:
    named = {word for words in re.findall(r"\bmake ((?:[a-z-]+ ?)+)", COMMANDS) for word in words.split()}
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert len(named) >= 8
    assert named <= targets


def test_every_script_and_option_that_it_names_exists() -> None:
    called = set(re.findall(r"python3? ((?:patches/)?[a-z_]+\.py)((?: --[a-z-]+)*)", COMMANDS))
    assert len(called) >= 6
    for script, options in called:
        shown = subprocess.run(
            [sys.executable, BUNDLE / script, "--help"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        for option in options.split():
            assert option in shown, f"{script} {option}"


def test_the_statement_for_snowsight_is_the_one_that_usage_runs() -> None:
    assert statement(7) in [block.strip() for block in blocks("sql")]


def test_the_patch_by_hand_is_the_one_that_is_applied() -> None:
    assert b"\n".join(apply_patch.BLOCK).decode() in [block.strip() for block in blocks("python")]
    for method, helper in apply_patch.CALLS.items():
        assert f"`{method}`" in README
        assert f"`self.{helper}`" in README


def test_the_table_of_models_is_the_template_s() -> None:
    rows = yaml.safe_load((BUNDLE / "litellm_config.template.yaml").read_text())["model_list"]
    answers = {row["model_name"]: row["litellm_params"]["model"].partition("/")[2] for row in rows}
    expected = {name: model for name, model in answers.items() if "*" in name or name[-8:].isdecimal()}
    shown = {
        re.sub(r"(any other )?`(.*?)(…)?`", lambda m: m[2] + ("*" if m[3] else ""), asked): model.strip("`")
        for asked, model in table("## Models")
        if "own names" not in asked
    }
    assert shown == expected
    assert all(name == model for name, model in answers.items() if name not in expected)


def test_the_example_of_another_model_is_the_template_s() -> None:
    template = (BUNDLE / "litellm_config.template.yaml").read_text()
    (example,) = (block for block in blocks("yaml") if "openai-gpt-4.1" in block)
    commented = "".join(f"  # {line[2:]}\n" for line in example.splitlines())
    assert commented in template


def test_the_table_of_settings_is_the_one_of_the_example_and_of_pm2() -> None:
    shown = [row[0].strip("`") for row in table("## Settings")]
    example = re.findall(r"^#?([A-Z_]+)=", (BUNDLE / ".env.example").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(example)
    passed = (BUNDLE / "ecosystem.config.js").read_text()
    secrets = {"PRIVATE_KEY_PASSPHRASE", "LITELLM_MASTER_KEY"}
    for name in shown:
        assert (f'"{name}"' in passed) == (name not in secrets)


SPOKEN = (
    "".join(
        (BUNDLE / name).read_text()
        for name in (
            "bundle/proxy/server.py",
            "bundle/proxy/front_door.py",
            "bundle/cortex/errors.py",
            "tests/cortex_stub.py",
        )
    )
    + (BUNDLE / "tests" / "cortex_rules.py").read_text()
)


@pytest.mark.parametrize("message", [row[0] for row in table("## Troubleshooting")])
def test_a_message_under_troubleshooting_is_one_that_is_said(message: str) -> None:
    quoted = re.findall(r"`(.*?)`", message)
    assert quoted
    for words in quoted:
        for part in words.replace("8001", "{port}").split(" … "):
            assert part in SPOKEN


def test_the_files_that_it_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (BUNDLE / target).exists()
    assert (BUNDLE / Path("LICENSE")).read_text().startswith("MIT")
