"""Try patches/apply_patch.py on the real openai.py of many LiteLLM releases (`make compat`; downloads 300 MB).

For each release: not patched, applied, applied again without a change, checked, compiled, undone to the same bytes.
Prints a Markdown table; the exit status is 0 when every cell is "yes". The wheels are kept in $LITELLM_WHEELS when that
is set, else thrown away.

    python tests/compat_litellm.py [VERSION ...]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

if not __package__:  # run as a script: the folder above holds the package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.compat import environment, lock

SCRIPT = Path(__file__).absolute().parent.parent / "patches" / "apply_patch.py"
TARGET = "litellm/llms/openai/openai.py"
# The floor, the pinned release, one of each stretch between them. The newest that is old enough is added by name.
VERSIONS = ["1.84.0", "1.86.7", "1.88.6", "1.90.7", "1.92.2", "1.96.2", "1.100.5", "1.103.11", "1.106.2", "1.108.7"]
NEWEST = "newest"
STEPS = ["not patched", "applied", "again: no change", "checked", "compiled", "undone"]


def download(version: str, folder: Path) -> Path:
    """Fetch one wheel with pip by its hash, without what it depends on. RuntimeError when there is none."""
    kept = sorted(folder.glob(f"litellm-{version}-*.whl"))
    if kept:
        return kept[0]
    wanted = "litellm" if version == NEWEST else f"litellm=={version}"
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        listed = lock(f"{wanted}\n", Path(fresh) / "lock.txt", "--no-deps")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-q", "-d", fresh]
        command += ["--require-hashes", "-r", str(listed)]
        env = environment(Path(fresh), download=True)
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
        wheels = list(Path(fresh).glob("*.whl"))
        if result.returncode or not wheels:
            raise RuntimeError(f"pip cannot download {wanted}: {result.stderr.strip()}")
        return wheels[0].rename(folder / wheels[0].name)


def unpack(wheel: Path, site: Path) -> None:
    """Only the script and what it looks at: the package's start, the file, and the metadata with RECORD."""
    for folder, names in (("patches", [SCRIPT.name]), ("bundle", ["__init__.py", "bootstrap.py"])):
        (site / folder).mkdir()
        for name in names:
            shutil.copy(SCRIPT.parent.parent / folder / name, site / folder)
    (site / "requirements.txt").write_text(f"litellm=={wheel.name.split('-')[1]}\n")  # so that a newer one is taken
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name in {"litellm/__init__.py", TARGET} or re.match(
                r"litellm-[^/]+\.dist-info/(METADATA|RECORD)$", name
            ):
                archive.extract(name, site)


def run(site: Path, *arguments: str) -> int:
    # -S, and a copy with no .venv beside it: the only LiteLLM that can be found, and changed, is the one beside it.
    command = [sys.executable, "-S", str(site / "patches" / SCRIPT.name), *arguments]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60).returncode


def try_out(site: Path) -> list[bool]:
    """Whether each of STEPS was as expected, in order."""
    file = site / TARGET
    shipped = file.read_bytes()
    not_patched = run(site, "--check") == 1
    applied = run(site) == 0 and file.read_bytes().count(b"# >>> claude-code-on-snowflake-cortex") == 4
    before = file.read_bytes(), file.stat().st_mtime_ns
    again = run(site) == 0 and before == (file.read_bytes(), file.stat().st_mtime_ns)
    checked = run(site, "--check") == 0
    compiled = subprocess.run([sys.executable, "-m", "py_compile", file], check=False, timeout=60).returncode == 0
    undone = run(site, "--undo") == 0 and file.read_bytes() == shipped
    return [not_patched, applied, again, checked, compiled, undone]


def main(versions: list[str]) -> int:
    failed = False
    print("| LiteLLM |", " | ".join(STEPS), "|")
    print("|---" * (len(STEPS) + 1) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(os.environ.get("LITELLM_WHEELS") or scratch)
        wheels.mkdir(parents=True, exist_ok=True)
        for version in versions:
            try:
                wheel = download(version, wheels)
            except RuntimeError as error:
                print(f"| {version} | not tried: {str(error).splitlines()[-1]} |")
                failed = True
                continue
            name = wheel.name.split("-")[1]
            with tempfile.TemporaryDirectory() as site:
                unpack(wheel, Path(site))
                results = try_out(Path(site))
            failed = failed or not all(results)
            label = f"{name} ({NEWEST})" if version == NEWEST else name
            print(f"| {label} |", " | ".join("yes" if result else "**no**" for result in results), "|", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [*VERSIONS, NEWEST]))
