"""Checks of programs, key, configuration, files and patch. None of them needs the network."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import ssl
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from bundle.bootstrap import BUNDLE, make
from bundle.checks.finding import Finding, Findings, Installation, duration, finding_from_message, make_finding
from bundle.credential import read_pat, refuse_shell_only
from bundle.model_list import read as read_list
from bundle.refresher import read_state
from bundle.render import template_rows
from bundle.supervisor import interpreter, output_of, pm2_version
from bundle.tokens import fingerprint, load_key
from patches import apply_patch

FREE_BYTES = 50 * 2**20
SECRET_FILES = (".master_key", "litellm_config.yaml", ".refresher.json", "claude.json")


def programs(installation: Installation) -> Findings:
    pm2_python = interpreter()
    version = ".".join(map(str, sys.version_info[:3]))
    fix = f"{make('PYTHON=python3.12', 'install')} (any from 3.10 on)"
    yield make_finding("Python", sys.version_info >= (3, 10), f"{version} ({sys.executable})", fix)
    if Path(pm2_python).parent != Path(sys.executable).parent:
        fix = f"Run doctor with that: {shlex.join([pm2_python, str(BUNDLE / 'doctor.py')])}"
        yield Finding("Python", "warn", f"PM2 uses {pm2_python}", fix)
    node = output_of("node", "--version", environ=installation.environ).strip().lstrip("v")
    new_enough = int(node.partition(".")[0] or 0) >= 18
    yield make_finding("Node.js", new_enough, node or "not on PATH", "Install 18 or newer: https://nodejs.org")
    pm2 = pm2_version(installation.environ)
    yield make_finding("PM2", int(pm2.partition(".")[0] or 0) >= 5, pm2 or "not installed", make("install"))
    yield litellm_release(metadata.version("litellm"))


def litellm_release(version: str) -> Finding:
    requirements = shlex.quote(str(BUNDLE / "requirements.txt"))
    fix = f"{shlex.quote(sys.executable)} -m pip install --require-hashes -r {requirements}"
    if version in apply_patch.MALICIOUS:
        found = f"{version} steals credentials ({apply_patch.MALICIOUS[version]})"
        return Finding("LiteLLM", "fail", f"{found}. Replace it, then every key that this machine could read", fix)
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < apply_patch.FLOOR:
        return Finding("LiteLLM", "fail", f"{version} checks no key if a Host header is forged (CVE-2026-49468)", fix)
    if apply_patch.is_newer(version):
        return Finding("LiteLLM", "fail", f"{version} is newer than {apply_patch.MADE_FOR}, which was tested", fix)
    found = f"{version}, made for {apply_patch.MADE_FOR}"
    return make_finding("LiteLLM", version == apply_patch.MADE_FOR, found, fix, "warn")


def machine(installation: Installation) -> Findings:
    folder, quoted = installation.folder, shlex.quote(str(installation.folder))
    free, writable = shutil.disk_usage(folder).free, os.access(folder, os.W_OK)
    found = f"{folder} {'can' if writable else 'cannot'} be written, {free / 2**30:.1f} GB free"
    yield make_finding("Disk", writable and free > FREE_BYTES, found, f"df -h {quoted}; ls -ld {quoted}")
    for open_folder in sorted({str(each) for each in (folder, BUNDLE) if each.stat().st_mode & 0o002}):
        found = f"every user of this machine can write into {open_folder}, and can change what runs here as you"
        yield Finding("Folder", "warn", found, f"chmod o-w {shlex.quote(open_folder)}")
    if certificates := installation.environ.get("SSL_CERT_FILE"):
        try:
            ssl.create_default_context(cafile=certificates)
            yield Finding("Certificates", "ok", certificates)
        except OSError as error:  # ssl.SSLError is one
            found = f"SSL_CERT_FILE is {certificates}: {error.strerror or 'no certificate in it'}"
            yield Finding("Certificates", "fail", found, "Set it to your company's PEM file, or: unset SSL_CERT_FILE")


def private_key(installation: Installation) -> Findings:
    settings = installation.settings
    if settings.pat is not None:
        return
    key = load_key(settings.private_key_path, settings.passphrase)
    yield Finding("Private key", "ok", f"{settings.private_key_path}, RSA {key.key_size}, nobody else can read it")
    yield Finding("Fingerprint", "ok", f"{fingerprint(key)} (to compare: DESC USER {settings.user})")


def access_token(installation: Installation) -> Findings:
    """The programmatic access token, if one is in use. Of one that is there but not used: why."""
    settings = installation.settings
    if settings.pat is None:
        if settings.pat_note:
            found, _, fix = settings.pat_note.partition("\n")
            yield Finding("Access token", "skip", found, fix)
        return
    read_pat(settings.pat)
    private = "in the environment" if settings.pat.in_shell else "nobody else can read it"
    found = f"programmatic access token from {settings.pat.place}, {private}. No private key is used"
    yield Finding("Access token", "ok", found)
    refuse_shell_only(settings.pat, settings.folder / ".env")


def account(installation: Installation) -> Findings:
    if installation.settings_error:
        yield finding_from_message("Account", installation.settings_error)
        return
    settings, running = installation.settings, read_state(installation.folder)
    host = urlsplit(settings.base_url).netloc
    yield Finding("Account", "ok", f"{settings.account}, user {settings.user}, at {host}; from {settings.origin}")
    for note in settings.notes:
        yield Finding("Name", "warn", note, "Correct the name in that file, or ignore this if another program uses it")
    used, configured = f"{running.get('account')}.{running.get('user')}", f"{settings.account}.{settings.user}"
    if running.get("account") and used != configured:
        found = f"the running refresher uses {used}, but the settings of this shell are for {configured}"
        yield Finding(
            "In use", "warn", found, f"Put the right account and user into .env, then: {make('stop', 'start')}"
        )


def template(installation: Installation) -> Findings:
    names = [row["model_name"] for row in template_rows(installation.settings, installation.settings.claude_route)]
    twice = sorted({name for name in names if names.count(name) > 1})
    found = f"LiteLLM takes turns between rows of one name: {', '.join(twice)}" if twice else f"{len(names)} rows"
    yield make_finding("Models", not twice, found, "Remove all but one from litellm_config.template.yaml", "warn")


def secret_files(installation: Installation) -> Findings:
    paths = [path for path in (installation.folder / name for name in SECRET_FILES) if path.exists()]
    readable = shlex.join(str(path) for path in paths if path.stat().st_mode & 0o077)
    found = f"others can read {readable}" if readable else f"{len(paths)} files that nobody else can read"
    yield make_finding("Secrets", not readable, found, f"chmod 600 {readable}")


def patch(_: Installation) -> Findings:
    try:
        patch_report = apply_patch.inspect()
        yield finding_from_message("openai.py", patch_report.detail, "ok" if patch_report.ok else "fail")
    except apply_patch.PatchError as error:
        yield finding_from_message("openai.py", error)


def model_list(installation: Installation) -> Findings:
    """The account's list of models, which fills in the rows that say `newest`. Without it, the documentation does."""
    listed, kept = read_list(installation.settings), read_state(installation.folder).get("models")
    if listed is None or not listed.models:
        why = kept.get("error") if isinstance(kept, dict) else ""
        found = f"Snowflake's cannot be read: {why}" if why else "Snowflake's was not read yet"
        used = "The newest models that Snowflake documents are used"
        yield Finding("Model list", "warn" if why else "skip", found, f"{used}. To read it now: {make('models')}")
        return
    age = duration(installation.now - listed.asked_at)
    yield Finding("Model list", "ok", f"{len(listed.models)} models, as Snowflake listed them {age} ago")
    for warning in kept.get("warnings", ()) if isinstance(kept, dict) else ():
        fix = (
            f"Choose another model in its row of litellm_config.template.yaml. To see which there are: {make('models')}"
        )
        yield Finding("Model", "warn", warning, fix)
