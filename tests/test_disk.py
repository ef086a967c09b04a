"""Full disks, read-only folders and a kill at any moment: the old file stays whole, and the work goes on."""

from __future__ import annotations

import random
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from bundle.tokens import token_times
from tests.day import PROXY, REFRESHER
from tests.set_up import SetUp, drop_root_powers, wait_until

pytestmark = pytest.mark.real


def test_a_refresher_killed_at_any_moment_leaves_a_whole_file(set_up: SetUp) -> None:
    moments = random.Random(3)  # noqa: S311 - the same moments on every run
    for number in range(6):
        process = set_up.start(REFRESHER)
        wait_until(lambda: set_up.log(REFRESHER).count("has started") > number, 20)  # noqa: B023 - it ends in here
        end = time.monotonic() + moments.uniform(0, 0.05)
        while time.monotonic() < end:
            process.send_signal(signal.SIGHUP)
        process.kill()
        process.wait(timeout=10)
        token = yaml.safe_load(set_up.config.read_text())["model_list"][0]["litellm_params"]["api_key"]
        assert token_times(token)[1] > time.time()
        assert {stat.S_IMODE(path.stat().st_mode) for path in set_up.folder.glob("*litellm_config*")} == {0o600}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", mount], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root may mount a disk that is small enough to fill")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


def test_a_disk_that_is_really_full_leaves_the_old_file_and_heals(set_up: SetUp, small_disk: Path) -> None:
    set_up.environ["CORTEX_HOME"] = str(small_disk)
    config = small_disk / "litellm_config.yaml"
    process = set_up.start(REFRESHER)
    before = wait_until(lambda: config.exists() and config.read_bytes(), 20)
    filler = fill(small_disk)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: "No space left on device" in set_up.log(REFRESHER), 20, lambda: set_up.log(REFRESHER))
    assert config.read_bytes() == before
    filler.unlink()
    wait_until(lambda: config.read_bytes() != before, 20, lambda: set_up.log(REFRESHER))
    assert process.poll() is None


def test_both_start_on_a_full_disk_and_go_on_when_there_is_room(set_up: SetUp, small_disk: Path) -> None:
    set_up.environ["CORTEX_HOME"] = str(small_disk)
    filler = fill(small_disk)
    both = [set_up.start(REFRESHER), set_up.start(PROXY)]
    wait_until(lambda: "No space left on device" in set_up.log(REFRESHER), 20, lambda: set_up.log(REFRESHER))
    wait_until(lambda: "No space left on device" in set_up.log(PROXY), 20, lambda: set_up.log(PROXY))
    filler.unlink()
    wait_until((small_disk / "litellm_config.yaml").exists, 20, lambda: set_up.log(REFRESHER))
    assert [process.poll() for process in both] == [None, None]


def test_a_folder_that_is_read_only_for_a_while_costs_only_that_while(set_up: SetUp) -> None:
    set_up.before_exec = drop_root_powers
    process = set_up.start(REFRESHER)
    before = wait_until(lambda: set_up.config.exists() and set_up.config.read_bytes(), 20)
    set_up.folder.chmod(0o500)
    try:
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "Permission denied" in set_up.log(REFRESHER), 20, lambda: set_up.log(REFRESHER))
        assert set_up.config.read_bytes() == before
    finally:
        set_up.folder.chmod(0o700)
    wait_until(lambda: set_up.config.read_bytes() != before, 20, lambda: set_up.log(REFRESHER))
    assert process.poll() is None
