"""bundle/checks/this_machine.py: programs, disk, certificates, key, settings, template and patch."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from bundle import settings, supervisor
from bundle.bootstrap import make
from bundle.checks import report as report_module
from bundle.checks import this_machine
from bundle.checks.finding import Finding, read_installation
from bundle.checks.report import examine
from bundle.checks.this_machine import litellm_release, machine, patch, programs, secret_files
from patches import apply_patch
from tests.checked import findings
from tests.set_up import BUNDLE, USER, SetUp

pytestmark = pytest.mark.usefixtures("nobody_s_environment")


def test_malicious_and_vulnerable_releases_are_refused() -> None:
    for version in ("1.82.8", "1.107.0"):
        assert "every key" in litellm_release(version).found
    assert litellm_release("1.83.9").state == "fail"
    other, ours = litellm_release("1.199.0"), litellm_release(apply_patch.MADE_FOR)
    assert (other.state, "requirements.txt" in other.fix) == ("fail", True)
    assert litellm_release("1.106.1").state == "warn"
    assert litellm_release("1.199.0\x1b[2J").found.isprintable()
    assert ours.state == "ok"


def test_a_missing_node_and_a_missing_pm2_are_named(
    set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "pm2_program", lambda _: str(tmp_path / "pm2"))
    found = findings(set_up, programs, PATH=str(tmp_path))
    assert (found["Node.js"].state, found["PM2"].state) == ("fail", "fail")
    assert (found["PM2"].fix, "nodejs.org" in found["Node.js"].fix) == (make("install"), True)


def test_an_old_node_is_named(set_up: SetUp, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\necho v16.20.2\n")
    node.chmod(0o755)
    found = findings(set_up, programs, PATH=f"{tmp_path}:{os.environ['PATH']}")["Node.js"]
    assert (found.state, found.found) == ("fail", "16.20.2")


def test_another_interpreter_than_pm2_s_is_named(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "interpreter", lambda: "/usr/local/bin/python3")
    found = findings(set_up, programs)["Python"]
    assert (found.state, found.fix) == ("warn", f"Run doctor with that: /usr/local/bin/python3 {BUNDLE / 'doctor.py'}")


def test_a_full_disk_is_named(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    assert findings(set_up, machine)["Disk"].state == "fail"


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_named(set_up: SetUp, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "company.pem"
    if content:
        file.write_text(content)
    found = findings(set_up, machine, SSL_CERT_FILE=str(file))["Certificates"]
    assert (found.state, "unset SSL_CERT_FILE" in found.fix) == ("fail", True)


def test_a_key_that_cannot_be_used_is_named_with_its_remedy(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> Finding:
        return examine(read_installation(set_up.environ, time.time()))[0]

    monkeypatch.setattr(report_module, "CHECKS", {"Key": report_module.CHECKS["Key"]})
    set_up.key_path.chmod(0o644)
    assert (key().state, key().fix) == ("fail", f"Fix it with: chmod 600 {set_up.key_path}")
    set_up.key_path.chmod(0o600)
    set_up.write_key(rsa.generate_private_key(public_exponent=65537, key_size=1024))  # noqa: S505 - that is the fault
    assert (key().state, "1024 bits" in key().found) == ("fail", True)
    set_up.key_path.unlink()
    assert (key().state, "openssl" in key().fix) == ("fail", True)


def test_an_account_that_the_running_refresher_does_not_use_is_named(set_up: SetUp) -> None:
    (set_up.folder / ".refresher.json").write_text(json.dumps({"account": "OTHER-ACCT", "user": USER}))
    found = findings(set_up, this_machine.account)
    assert found["Account"].state == "ok"
    assert (found["In use"].state, "OTHER-ACCT.JANE" in found["In use"].found) == ("warn", True)


@pytest.mark.parametrize(
    ("edit", "state", "words"),
    [
        (lambda text: text + "\n\t{", "fail", "not valid YAML"),
        (lambda text: text.replace("${SNOWFLAKE_JWT}", "${SNOWFLAKE_TOKEN}"), "fail", "SNOWFLAKE_TOKEN"),
        (
            lambda text: text.replace("model_name: claude-opus-4-5", "model_name: claude-opus-4-6"),
            "warn",
            "takes turns",
        ),
    ],
)
def test_a_template_with_a_mistake_is_named(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch, edit: Callable[[str], str], state: str, words: str
) -> None:
    template = set_up.folder / "litellm_config.template.yaml"
    template.write_text(edit((BUNDLE / template.name).read_text()))
    monkeypatch.setattr(settings, "BUNDLE", set_up.folder)
    monkeypatch.setattr(report_module, "CHECKS", {"Configuration": (this_machine.template,)})
    (found,) = examine(read_installation(set_up.environ, time.time()))
    assert (found.state, words in found.found) == (state, True)


def test_a_secret_that_others_can_read_is_named(healthy: SetUp) -> None:
    healthy.config.chmod(0o640)
    found = findings(healthy, secret_files)["Secrets"]
    assert (found.state, found.fix) == ("fail", f"chmod 600 {healthy.config}")


@pytest.mark.parametrize("state", ["pristine", "patched", "moved"])
def test_the_patch_is_looked_for_in_the_code_that_runs(
    set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    installed = apply_patch._find()
    assert installed is not None
    source = apply_patch.without_block(installed.path.read_bytes())
    shipped = apply_patch.digest(source)
    if state == "patched":
        source = apply_patch.with_block(source, apply_patch.find_calls(source))
    elif state == "moved":
        source = source.replace(b"def astreaming", b"def other").replace(b"make_openai_chat_completion_request", b"ask")
        shipped = apply_patch.digest(source)
    copy = tmp_path / "openai.py"
    copy.write_bytes(source)
    monkeypatch.setattr(apply_patch, "_find", lambda: installed._replace(path=copy, shipped=shipped))
    (found,) = findings(set_up, patch).values()
    assert found.state == ("ok" if state == "patched" else "fail")
    assert bool(found.fix) == (state != "patched")
