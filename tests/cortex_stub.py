"""A local stand-in for Snowflake Cortex: nobody needs an account to run the tests or the demo.

It listens on loopback and verifies the token of every request: a key-pair JWT, or a programmatic access token that a
test put into `pats` (cortex_tokens.py). It refuses what Cortex refuses (cortex_rules.py), answers in Cortex's own
shapes (cortex_model.py) and counts what it would charge (cortex_charging.py). Tests can switch on faults of the service
(cortex_faults.py).

These are certain, because they are documented or measured on the real service: which paths exist; the claims, which end
after one hour; a 401 has code 390144 and a UUID, with which SQL tells the reason; the token is checked first; the
shapes of answers; the envelope of the SQL API. These are guesses, and each is a switch: `underscores` (may `_` in the
claims stand for `-`), `issued_ahead`, and the fields of `Options`.

    stub = CortexStub("MYORG-MYACCOUNT", "ME", [public_pem])
    stub.start(); ...; stub.stop()                     # or: with CortexStub(...) as stub:
    stub.url, stub.requests, stub.totals(), stub.script, stub.fault("throttled", times=2)

As a process: `python tests/cortex_stub.py --port 0 --account X --user Y --public-key FILE`. Then `/_stub/…` controls it
(cortex_control.py). No token is ever kept, logged or returned: a record has only the start of its hash, as `token_id`.
"""

from __future__ import annotations

import dataclasses
import email.utils
import hashlib
import json
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from aiohttp import web

if not __package__:  # run as a script: the folder above holds the package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cortex_charging import Block, PromptCache, Usage, chat_blocks, messages_blocks, prompt_tokens
from tests.cortex_control import control
from tests.cortex_faults import FAULTS, Fault, Faults
from tests.cortex_model import Answer, answer, chat_body, chat_stream, messages_body, messages_stream
from tests.cortex_process import main
from tests.cortex_rules import DEFAULTS, JSON, MAX_BODY, BadRequest, Options, check_chat, check_messages, check_window
from tests.cortex_scripts import Script, Turn, next_turn, prompt_of, read_script
from tests.cortex_server import Server, parse_body
from tests.cortex_sql import SQL_FAULTS, World, run_statement
from tests.cortex_statements import STATEMENTS, Statements
from tests.cortex_streams import odd_events, send_half, send_stream, wait_for_client
from tests.cortex_tokens import TOKEN_LIFE, Keys, pat_fault, taken_as_pat

__all__ = ["CHAT", "DEMO_NOTE", "FAULTS", "MESSAGES", "STATEMENTS", "CortexStub"]

CHAT = "/api/v2/cortex/v1/chat/completions"
MESSAGES = "/api/v2/cortex/v1/messages"
DEMO_NOTE = "[demo: a local stand-in answers, no model is behind it]"


class CortexStub(Server):
    """The stand-in: the HTTP service, and its state, which tests may change at any time.

    To set: `options`, `script` (tuple of `Script`), `skew` (seconds that the service's clock is ahead), `underscores`,
    `issued_ahead` (seconds that an `iat` may lie in the future), `pats` (programmatic access tokens, each with its
    state: valid, expired, disabled, removed, no policy), `pat_words` (does a refusal tell those states apart),
    `pat_as_jwt` (is one taken that is announced as a KEYPAIR_JWT), `missing_models` (not in the region), `warehouse`
    (the user's default or None), `region` (the account's), `cross_region` (CORTEX_ENABLED_CROSS_REGION), `listed` (what
    SHOW CORTEX BASE MODELS lists: a sequence of dicts with the columns; None: all of `options.models`, as GA),
    `sql_rows` (columns and rows in place of its own log), `sql_page` (rows per partition), `replay` (answers to give
    unchanged, one per request: an object, or the text of a stream). To read: `url`, `requests`, `login_failures`
    (reason by uuid).
    """

    def __init__(
        self,
        account: str,
        user: str,
        public_keys: Iterable[str] = (),
        *,
        options: Options = DEFAULTS,
        script: Any = (),
        demo: bool = False,
        bench: bool = False,
        log: IO[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(max_body=4 * MAX_BODY)
        self.account, self.user = account.upper(), user.upper()
        self.options = options
        self.script: tuple[Script, ...] = read_script(script)
        self.skew = 0.0
        self.underscores = False
        self.issued_ahead = 30.0
        self.pats: dict[str, str] = {}
        self.pat_words = self.pat_as_jwt = False
        self.missing_models: frozenset[str] = frozenset()
        self.warehouse: str | None = "COMPUTE_WH"
        self.region, self.cross_region = "AWS_US_WEST_2", "DISABLED"
        self.listed: Sequence[JSON] | None = None
        self.sql_rows: tuple[Sequence[str], Sequence[Sequence[str | None]]] | None = None
        self.sql_page = 1000
        self.replay: list[JSON | str] = []
        self.requests: list[JSON] = []
        self.login_failures: dict[str, str] = {}
        self._texts: list[str] = []  # the bodies of the first requests, for `with_words`
        self._demo, self._bench, self._log, self._clock = demo, bench, log, clock
        self._keys = Keys()
        self._faults = Faults()
        self._cache = PromptCache()
        self._statements = Statements()
        self._lock = threading.Lock()
        for slot, key in enumerate(public_keys, 1):
            self.register_key(key, slot)

    # -- what tests call --

    def register_key(self, public_key: str | None, slot: int = 1) -> None:
        """Set (or with None unset) RSA_PUBLIC_KEY (slot 1) or RSA_PUBLIC_KEY_2 (slot 2)."""
        self._keys.register(public_key, slot)

    def fault(self, name: str, times: int | None = None, **settings: Any) -> None:
        """Switch a fault on; `settings` are the fields of `Fault`."""
        self._faults.add(Fault(name, times, **settings))

    def clear_faults(self) -> None:
        self._faults.clear()

    def set_options(self, **changes: Any) -> None:
        """Change fields of `Options`."""
        self.options = dataclasses.replace(self.options, **changes)

    def totals(self) -> JSON:
        """Requests that were answered, and the tokens charged for them."""
        used = [record["usage"] for record in list(self.requests) if record.get("usage")]
        names = ("input", "cache_write", "cache_read", "output")
        return {"requests": len(used), **{name: sum(usage[name] for usage in used) for name in names}}

    def wait_for(self, seen: Callable[[JSON], Any], seconds: float = 30) -> JSON:
        """The first record for which `seen` is true; AssertionError when there is none in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for record in list(self.requests):
                if seen(record):
                    return record
            time.sleep(0.02)
        raise AssertionError(f"no such request among {[(r['path'], r.get('status')) for r in self.requests]}")

    def with_words(self, words: str) -> list[JSON]:
        """The records of the requests whose bodies have these words, which are ASCII."""
        for record in list(self.requests)[len(self._texts) :]:
            if "body" not in record:  # it has just come
                break
            self._texts.append(json.dumps(record["body"]))
        return [self.requests[number] for number, text in enumerate(self._texts) if words in text]

    def now(self) -> float:
        """The service's clock."""
        return self._clock() + self.skew

    # -- one request --

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/_stub/") and not self._demo:
            status, told = await control(self, request)
            return self._json(told, status)
        raw = await request.read()
        route = {CHAT: "chat", MESSAGES: "messages", STATEMENTS: "sql"}.get(request.path, "")
        if request.path.startswith(STATEMENTS + "/") and request.method == "GET":
            route = "sql"
        elif request.method != "POST":
            route = ""
        record = self._record(request, route)
        try:
            body = parse_body(raw, lean=self._bench)
            if not self._bench:
                record["body"] = body
            response = await self._respond(request, route, body, len(raw), record)
            record["status"] = response.status
        finally:
            record["done"] = True
            if self._log is not None:
                self._log.write(json.dumps(record) + "\n")
                self._log.flush()
        return response

    def _record(self, request: web.Request, route: str) -> JSON:
        secret = {"authorization", "proxy-authorization", "x-api-key", "cookie"}
        record: JSON = {"time": self._clock(), "method": request.method, "path": request.path_qs, "route": route}
        record["headers"] = {
            name.lower(): "(hidden)" if name.lower() in secret else value for name, value in request.headers.items()
        }
        with self._lock:
            record["number"] = len(self.requests)
            self.requests.append(record)
        return record

    async def _respond(
        self, request: web.Request, route: str, body: Any, size: int, record: JSON
    ) -> web.StreamResponse:
        if not request.path.startswith("/api/v2/"):
            return self._error(record, 404, {"message": "Not Found"})
        fault = self._faults.take(route, body, request.method)
        if fault and (early := await self._early(fault, request, record)):
            return early
        if (denied := self._authenticate(request.headers, record)) is not None:
            return self._error(record, *denied)
        if not route:
            return self._error(record, 404, {"message": "Not Found"})
        model = str(body.get("model", "")) if isinstance(body, dict) else ""
        if fault and (broken := self._broken(fault, record, model)):
            return broken
        if route == "sql":
            return self._sql(request, body, fault, record)
        if (refusal := self._check(route, body, request, size)) is not None:
            record["refusal"] = refusal.message
            return self._error(record, refusal.status, {"message": refusal.message})
        if model in self.missing_models:
            return self._error(record, *FAULTS["not_in_region"], model=model)
        if self.replay:
            return self._replayed(self.replay.pop(0))
        blocks = self._blocks(route, body)
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        if not self._bench and (refusal := check_window(model, prompt_tokens(blocks), asked, self.options)) is not None:
            record["overflow"] = refusal.message
            return self._error(record, refusal.status, {"message": refusal.message})
        record |= {"model": model, "stream": bool(body.get("stream"))}
        turn, number, prompt = next_turn(body, self.script) if body["messages"] else (None, 0, "")
        if turn and turn.error and (again := self._faults.next_scripted(turn.error, prompt, number)):
            fault = again
            if early := await self._early(fault, request, record) or self._broken(fault, record, model):
                return early
        record["turn"] = number if turn else None
        charged = Usage(9, cache_read=size // 4) if self._bench else self._cache.charge(model, blocks, self.now())
        said = self._answer(route, body, turn, number, charged)
        if fault and fault.name == "done_only":
            said = dataclasses.replace(said, text="", calls=(), thinking="", stop="end_turn")
        record["usage"] = dataclasses.asdict(said.usage)
        if body.get("stream"):
            events = self._events(route, body, said)
            if fault and fault.name == "done_only" and route == "chat":
                events = iter([b"data: [DONE]\n\n"])
            elif fault and fault.name == "odd_sse":
                events = odd_events(events)
            return await send_stream(
                request,
                events,
                self._headers(),
                turn=turn or Turn(),
                fault=fault,
                record=record,
                held=self._held,
            )
        if turn and turn.hold is not None:
            await self._held(record)
        whole = chat_body(said, self.now()) if route == "chat" else messages_body(said)
        return await send_half(request, whole, record) if fault and fault.name == "cut" else self._json(whole)

    def _authenticate(self, headers: Mapping[str, str], record: JSON) -> tuple[int, JSON] | None:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        record["token_id"] = hashlib.sha256(token.encode()).hexdigest()[:12] if token else None
        kind = headers.get("X-Snowflake-Authorization-Token-Type", "")
        if taken_as_pat(kind, known=token in self.pats, as_jwt=self.pat_as_jwt):
            record["pat"] = True
            fault = pat_fault(self.pats.get(token), own_words=self.pat_words)
            return FAULTS[fault] if fault else None
        if kind not in {"", "KEYPAIR_JWT"}:
            return FAULTS["wrong_token_type"]
        try:
            if scheme.lower() != "bearer":
                raise ValueError("394300 no bearer token")
            claims = self._keys.claims(token, self.account, self.user, underscores=self.underscores)
            record |= {"iat": claims["iat"], "fp": claims["fp"]}
            if claims["iat"] > self.now() + self.issued_ahead:
                raise ValueError("394302 issue time is in the future")
            if self.now() >= min(claims["exp"], claims["iat"] + TOKEN_LIFE):
                raise ValueError("394303 token has expired")
        except ValueError as reason:
            failure = str(uuid.uuid4())
            self.login_failures[failure] = record["reason"] = str(reason)
            status, body = FAULTS["bad_token"]
            return status, {**body, "message": body["message"].format(uuid=failure)}
        return None

    def _check(self, route: str, body: Any, request: web.Request, size: int) -> BadRequest | None:
        if self._bench:
            return None
        if route == "chat":
            return check_chat(body, self.options, size)
        headers = {name.lower(): value for name, value in request.headers.items()}
        return check_messages(body, headers, self.options, size)

    def _blocks(self, route: str, body: JSON) -> list[Block]:
        if self._bench:
            return []
        return chat_blocks(body, self.options) if route == "chat" else messages_blocks(body)

    def _answer(self, route: str, body: JSON, turn: Turn | None, number: int, charged: Usage) -> Answer:
        if turn is None or not (turn.text or turn.tools or turn.chunks):
            heard = re.sub(r"\s+|\[\[|\]\]", " ", prompt_of(body["messages"])).strip()
            turn = Turn(f"You said: {heard[:200]}", thinking=turn.thinking if turn else "")
        if self._demo:
            turn = dataclasses.replace(turn, text=f"{DEMO_NOTE} {turn.text}")
        return answer(turn, number, body, self.options, charged, route=route)

    # -- faults --

    async def _early(self, fault: Fault, request: web.Request, record: JSON) -> web.StreamResponse | None:
        """What goes wrong before the check of the token."""
        record["fault"] = fault.name
        if fault.name == "slow_start" and not await wait_for_client(request, fault.seconds):
            record["aborted"] = True
        if fault.name == "drop" and request.transport is not None:
            request.transport.abort()
            return web.Response()  # aiohttp finds the connection gone
        if FAULTS.get(fault.name, (0, {}))[0] == 401:
            failure = str(uuid.uuid4())
            self.login_failures[failure] = f"switched on: {fault.name}"
            return self._error(record, *FAULTS[fault.name], uuid=failure)
        return None

    def _broken(self, fault: Fault, record: JSON, model: str) -> web.Response | None:
        if fault.name in FAULTS:
            return self._error(record, *FAULTS[fault.name], model=model)
        if fault.name == "html":
            page = "<!doctype html><title>Snowflake</title><p>Please sign in."
            return web.Response(text=page, content_type="text/html", headers=self._headers())
        if fault.name == "broken_json":
            return web.Response(text='{"choices": [{"ind', content_type="application/json", headers=self._headers())
        return None

    def _headers(self) -> dict[str, str]:
        return {"Date": email.utils.formatdate(self.now(), usegmt=True)}

    def _error(self, record: JSON, status: int, body: JSON, **values: str) -> web.Response:
        message = body["message"].format(**values) if values else body["message"]
        record["error"] = message
        return self._json({"request_id": str(uuid.uuid4()), **body, "message": message}, status)

    def _json(self, body: JSON, status: int = 200) -> web.Response:
        return web.Response(
            body=json.dumps(body).encode(), status=status, content_type="application/json", headers=self._headers()
        )

    # -- answers --

    def _events(self, route: str, body: JSON, said: Answer) -> Iterator[bytes]:
        if route == "messages":
            return messages_stream(said)
        wanted = bool((body.get("stream_options") or {}).get("include_usage"))
        return chat_stream(said, self.now(), self.options, include_usage=wanted)

    def _replayed(self, recorded: JSON | str) -> web.Response:
        if isinstance(recorded, dict):
            return self._json(recorded)
        return web.Response(text=recorded, content_type="text/event-stream", headers=self._headers())

    # -- the SQL API --

    def _sql(self, request: web.Request, body: Any, fault: Fault | None, record: JSON) -> web.Response:
        if request.method == "GET":
            handle = request.path.rpartition("/")[2]
            if not self._statements.poll(handle):
                return self._error(record, 404, {"code": "391404", "message": "statement not found"})
            return self._statement(record, handle, int(request.query.get("partition", "0")))
        if not isinstance(body, dict) or not isinstance(body.get("statement"), str):
            return self._error(record, 400, {"code": "391902", "message": "statement is required"})
        record["statement"] = body["statement"]
        failed = SQL_FAULTS.get(fault.name) if fault and fault.name != "sql_running" else None
        status, result = failed or self._run(body["statement"], body.get("warehouse") or self.warehouse)
        polls = (fault.after or 1) if fault and fault.name == "sql_running" else 0
        return self._statement(record, self._statements.add(status, result, polls), 0)

    def _statement(self, record: JSON, handle: str, partition: int) -> web.Response:
        status, told = self._statements.answer(handle, partition, self.sql_page)
        if status >= 400:
            return self._error(record, status, told)
        response = self._json(told, status)
        if partition:  # the partitions after the first come compressed
            response.enable_compression(web.ContentCoding.gzip)
        return response

    def _run(self, statement: str, warehouse: str | None) -> tuple[int, JSON]:
        world = World(
            account=self.account,
            user=self.user,
            warehouse=warehouse,
            fingerprints=self._keys.fingerprints,
            failures=self.login_failures,
            requests=self.requests,
            rows=self.sql_rows,
            models=[{"name": name} for name in self.options.models] if self.listed is None else self.listed,
            region=self.region,
            cross_region=self.cross_region,
        )
        return run_statement(statement, world)


if __name__ == "__main__":
    sys.exit(main(CortexStub))
