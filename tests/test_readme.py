"""The pages for people against the code: what they quote is what the code has, what they tell to run exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bundle.account_usage import statement
from bundle.prices import read_prices
from patches import apply_patch
from tests.set_up import BUNDLE

PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((BUNDLE / "docs").glob("*.md"))))
TARGETS = set(re.findall(r"^([a-z-]+):", (BUNDLE / "Makefile").read_text(), re.MULTILINE))
# What the words under "Troubleshooting" are said by: the bundle itself, and the stand-in for Cortex.
SPOKEN = "".join(
    path.read_text()
    for path in (
        *BUNDLE.glob("*.py"),
        *BUNDLE.glob("patches/**/*.py"),
        *BUNDLE.glob("bundle/**/*.py"),
        *BUNDLE.glob("tests/cortex_*.py"),
    )
)


def read(page: str) -> str:
    return (BUNDLE / page).read_text(encoding="utf-8")


def commands(page: str) -> str:
    text = read(page)
    return "\n".join(re.findall(r"`([^`\n]+)`", text) + re.findall(r"```(?:ba)?sh\n(.*?)```", text, re.DOTALL))


def table(heading: str, page: str = "README.md") -> list[list[str]]:
    """The cells of the first table after the line `heading`, without its head."""
    text = read(page)
    lines = text[text.index(f"\n{heading}\n") :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read(page), re.DOTALL)


def anchors(page: str) -> set[str]:
    """The names under which a page's headings can be linked to, as GitHub and GitLab make them, and its own."""
    text = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings} | set(
        re.findall(r'<a id="([^"]+)">', text)
    )


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_it_names_exists(page: str) -> None:
    if page == "CONTRIBUTING.md" and "check" not in TARGETS:
        pytest.skip("this Makefile has no `make check` yet")
    named = {word for words in re.findall(r"\bmake ((?:[a-z-]+ ?)+)", commands(page)) for word in words.split()}
    assert named <= TARGETS
    assert len(named) >= 8 or page != "README.md"


def test_every_script_and_option_that_they_name_exists() -> None:
    pattern = r"python3? ((?:patches/|docs/)?[a-z_]+\.py)((?: --[a-z-]+)*)"
    called = {found for page in PAGES for found in re.findall(pattern, commands(page))}
    assert len(called) >= 10
    shown: dict[str, str] = {}
    for script, options in called:
        if script not in shown:
            done = subprocess.run(
                [sys.executable, BUNDLE / script, "--help"], capture_output=True, text=True, timeout=60, check=True
            )
            shown[script] = done.stdout
        for option in options.split():
            assert option in shown[script], f"{script} {option}"


def test_the_clone_command_works_with_an_address_in_its_place(tmp_path: Path) -> None:
    clone = blocks("bash")[0]
    assert clone.count("ADDRESS") == 1
    command = f"{clone.strip().replace('ADDRESS', str(BUNDLE))} && pwd && ls Makefile"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [str(tmp_path / "claude-cortex"), "Makefile"], done.stderr


def test_the_statement_for_snowsight_is_the_one_that_usage_runs() -> None:
    assert statement(7) in [block.strip() for block in blocks("sql", "docs/running.md")]


def test_the_patch_by_hand_is_the_one_that_is_applied() -> None:
    assert b"\n".join(apply_patch.BLOCK).decode() in [block.strip() for block in blocks("python", "docs/by-hand.md")]
    shown = {
        method: helper.strip("`")
        for methods, helper in table("## What the patch changes", "docs/by-hand.md")
        for method in re.findall(r"`(\w+)`", methods)
    }
    assert shown == {method: f"self.{helper}" for method, helper in apply_patch.CALLS.items()}


def test_the_table_of_models_is_the_template_s() -> None:
    rows = yaml.safe_load((BUNDLE / "litellm_config.template.yaml").read_text())["model_list"]
    answers = {row["model_name"]: row["litellm_params"]["model"].partition("/")[2] for row in rows}
    expected = {name: model for name, model in answers.items() if name[-8:].isdecimal()}
    newest = {"claude-opus-*": "Opus", "claude-sonnet-*": "Sonnet", "claude-haiku-*": "Haiku", "claude-*": "Sonnet"}
    expected |= {name: f"the newest {family}" for name, family in newest.items()}
    shown = {
        re.sub(r"(any other )?`(.*?)(…)?`", lambda m: m[2] + ("*" if m[3] else ""), asked): model.strip("`")
        for asked, model in table("## Models", "docs/routes.md")
        if "a name that" not in asked
    }
    assert shown == expected
    assert {answers[name] for name in newest} == {"newest"}
    assert all(name == model for name, model in answers.items() if name not in expected)


def test_the_example_of_another_model_is_the_template_s() -> None:
    template = (BUNDLE / "litellm_config.template.yaml").read_text()
    (example,) = (block for block in blocks("yaml", "docs/routes.md") if "openai-gpt-4.1" in block)
    commented = "".join(f"  # {line}\n" for line in example.splitlines())
    assert commented in template


def test_the_table_of_settings_is_the_one_of_the_example_and_of_pm2() -> None:
    shown = [row[0].strip("`") for row in table("## Settings")]
    example = re.findall(r"^#?([A-Z_]+)=", (BUNDLE / ".env.example").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(example)
    passed = (BUNDLE / "ecosystem.config.js").read_text()
    secrets = {"PRIVATE_KEY_PASSPHRASE", "LITELLM_MASTER_KEY", "SNOWFLAKE_PAT"}
    for name in shown:
        assert (f'"{name}"' in passed) == (name not in secrets)


@pytest.mark.parametrize(
    "message",
    [
        row[0]
        for row in (
            *table("## Troubleshooting"),
            *table("## Messages from this bundle", "docs/troubleshooting.md"),
        )
    ],
)
def test_a_message_under_troubleshooting_is_one_that_is_said(message: str) -> None:
    quoted = [words for words in re.findall(r"`(.*?)`", message) if not words.startswith("make ")]
    assert quoted
    for words in quoted:
        for part in words.replace("8001", "{port}").split(" … "):
            assert part in SPOKEN


@pytest.mark.parametrize("page", PAGES)
def test_what_it_links_to_exists(page: str) -> None:
    text = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            linked = (BUNDLE / page).parent / path if path else BUNDLE / page
            assert linked.exists(), target
            if anchor:
                assert anchor in anchors(str(linked.resolve().relative_to(BUNDLE))), target


def test_the_licence_is_mit() -> None:
    assert read("LICENSE").startswith("MIT")


def test_the_share_of_the_price_is_that_of_the_prices() -> None:
    (share,) = re.findall(r"a token of Sonnet 5 costs (\d+) % of one of Opus 4.6", read("README.md"))
    sonnet, opus = (read_prices()[model] for model in ("claude-sonnet-5", "claude-opus-4-6"))
    for kind in ("input", "output"):
        assert getattr(sonnet, kind) / getattr(opus, kind) == int(share) / 100
