"""A scripted session with several Claude Code and LiteLLM releases (`make compat`; downloads about 1 GB).

Rows: Claude Code releases. Columns: the pinned LiteLLM, and the newest that is two weeks old. Each cell is two sessions
of the real parts against the strict stand-in, on both routes: text, parallel tools, edits, --continue, both thinking
modes, /compact and not one request that Cortex would refuse; then one that fills its context and goes on. `/context`
shows the real windows, and a session that fills one is compacted before Cortex refuses. Prints a Markdown table; the
exit status is 0 when every cell is "yes".

    python tests/compat_claude.py [CLAUDE_CODE_VERSION ...]
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script: the folder above holds the package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bundle.settings import CLAUDE_ROUTES
from patches.apply_patch import MADE_FOR
from tests.compat import UV, before, environment, lock
from tests.session import (
    FUTURE,
    OLD,
    WINDOWS,
    Session,
    ask,
    call,
    fill_the_context,
    fill_the_window,
    windows_shown,
    with_entries,
)
from tests.set_up import BUNDLE, SetUp

# The oldest of 2.1, the pinned one (the last that npm installs on Node 20), and the newest.
RELEASES = ["2.1.0", "2.1.197", "newest"]
LITELLMS = [MADE_FOR, "newest"]


def install_claude(release: str, folder: Path) -> tuple[str, Path]:
    """(version, program) of a Claude Code release: the binary for this platform, which needs no Node.js."""
    system = {"Linux": "linux", "Darwin": "darwin"}[platform.system()]
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    wanted = "latest" if release == "newest" else release
    for package in (f"@anthropic-ai/claude-code-{system}-{machine}", "@anthropic-ai/claude-code"):
        prefix = folder / f"claude-{release}"
        command = [
            "npm",
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--prefix",
            str(prefix),
            *(["--before", before()] if release == "newest" else []),
            f"{package}@{wanted}",
        ]
        env = environment(folder, download=True)
        if subprocess.run(command, env=env, check=False, capture_output=True, timeout=600).returncode == 0:
            installed = prefix / "node_modules" / package
            program = next(path for path in (installed / "claude", installed / "cli.js") if path.exists())
            program.chmod(0o755)
            return json.loads((installed / "package.json").read_text())["version"], program
    raise RuntimeError(f"npm cannot install Claude Code {release}")


def install_bundle(litellm: str, folder: Path) -> tuple[str, Path]:
    """(LiteLLM's version, folder) of a copy of the bundle with an environment of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=BUNDLE, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    copy = folder / f"bundle-{litellm}"
    for name in listed:
        if (BUNDLE / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(BUNDLE / name, copy / name)
    python = copy / ".venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", copy / ".venv"], check=True, timeout=120)
    locks = ["-r", str(copy / "requirements.txt"), "-r", str(copy / "requirements-dev.txt")]
    if litellm != MADE_FOR:
        locks = locks[:2]
        (copy / "requirements.txt").unlink()  # uv would keep its releases. The new one is a pin, so the proxy takes it
        wanted = (copy / "requirements.in").read_text().replace(f"=={MADE_FOR}", "")
        lock(f"{wanted}\npytest\n", copy / "requirements.txt", "--python", str(python))
    install = [str(UV), "pip", "install", "--require-hashes", "--quiet", "--python", str(python), *locks]
    subprocess.run(install, env=environment(folder, download=True), check=True, timeout=1200)
    ask_it = "from importlib.metadata import version; print(version('litellm'))"
    asked = subprocess.run(
        [python, "-c", ask_it], env=environment(folder), capture_output=True, text=True, check=True, timeout=60
    )
    return asked.stdout.strip(), copy


def try_out(claude: Path, folder: Path) -> None:
    """One cell, run by the environment that it is about; AssertionError when something is not as it should be."""
    for route in CLAUDE_ROUTES:
        (folder / route).mkdir()
        try_route(claude, folder / route, route)


def try_route(claude: Path, folder: Path, route: str) -> None:
    set_up = SetUp(folder)
    try:
        set_up.start("auto_refresh.py", CLAUDE_ROUTE=route)
        set_up.start_proxy()
        session = Session(set_up, folder / "project", claude)
        echo = [call("Bash", command=f"echo {word} >> log.txt") for word in ("one", "two", "three")]
        notes = str(session.folder / "notes.txt")
        assert session.say(ask(echo, "parallel"), model=OLD) == "parallel"
        assert session.say(ask([call("Write", file_path=notes, content="beta\n"), echo[0]], "wrote")) == "wrote"
        assert session.say(ask([call("Read", file_path=notes), echo[1]], "read"), model=FUTURE) == "read"
        session.say("/compact")
        assert session.say(ask(echo[:2], "after"), model="haiku") == "after"
        assert (session.folder / "notes.txt").read_text() == "beta\n"
        refused = [record.get("refusal") for record in session.requests if record["status"] != 200]
        assert not refused, refused
        if not is_old(claude):
            fill_the_context(Session(set_up, folder / "full", claude))
            assert (shown := windows_shown(Session(set_up, folder / "context", claude))) == WINDOWS, shown
        for alias, window in (("sonnet", 1_000_000), ("haiku", 200_000)) if route == "chat" else ():
            fill_the_window(Session(set_up, folder / alias, claude, options=with_entries(set_up)), alias, window)
    finally:
        set_up.close()


def is_old(claude: Path) -> bool:
    """Whether this release shows no `/context` with -p, and does not compact after a refusal (seen with 2.1.0)."""
    said = subprocess.run([claude, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    return tuple(map(int, said.split()[0].split("."))) < (2, 1, 100)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--cell"]:
        with tempfile.TemporaryDirectory() as home:
            try_out(Path(arguments[1]), Path(home))
        return 0
    failed = False
    with tempfile.TemporaryDirectory(prefix="compat-") as scratch:
        folder = Path(scratch)
        bundles = [install_bundle(litellm, folder) for litellm in LITELLMS]
        print("| Claude Code |", " | ".join(f"LiteLLM {name}" for name, _ in bundles), "|")
        print("|---" * (len(bundles) + 1) + "|")
        for release in arguments or RELEASES:
            name, claude = install_claude(release, folder)
            cells = []
            for _, copy in bundles:
                python, script = copy / ".venv" / "bin" / "python", copy / "tests" / "compat_claude.py"
                command = [str(python), str(script), "--cell", str(claude)]
                env = environment(folder)
                done = subprocess.run(
                    command, cwd=copy, env=env, capture_output=True, text=True, check=False, timeout=600
                )
                cells.append("yes" if done.returncode == 0 else "**no**")
                if done.returncode:
                    failed = True
                    print(done.stderr[-2000:], file=sys.stderr)
            label = f"{name} (newest)" if release == "newest" else name
            print(f"| {label} |", " | ".join(cells), "|", flush=True)
    return int(failed)


if __name__ == "__main__":
    os.environ.setdefault("DISABLE_AUTOUPDATER", "1")
    sys.exit(main(sys.argv[1:]))
