"""No secret is in a log, a file that others can read, a list of processes or a status."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator

import pytest

from bundle.settings import load_settings
from tests.set_up import TOKEN, SetUp, copy_bundle

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetUp]:
    """Refresher and proxy with umask 0 and loggers at their lowest level, after each kind of error."""
    folder = tmp_path_factory.mktemp("loud")
    made = SetUp(folder, bundle=copy_bundle(folder / "bundle"))
    make_loud(made)
    made.environ["HOST"] = "0.0.0.0"  # noqa: S104 - LiteLLM would obey it
    template = made.bundle / "litellm_config.template.yaml"
    template.write_text(template.read_text().replace("  drop_params: true", "  drop_params: true\n  set_verbose: true"))
    made.before_exec = open_umask
    try:
        made.start("auto_refresh.py")
        made.start_proxy()
        for fault in (None, "bad_token", "html", "broken_json", "internal", "drop", "no_role"):
            if fault:
                made.stub.fault(fault)
            made.ask("hello")
            made.ask("hello", stream=True)
            made.stub.clear_faults()
        made.ask("hello", model="gpt-nobody-knows")
        made.stub.close_port()
        made.ask("hello")
        made.stub.open_port()
        yield made
    finally:
        made.close()


def make_loud(made: SetUp) -> None:
    """Let every logger of the processes of this set-up write everything."""
    (made.folder / "loud").mkdir()
    (made.folder / "loud" / "sitecustomize.py").write_text(
        "import logging\n"
        "logging.basicConfig(level=1)\n"
        "logging.Logger.setLevel = logging.Handler.setLevel = lambda self, level: setattr(self, 'level', 1)\n"
        "logging.Logger.getEffectiveLevel = lambda self: 1\n"
        "logging.Logger.isEnabledFor = lambda self, level: True\n"
    )
    made.environ |= {"PYTHONPATH": str(made.folder / "loud"), "LITELLM_LOG": "DEBUG", "OPENAI_LOG": "debug"}


def open_umask() -> None:
    os.umask(0)


@pytest.mark.keeps("logs-without-secrets")
def test_no_token_and_no_key_is_in_a_log_at_any_log_level(loud: SetUp) -> None:
    said = loud.log("claude_proxy.py") + loud.log("auto_refresh.py")
    assert len(said) > 100_000, "the loggers were not loud"
    assert not TOKEN.search(said)
    assert loud.master_key not in said
    token = load_settings(loud.environ).config_path.read_text().partition("api_key: ")[2].split()[0]
    assert TOKEN.fullmatch(token)
    assert not [part for part in token.split(".") if part in said]


@pytest.mark.keeps("secret-files")
def test_no_file_with_a_secret_is_readable_by_others_under_umask_0(loud: SetUp) -> None:
    secret = re.compile(rb"eyJ[\w-]+\.eyJ|PRIVATE KEY|" + re.escape(loud.master_key.encode()))
    with_secret = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in loud.folder.rglob("*")
        if path.is_file() and "bundle" not in path.parts and secret.search(path.read_bytes())
    }
    assert with_secret == dict.fromkeys(["litellm_config.yaml", ".master_key", "snowflake_key.p8"], 0o600)
    for name in (".refresher.json", ".refresher.lock"):
        assert stat.S_IMODE((loud.folder / name).stat().st_mode) == 0o600


@pytest.mark.keeps("loopback-only")
def test_host_in_the_environment_opens_the_port_to_nobody(loud: SetUp) -> None:
    loud.assert_on_loopback_only()


@pytest.mark.keeps("errors-without-tokens")
def test_no_token_is_in_the_status_or_in_ps(loud: SetUp) -> None:
    shown = subprocess.run(["ps", "-Aww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    status = loud.run("auto_refresh.py", "--status").stdout + loud.run("auto_refresh.py", "--status", "--json").stdout
    for text in (shown, status):
        assert not TOKEN.search(text)
        assert loud.master_key not in text
