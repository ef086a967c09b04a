"""bundle/bootstrap.py: missing packages are named, and under PM2 they are waited for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.set_up import BUNDLE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of the package `bundle`. Python imports from there when it runs there."""
    shutil.copytree(BUNDLE / "bundle", tmp_path / "bundle", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def start(folder: Path, code: str, **environ: str) -> subprocess.Popen[str]:
    """Run this code without any package but `bundle`."""
    return subprocess.Popen(
        [sys.executable, "-S", "-c", f"from bundle import bootstrap; {code}"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environ},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_script_whose_packages_are_missing_says_so_and_how_to_install_them(folder: Path) -> None:
    process = start(folder, "bootstrap.enter_venv(['json', 'no_such_package'])")
    expected = f"{sys.executable} lacks no_such_package. Install what is needed: make -C {folder} install\n"
    assert (process.communicate(timeout=60)[1], process.returncode) == (expected, 78)


def test_under_pm2_a_package_that_pip_is_replacing_is_waited_for(folder: Path) -> None:
    with start(folder, "bootstrap.enter_venv(['slow_package']); import slow_package", NODE_CHANNEL_FD="3") as process:
        assert process.stderr is not None
        assert "lacks slow_package" in process.stderr.readline()
        (folder / "slow_package.py").touch()
        assert process.wait(timeout=30) == 0
