"""`/_stub/…`: how a test in another process scripts the stand-in, switches faults on and reads its records.

The answer is JSON. An error is a 400 with its reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.cortex_rules import JSON
from tests.cortex_scripts import read_script

if TYPE_CHECKING:
    from tests.cortex_stub import CortexStub


SETTABLE = frozenset(
    {
        *("skew", "underscores", "issued_ahead", "pats", "pat_words", "pat_as_jwt"),
        *("warehouse", "region", "cross_region", "listed", "sql_rows", "sql_page"),
    }
)


async def control(stub: CortexStub, request: web.Request) -> tuple[int, JSON]:
    """Do what a request to `/_stub/…` asks; status and body of the answer."""
    what = f"{request.method} {request.path.removeprefix('/_stub/')}"
    try:
        value: Any = await request.json() if request.can_read_body else None
        if what == "GET requests":
            if words := request.query.get("with"):
                return 200, {"requests": stub.with_words(words)}
            return 200, {"requests": stub.requests[int(request.query.get("since", "0")) :]}
        if what == "GET totals":
            return 200, stub.totals()
        if what == "GET failures":
            return 200, stub.login_failures
        if what == "POST faults":
            stub.fault(**value)
        elif what == "DELETE faults":
            stub.clear_faults()
        elif what == "POST script":
            stub.script = read_script(value)
        elif what == "POST options":
            stub.set_options(**value)
        elif what == "POST set":
            _set(stub, value)
        elif what == "POST key":
            stub.register_key(value["public_key"], value.get("slot", 1))
        elif what == "POST release":
            stub.release_now()
        elif what == "POST refuse":
            stub.close_port_for(float(value["seconds"]))
        else:
            return 404, {"message": f"nothing at {what}"}
    except (ValueError, TypeError, KeyError) as error:
        return 400, {"message": f"{what}: {error}"}
    return 200, {}


def _set(stub: CortexStub, values: JSON) -> None:
    for name, value in values.items():
        if name == "missing_models":
            stub.missing_models = frozenset(value)
        elif name in SETTABLE:
            setattr(stub, name, value)
        else:
            raise ValueError(f"no attribute {name!r} to set")
