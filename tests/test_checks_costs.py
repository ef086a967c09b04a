"""What doctor and status say of today's dollars, the day's limit, the ledger and the prices."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from bundle import prices
from bundle.bootstrap import make
from bundle.checks import costs as module
from bundle.checks import processes
from bundle.checks.costs import costs
from bundle.checks.finding import read_installation
from bundle.checks.first_answer import print_result, wait_for_answer
from bundle.checks.model_check import Report
from bundle.checks.report import examine
from bundle.ledger import FOLDER
from bundle.spending import FILE, Spent, Sum
from tests.checked import ROWS, FakeProxy, findings, serving
from tests.set_up import ACCOUNT, BUNDLE, USER, SetUp, drop_root_powers

LIMIT = "BUDGET_USD_PER_DAY"


@pytest.fixture
def proxy(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProxy]:
    """A set-up whose proxy answers, and that has a valid token."""
    set_up.refresh()
    now = int(time.time())
    state = {"issued": now, "expires": now + 3600, "next_refresh": now + 3000, "account": ACCOUNT, "user": USER}
    (set_up.folder / ".refresher.json").write_text(json.dumps(state))
    monkeypatch.setattr(processes, "pm2_processes", lambda _: ROWS)
    with serving(made := FakeProxy(set_up.port, set_up.master_key)):
        yield made


def spend(set_up: SetUp, usd: float, limit: float | None, **more: Any) -> None:
    """What the proxy writes when so much was spent, and it has this limit."""
    today = Sum(requests=3, input=1000, cache_read=9000, usd=usd, **{"low": usd, "high": usd, **more})
    names = ["claude-opus-5", "openai-gpt-5.2"] if today.unpriced else []
    day = f"{datetime.now().astimezone():%Y-%m-%d}"
    (set_up.folder / FILE).write_text(Spent(day, today, limit=limit, without_price=names).text())


def configure(set_up: SetUp, *lines: str) -> Path:
    path = set_up.folder / ".env"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.usefixtures("proxy")
def test_the_limit_of_the_running_proxy_counts_and_not_that_of_this_shell(set_up: SetUp) -> None:
    spend(set_up, 1.0, limit=5.0)
    shell = {LIMIT: "0.50"}
    found = findings(set_up, costs, **shell)
    assert found["Spent today"].state == "ok"
    assert found["Spent today"].found.startswith("$1.00 of $5.00 (3 requests, 90% of the prompts")
    assert found["Limit"].state == "warn"
    assert "uses $5.00 for a day, but the settings say $0.50 (the environment)" in found["Limit"].found
    assert found["Limit"].fix.endswith(make("stop", "start"))
    screen, good = processes.status(read_installation({**set_up.environ, **shell}, time.time()))
    assert ("$1.00 of $5.00" in screen, "refuses" in screen, good) == (True, False, True)


@pytest.mark.usefixtures("proxy")
def test_a_limit_that_only_the_proxy_s_own_environment_has_is_named_and_how_to_end_it(set_up: SetUp) -> None:
    spend(set_up, 2.0, limit=2.0)
    found = findings(set_up, costs)
    assert found["Spent today"].state == "fail"
    assert f"because of {LIMIT} of the running proxy" in found["Spent today"].found
    assert make("stop", "start") in found["Spent today"].fix
    assert "uses $2.00 for a day, but the settings name none" in found["Limit"].found


def test_without_a_running_proxy_the_limit_of_the_settings_counts(set_up: SetUp) -> None:
    set_up.refresh()
    spend(set_up, 2.0, limit=2.0)
    configure(set_up, f"{LIMIT}=9")
    found = findings(set_up, costs)
    assert found["Spent today"].found.startswith("$2.00 of $9.00")
    assert "Limit" not in found


@pytest.mark.usefixtures("proxy")
def test_status_names_the_setting_at_the_limit_and_is_not_good(set_up: SetUp) -> None:
    path = configure(set_up, f"{LIMIT}=2")
    spend(set_up, 1.9, limit=2.0)
    environ = set_up.environ
    screen, good = processes.status(read_installation(environ, time.time()))
    assert good
    assert "\nspent today:     $1.90 of $2.00 (3 requests" in screen
    spend(set_up, 2.0, limit=2.0)
    screen, good = processes.status(read_installation(environ, time.time()))
    assert not good
    assert f"the proxy refuses requests until midnight, because of {LIMIT} in {path}, line 1\n" in screen
    assert make("doctor") in screen


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"low": 0.995, "high": 1.0}, "$1.00 ("),
        ({"low": 0.9, "high": 1.1}, "~$1.00 ("),
        ({"low": 0.9, "high": 1.1, "unpriced": 7}, "at least $1.00 ("),
    ],
)
@pytest.mark.usefixtures("proxy")
def test_an_estimate_is_marked_as_in_the_status_line(set_up: SetUp, more: dict[str, float], shown: str) -> None:
    spend(set_up, 1.0, limit=None, **more)
    assert findings(set_up, costs)["Spent today"].found.startswith(shown)


@pytest.mark.usefixtures("proxy")
def test_a_limit_that_does_not_hold_for_a_model_without_a_price_is_a_warning(set_up: SetUp) -> None:
    spend(set_up, 0.1, limit=None, unpriced=7)
    assert findings(set_up, costs)["Spent today"].state == "ok"
    configure(set_up, f"{LIMIT}=2")
    for usd, state in ((0.1, "warn"), (1.9, "warn"), (2.0, "fail")):
        spend(set_up, usd, limit=2.0, unpriced=7)
        found = findings(set_up, costs)["Spent today"]
        assert found.state == state
        assert "The limit does not hold for claude-opus-5, openai-gpt-5.2" in found.found
        assert str(prices.FILE) in found.fix


@pytest.mark.parametrize(("lines", "state"), [((), "warn"), ((f"{LIMIT}=2",), "fail"), (("LEDGER=off",), "warn")])
def test_prices_that_cannot_be_read_are_a_fault_only_where_a_limit_needs_them(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: tuple[str, ...], state: str
) -> None:
    configure(set_up, *lines)
    monkeypatch.setattr(prices.read_prices, "__defaults__", (tmp_path / "no-prices.yaml",))
    assert findings(set_up, costs)["Prices"].state == state


# --------------------------------------------------------------------------------------------------------------- ledger


def a_file(place: Path) -> None:
    place.write_text("no folder")


def a_link_to_nothing(place: Path) -> None:
    place.symlink_to(place.parent / "nothing")


def a_month_that_is_a_folder(place: Path) -> None:
    (place / f"{datetime.now(timezone.utc):%Y-%m}.jsonl").mkdir(parents=True)


@pytest.mark.parametrize(
    ("put", "words"),
    [(a_file, "is no folder"), (a_link_to_nothing, "is no folder"), (a_month_that_is_a_folder, "Is a directory")],
)
def test_a_ledger_that_cannot_be_written_is_named_with_its_reason(
    set_up: SetUp, put: Callable[[Path], None], words: str
) -> None:
    place = set_up.folder / FOLDER
    assert findings(set_up, costs)["Ledger"].state == "ok"
    assert not place.exists()
    put(place)
    found = findings(set_up, costs)["Ledger"]
    assert (found.state, words in found.found, f"ls -ld {place}" in found.fix) == ("warn", True, True)
    configure(set_up, f"{LIMIT}=2")
    assert findings(set_up, costs)["Ledger"].state == "fail"
    configure(set_up, "LEDGER=off")
    assert "Ledger" not in findings(set_up, costs)


def test_a_ledger_on_a_full_disk_is_named(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 2**70)
    assert f"the disk of {set_up.folder} is full" in findings(set_up, costs)["Ledger"].found


def test_a_ledger_without_the_right_to_write_is_named(set_up: SetUp) -> None:
    place = set_up.folder / FOLDER
    place.mkdir(mode=0o500)
    look = (
        "import pathlib, sys; from bundle.checks import costs; print(costs.why_no_line(pathlib.Path(sys.argv[1]), 0))"
    )
    command = [sys.executable, "-c", look, str(set_up.folder)]
    done = subprocess.run(
        command,
        cwd=BUNDLE,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=drop_root_powers,
    )
    assert done.stdout == f"{place} cannot be written\n"


# -------------------------------------------------------------------------------------------------------- after a start


def test_a_start_at_the_limit_is_good_asks_no_model_and_says_what_to_do(
    set_up: SetUp, proxy: FakeProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure(set_up, f"{LIMIT}=2")
    spend(set_up, 2.5, limit=2.0)
    assert wait_for_answer(read_installation(set_up.environ, time.time()))
    said = capsys.readouterr().out
    assert proxy.asked == []
    assert "Both processes run. Today's limit is reached" in said
    assert "$2.50 of $2.00" in said
    assert f"before midnight, raise or remove {LIMIT} in {path}, line 1\n" in said
    (failing,) = (
        each for each in examine(read_installation(set_up.environ, time.time())) if each.name == "Spent today"
    )
    assert failing.state == "fail"


@pytest.mark.usefixtures("proxy")
def test_a_start_whose_own_requests_reach_the_limit_is_good_too(
    set_up: SetUp, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(set_up, f"{LIMIT}=2")
    reports = {"openai/claude-haiku-4-5": Report("no", "The limit of this day is reached")}
    spend(set_up, 2.0, limit=2.0)
    assert print_result(read_installation(set_up.environ, time.time()), reports)
    spend(set_up, 1.9, limit=2.0)
    assert not print_result(read_installation(set_up.environ, time.time()), reports)
    assert capsys.readouterr().out.count("Today's limit is reached") == 1
