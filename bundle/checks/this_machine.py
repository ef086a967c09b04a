"""Checks of programs, key, configuration, files and patch: nothing here asks another computer."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from bundle.bootstrap import BUNDLE
from bundle.checks.finding import Finding, Findings, Installation, from_message, verdict
from bundle.refresher import read_state
from bundle.render import template_rows
from bundle.supervisor import interpreter, output_of, pm2_version
from bundle.tokens import fingerprint, load_key
from patches import apply_patch

FREE_BYTES = 50 * 2**20
SECRET_FILES = (".master_key", "litellm_config.yaml", ".refresher.json", "claude.json")


def programs(setup: Installation) -> Findings:
    used = interpreter()
    version = ".".join(map(str, sys.version_info[:3]))
    fix = "make PYTHON=python3.12 install (any from 3.10 on)"
    yield verdict("Python", sys.version_info >= (3, 10), f"{version} ({sys.executable})", fix)
    if Path(used).parent != Path(sys.executable).parent:
        yield Finding("Python", "warn", f"PM2 uses another one: {used}", f"Look with that: {used} doctor.py")
    node = output_of("node", "--version", environ=setup.environ).strip().lstrip("v")
    new_enough = int(node.partition(".")[0] or 0) >= 18
    yield verdict("Node.js", new_enough, node or "not on PATH", "Install 18 or newer: https://nodejs.org")
    pm2 = pm2_version(setup.environ)
    yield verdict("PM2", int(pm2.partition(".")[0] or 0) >= 5, pm2 or "not installed", "make install")
    yield litellm_release(metadata.version("litellm"))


def litellm_release(version: str) -> Finding:
    fix = f"{sys.executable} -m pip install --require-hashes -r {BUNDLE / 'requirements.txt'}"
    if version in apply_patch.MALICIOUS:
        found = f"{version} steals credentials ({apply_patch.MALICIOUS[version]})"
        return Finding("LiteLLM", "fail", f"{found}. Replace it, then every key that this machine could read", fix)
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < apply_patch.FLOOR:
        return Finding("LiteLLM", "fail", f"{version} lets a host header go around its keys (CVE-2026-49468)", fix)
    found = f"{version}, made for {apply_patch.MADE_FOR}"
    return verdict("LiteLLM", version == apply_patch.MADE_FOR, found, fix, "warn")


def machine(setup: Installation) -> Findings:
    free, writable = shutil.disk_usage(setup.folder).free, os.access(setup.folder, os.W_OK)
    found = f"{setup.folder} {'can' if writable else 'cannot'} be written, {free / 2**30:.1f} GB free"
    yield verdict("Disk", writable and free > FREE_BYTES, found, f"df -h {setup.folder}; ls -ld {setup.folder}")
    if certificates := setup.environ.get("SSL_CERT_FILE"):
        try:
            ssl.create_default_context(cafile=certificates)
            yield Finding("Certificates", "ok", certificates)
        except OSError as error:  # ssl.SSLError is one
            found = f"SSL_CERT_FILE is {certificates}: {error.strerror or 'no certificate in it'}"
            yield Finding("Certificates", "fail", found, "Let it name your company's (PEM), or: unset SSL_CERT_FILE")


def private_key(setup: Installation) -> Findings:
    settings = setup.settings
    key = load_key(settings.private_key_path, settings.passphrase)
    yield Finding("Private key", "ok", f"{settings.private_key_path}, RSA {key.key_size}, nobody else can read it")
    yield Finding("Fingerprint", "ok", f"{fingerprint(key)} (to compare: DESC USER {settings.user})")


def account(setup: Installation) -> Findings:
    if setup.trouble:
        yield from_message("Account", setup.trouble)
        return
    settings, running = setup.settings, read_state(setup.folder)
    host = urlsplit(settings.base_url).netloc
    yield Finding("Account", "ok", f"{settings.account}, user {settings.user}, at {host}; from {settings.origin}")
    used, here = f"{running.get('account')}.{running.get('user')}", f"{settings.account}.{settings.user}"
    if running.get("account") and used != here:
        found = f"the running refresher was started for {used}, and this shell says {here}"
        yield Finding("In use", "warn", found, "Put the right one into .env, then: make stop start")


def template(setup: Installation) -> Findings:
    names = [row["model_name"] for row in template_rows(setup.settings, setup.settings.claude_route)]
    twice = sorted({name for name in names if names.count(name) > 1})
    found = f"rows of the same name, LiteLLM takes turns: {', '.join(twice)}" if twice else f"{len(names)} rows"
    yield verdict("Models", not twice, found, "Remove all but one from litellm_config.template.yaml", "warn")


def secret_files(setup: Installation) -> Findings:
    there = [path for path in (setup.folder / name for name in SECRET_FILES) if path.exists()]
    open_ones = " ".join(str(path) for path in there if path.stat().st_mode & 0o077)
    found = f"others can read {open_ones}" if open_ones else f"{len(there)} files that nobody else can read"
    yield verdict("Secrets", not open_ones, found, f"chmod 600 {open_ones}")


def patch(_: Installation) -> Findings:
    try:
        report = apply_patch.inspect()
        yield from_message("openai.py", report.detail, "ok" if report.ok else "fail")
    except apply_patch.PatchError as error:
        yield from_message("openai.py", error)
