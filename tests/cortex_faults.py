"""The faults that a test can switch on: errors in Cortex's own words, and connections that break.

`Faults` holds those that are switched on, and says which of them a request gets. The statuses and texts of `FAULTS` are
documented or measured (docs/cortex.md), apart from those that its comment calls guesses.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.cortex_rules import JSON
from tests.cortex_sql import SQL_FAULTS

# `{model}` and `{uuid}` are filled in. These are guesses: the bodies of `too_many` and `network_policy`, and everything
# in `expired_token`, `pat_expired`, `pat_disabled` and `not_in_region`.
FAULTS: Mapping[str, tuple[int, JSON]] = {
    "throttled": (400, {"message": "all requests were throttled by remote service"}),
    "not_in_region": (400, {"message": "model {model} is not available in your region"}),
    "bad_token": (401, {"code": "390144", "message": "JWT token is invalid. [{uuid}]"}),
    "expired_token": (401, {"code": "390198", "message": "Key-pair token has expired. [{uuid}]"}),
    "wrong_token_type": (401, {"code": "390303", "message": "Invalid OAuth access token. [{uuid}]"}),
    "pat_invalid": (401, {"code": "394400", "message": "Programmatic access token is invalid."}),
    "pat_expired": (401, {"code": "394400", "message": "Programmatic access token has expired."}),
    "pat_disabled": (401, {"code": "394400", "message": "Programmatic access token is disabled."}),
    "pat_no_policy": (401, {"code": "390432", "message": "Network policy is required."}),
    "budget": (402, {"message": "budget exceeded"}),
    "no_role": (403, {"message": "Not Authorized"}),
    "trial": (
        403,
        {
            "code": "003001",
            "message": "This account is not allowed to access this endpoint. Please contact Snowflake support.",
        },
    ),
    "network_policy": (
        403,
        {
            "code": "390422",
            "message": "Incoming request with IP/Token 127.0.0.1 is not allowed to access Snowflake. "
            "Contact your account administrator.",
        },
    ),
    "model_not_allowed": (403, {"message": "Model {model} not allowed"}),
    "too_many": (429, {"message": "too many requests"}),
    "goaway": (503, {"code": "392606", "message": "HTTP2 GOAWAY received from the server."}),
    "goaway_200": (200, {"code": "392606", "message": "HTTP2 GOAWAY received from the server."}),
    "session_token": (200, {"code": "390112", "message": "Your session has expired. Please login again."}),
    "unprocessable": (422, {"message": "invalid request parameters"}),
    "too_long": (400, {"message": "max tokens of 200000 exceeded"}),
    "internal": (500, {"message": "internal error"}),
    "inference_timeout": (503, {"message": "inference timed out"}),
}
WIRE_FAULTS = frozenset(
    {
        "drop",  # the connection ends before an answer
        "slow_start",  # `seconds` before the first byte
        "slow_chunks",  # `seconds` before each chunk
        "cut",  # the connection ends after `after` chunks or half a body; `clean`: as if the answer were complete
        "html",  # 200 with a web page
        "broken_json",  # 200 with half a JSON document; the response itself ends as it should
        "broken_sse",  # a line that is not JSON after `after` chunks, then the end
        "done_only",  # a stream with nothing but `data: [DONE]`; not streamed, an answer without content
        "odd_sse",  # a stream with comments, empty data and a ping between its events, and no newline at its end
    }
)


@dataclass
class Fault:
    """A fault, for the next `times` requests (None: until cleared) on `route` (chat, messages or sql; empty: any)."""

    name: str
    times: int | None = None
    route: str = ""
    main: bool = False  # only requests that offer tools, so not the side calls of Claude Code
    after: int = 0
    seconds: float = 0.0
    clean: bool = False

    def __post_init__(self) -> None:
        if self.name not in {*FAULTS, *WIRE_FAULTS, *SQL_FAULTS}:
            raise ValueError(f"no fault {self.name!r}; there are {sorted({*FAULTS, *WIRE_FAULTS, *SQL_FAULTS})}")


class Faults:
    """The faults that are switched on, and how often each scripted fault has happened."""

    def __init__(self) -> None:
        self._on: list[Fault] = []
        self._scripted: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        self._on.append(fault)

    def clear(self) -> None:
        self._on = []

    def take(self, route: str, body: Any, method: str) -> Fault | None:
        """The fault for this request, if there is one; it counts as used."""
        main = isinstance(body, dict) and bool(body.get("tools"))
        statement = route == "sql" and method == "POST"
        with self._lock:
            for fault in self._on if route else ():
                fits = fault.route in ("", route) and (statement or fault.name not in SQL_FAULTS)
                if fits and (main or not fault.main):
                    if fault.times is not None:
                        fault.times -= 1
                        if fault.times <= 0:
                            self._on.remove(fault)
                    return fault
        return None

    def next_scripted(self, error: JSON, prompt: str, number: int) -> Fault | None:
        """The fault of a scripted turn, until this prompt has had it `times` times."""
        fault = Fault(**error)
        key = hashlib.sha256(f"{number}:{prompt}".encode()).hexdigest()
        with self._lock:
            self._scripted[key] = self._scripted.get(key, 0) + 1
            return fault if self._scripted[key] <= (fault.times or 1) else None
