"""A local stand-in for Snowflake Cortex: nobody needs an account to run the tests or the demo.

It listens on loopback, verifies the key-pair JWT of every request, refuses what Cortex refuses (`cortex_rules.py`,
which also says what of it is sure), answers in Cortex's own shapes and counts what it would charge
(`cortex_model.py`). What the service does on a bad day is a fault that a test switches on.

Sure, because documented or measured on the real service: the paths and the 404 of the others, the claims and their
one hour, 401 with code 390144 and a uuid whose reason only SQL tells, authentication before the body, the statuses and
texts of `FAULTS` but for those marked there, the shapes of answers, and the SQL API's envelope.
Guesses, each a switch: `underscores` (may `_` in the claims stand for `-`), `issued_ahead`, and `Options`.

    stub = CortexStub("MYORG-MYACCOUNT", "ME", [public_pem])
    stub.start(); ...; stub.stop()                     # or: with CortexStub(...) as stub:
    stub.url, stub.requests, stub.totals(), stub.script, stub.fault("throttled", times=2)

As a process: `python tests/cortex_stub.py --port 0 --account X --user Y --public-key FILE`; `/_stub/…` controls it.
No token is ever kept, logged or returned: a request's record has the start of its hash as `token_id`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import email.utils
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jwt
from aiohttp import web
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

if not __package__:  # run as a script: the folder above holds the package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cortex_model import (
    Answer,
    Block,
    PromptCache,
    Script,
    Turn,
    Usage,
    answer,
    chat_blocks,
    chat_body,
    chat_stream,
    messages_blocks,
    messages_body,
    messages_stream,
    next_turn,
    prompt_of,
    prompt_tokens,
    read_script,
)
from tests.cortex_rules import DEFAULTS, JSON, MAX_BODY, Options, Refusal, check_chat, check_messages, check_window
from tests.cortex_sql import SQL_FAULTS, World, run_statement

CHAT = "/api/v2/cortex/v1/chat/completions"
MESSAGES = "/api/v2/cortex/v1/messages"
STATEMENTS = "/api/v2/statements"
TOKEN_LIFE = 3600
DEMO_NOTE = "[demo: a local stand-in answers, no model is behind it]"

# --- faults ---------------------------------------------------------------------------------------------------------

# `{model}` and `{uuid}` are filled in. Guessed: the bodies of 429 and of the network policy's code, and all of
# `expired_token`, `wrong_token_type` and `not_in_region`.
FAULTS: Mapping[str, tuple[int, JSON]] = {
    "throttled": (400, {"message": "all requests were throttled by remote service"}),
    "not_in_region": (400, {"message": "model {model} is not available in your region"}),
    "bad_token": (401, {"code": "390144", "message": "JWT token is invalid. [{uuid}]"}),
    "expired_token": (401, {"code": "390198", "message": "Key-pair token has expired. [{uuid}]"}),
    "wrong_token_type": (401, {"code": "390303", "message": "Invalid OAuth access token. [{uuid}]"}),
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
        "cut",  # the connection ends after `after` chunks, or in the middle of a body; `clean`: as if it were complete
        "html",  # 200 with a web page
        "broken_json",  # 200 with half a JSON document, well ended
        "broken_sse",  # a line that is no JSON after `after` chunks, then the end
        "done_only",  # a stream of `data: [DONE]` and nothing else; not streamed, an answer without content
        "odd_sse",  # a stream with comments, empty data, a ping between its events, and no newline at its end
    }
)


@dataclass
class Fault:
    """A fault, for the next `times` requests (None: until cleared) on `route` (chat, messages or sql; empty: any)."""

    name: str
    times: int | None = None
    route: str = ""
    main: bool = False  # spare Claude Code's side calls: only requests that offer tools
    after: int = 0
    seconds: float = 0.0
    clean: bool = False

    def __post_init__(self) -> None:
        if self.name not in {*FAULTS, *WIRE_FAULTS, *SQL_FAULTS}:
            raise ValueError(f"no fault {self.name!r}; there are {sorted({*FAULTS, *WIRE_FAULTS, *SQL_FAULTS})}")


# --- keys and tokens ------------------------------------------------------------------------------------------------


def load_public_key(text: str) -> tuple[str, RSAPublicKey]:
    """Fingerprint (`SHA256:…`) and key from PEM, or from its body alone as `ALTER USER` takes it."""
    body = "".join(line for line in text.splitlines() if not line.startswith("-----"))
    try:
        key = load_der_public_key(base64.b64decode(body))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"not a public key: {error}") from None
    if not isinstance(key, RSAPublicKey):
        raise ValueError("not an RSA key")
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode(), key


def read_claims(token: str, keys: Mapping[str, RSAPublicKey], account: str, user: str, *, underscores: bool) -> JSON:
    """The claims of a token signed by a registered key.

    Raises ValueError with Snowflake's reason: 394305 algorithm, 394307 account, 394300 user, 394301 iat or exp,
    394304 fingerprint, 394306 signature. `underscores`: `_` and `-` in the account are the same.
    """
    jws = jwt.PyJWS()
    try:
        parts = jws.decode_complete(token, options={"verify_signature": False})
        claims = json.loads(parts["payload"])
        issuer, subject = str(claims["iss"]), str(claims["sub"])
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        raise ValueError("394300 issuer or subject missing, or not a token") from None
    if parts["header"].get("alg") != "RS256":
        raise ValueError("394305 algorithm is not RS256")
    # A user may have periods (a login name is often an address), an account has none.
    names, _, fingerprint = issuer.rpartition(".SHA256:")
    for name in (names, subject):
        claimed, _, login = name.partition(".")
        if (claimed.replace("_", "-") if underscores else claimed) != (
            account.replace("_", "-") if underscores else account
        ):
            raise ValueError("394307 account does not match")
        if login != user:
            raise ValueError("394300 user does not match")
    if not all(type(claims.get(name)) is int for name in ("iat", "exp")):
        raise ValueError("394301 iat or exp is missing or not in whole seconds")
    key = keys.get(f"SHA256:{fingerprint}")
    if key is None:
        raise ValueError("394304 public key fingerprint is not registered")
    try:
        jws.decode(token, key, algorithms=["RS256"])
    except jwt.PyJWTError:
        raise ValueError("394306 signature does not match") from None
    return {"iat": claims["iat"], "exp": claims["exp"], "fp": f"SHA256:{fingerprint}"}


# --- the service ----------------------------------------------------------------------------------------------------


class CortexStub:
    """The stand-in: state that tests may change at any time, the HTTP service, and a thread to run it in.

    Attributes to set: `options`, `script` (tuple of `Script`), `skew` (seconds that the service's clock is ahead),
    `underscores`, `issued_ahead` (seconds an `iat` may lie in the future), `missing_models` (not in the region),
    `warehouse` (the user's default or None), `cross_region` (CORTEX_ENABLED_CROSS_REGION), `sql_rows` (columns and rows
    in place of the own log), `sql_page` (rows a partition), `replay` (answers to give as they are, one a request: an
    object, or the text of a stream). To read: `url`, `requests`, `login_failures` (reason by uuid).
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
        self.account, self.user = account.upper(), user.upper()
        self.options = options
        self.script: tuple[Script, ...] = read_script(script)
        self.skew = 0.0
        self.underscores = False
        self.issued_ahead = 30.0
        self.missing_models: frozenset[str] = frozenset()
        self.warehouse: str | None = "COMPUTE_WH"
        self.cross_region = "DISABLED"
        self.sql_rows: tuple[Sequence[str], Sequence[Sequence[str | None]]] | None = None
        self.sql_page = 1000
        self.replay: list[JSON | str] = []
        self.requests: list[JSON] = []
        self.login_failures: dict[str, str] = {}
        self.port = 0
        self._demo, self._bench, self._log, self._clock = demo, bench, log, clock
        self._keys: dict[int, tuple[str, RSAPublicKey]] = {}
        self._claims: dict[str, JSON] = {}
        self._faults: list[Fault] = []
        self._shots: dict[str, int] = {}
        self._cache = PromptCache()
        self._statements: dict[str, tuple[int, int, JSON]] = {}
        self._lock = threading.Lock()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._released: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pause: asyncio.Task[None] | None = None
        for slot, key in enumerate(public_keys, 1):
            self.register_key(key, slot)

    # -- what tests call --

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def register_key(self, public_key: str | None, slot: int = 1) -> None:
        """Set (or with None unset) RSA_PUBLIC_KEY (slot 1) or RSA_PUBLIC_KEY_2 (slot 2)."""
        self._keys.pop(slot, None)
        if public_key is not None:
            self._keys[slot] = load_public_key(public_key)
        self._claims = {}

    def fault(self, name: str, times: int | None = None, **settings: Any) -> None:
        """Switch a fault on; `settings` are the fields of `Fault`."""
        self._faults.append(Fault(name, times, **settings))

    def clear_faults(self) -> None:
        self._faults = []

    def set_options(self, **changes: Any) -> None:
        """Change fields of `Options`."""
        self.options = dataclasses.replace(self.options, **changes)

    def totals(self) -> JSON:
        """Requests that were answered, and the tokens charged for them."""
        used = [record["usage"] for record in list(self.requests) if record.get("usage")]
        names = ("input", "cache_write", "cache_read", "output")
        return {"requests": len(used), **{name: sum(usage[name] for usage in used) for name in names}}

    def release(self) -> None:
        """Let the streams that are held now (their records have `held`) go on."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        if self._released is not None:
            self._released.set()
            self._released.clear()

    def wait_for(self, seen: Callable[[JSON], Any], seconds: float = 30) -> JSON:
        """The first record for which `seen` is true; AssertionError when there is none in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for record in list(self.requests):
                if seen(record):
                    return record
            time.sleep(0.02)
        raise AssertionError(f"no such request among {[(r['path'], r.get('status')) for r in self.requests]}")

    def close_port(self) -> None:
        """Refuse connections and end those that are open, until `open_port`."""
        self._call(self._close())

    def open_port(self) -> None:
        self._call(self._listen())

    def start(self, port: int = 0) -> CortexStub:
        """Serve from a thread of its own; returns when the port is open."""
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cortex-stub", daemon=True)
        self._thread.start()
        self._call(self.serve())
        return self

    def stop(self) -> None:
        """Close everything; the port is free afterwards."""
        if self._loop is None or self._thread is None:
            return
        self._call(self.shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._loop = self._thread = None

    def __enter__(self) -> CortexStub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _call(self, work: Any) -> None:
        if self._loop is None:
            raise RuntimeError("the stand-in is not running")
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    # -- the listening socket --

    async def serve(self) -> None:
        """Open the port in the running event loop."""
        self._released = asyncio.Event()
        app = web.Application(client_max_size=4 * MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await self._listen()

    async def _listen(self) -> None:
        if self._runner is not None and self._site is None:
            self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
            await self._site.start()
            self.port = self._runner.addresses[-1][1]

    async def _close(self) -> None:
        if self._site is not None and self._runner is not None and self._runner.server is not None:
            await self._site.stop()
            self._site = None
            for connection in self._runner.server.connections:
                connection.force_close()

    async def shut_down(self) -> None:
        if self._released is not None:
            self._released.set()
        if self._runner is not None:
            await self._runner.cleanup()

    # -- one request --

    def now(self) -> float:
        return self._clock() + self.skew

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/_stub/") and not self._demo:
            return await self._control(request)
        raw = await request.read()
        route = {CHAT: "chat", MESSAGES: "messages", STATEMENTS: "sql"}.get(request.path, "")
        if request.path.startswith(STATEMENTS + "/") and request.method == "GET":
            route = "sql"
        elif request.method != "POST":
            route = ""
        record = self._record(request, route)
        try:
            body = _parse(raw, lean=self._bench)
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
        fault = self._take_fault(route, body, request.method)
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
        if turn and turn.error and (again := self._shoot(turn.error, prompt, number)):
            fault = again
            if early := await self._early(fault, request, record) or self._broken(fault, record, model):
                return early
        record["turn"] = number if turn else None
        charged = Usage(size // 4) if self._bench else self._cache.charge(model, blocks, self.now())
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
            return await self._stream(request, events, turn or Turn(), fault, record)
        if turn and turn.hold is not None:
            await self._held(record)
        whole = chat_body(said, self.now()) if route == "chat" else messages_body(said)
        return await self._cut(request, whole, record) if fault and fault.name == "cut" else self._json(whole)

    def _authenticate(self, headers: Mapping[str, str], record: JSON) -> tuple[int, JSON] | None:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        record["token_id"] = hashlib.sha256(token.encode()).hexdigest()[:12] if token else None
        if headers.get("X-Snowflake-Authorization-Token-Type", "KEYPAIR_JWT") != "KEYPAIR_JWT":
            return FAULTS["wrong_token_type"]
        try:
            if scheme.lower() != "bearer":
                raise ValueError("394300 no bearer token")
            if token not in self._claims:
                claims = read_claims(
                    token, dict(self._keys.values()), self.account, self.user, underscores=self.underscores
                )
                self._claims[token] = claims
            claims = self._claims[token]
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

    def _check(self, route: str, body: Any, request: web.Request, size: int) -> Refusal | None:
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

    def _take_fault(self, route: str, body: Any, method: str) -> Fault | None:
        main = isinstance(body, dict) and bool(body.get("tools"))
        statement = route == "sql" and method == "POST"
        with self._lock:
            for fault in self._faults if route else ():
                fits = fault.route in ("", route) and (statement or fault.name not in SQL_FAULTS)
                if fits and (main or not fault.main):
                    if fault.times is not None:
                        fault.times -= 1
                        if fault.times <= 0:
                            self._faults.remove(fault)
                    return fault
        return None

    def _shoot(self, error: JSON, prompt: str, number: int) -> Fault | None:
        """A scripted turn's fault, unless it has happened often enough for this prompt."""
        fault = Fault(**error)
        key = hashlib.sha256(f"{number}:{prompt}".encode()).hexdigest()
        with self._lock:
            self._shots[key] = self._shots.get(key, 0) + 1
            return fault if self._shots[key] <= (fault.times or 1) else None

    async def _early(self, fault: Fault, request: web.Request, record: JSON) -> web.StreamResponse | None:
        """What goes wrong before the token is looked at."""
        record["fault"] = fault.name
        if fault.name == "slow_start":
            await asyncio.sleep(fault.seconds)
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

    async def _stream(
        self, request: web.Request, events: Iterable[bytes], turn: Turn, fault: Fault | None, record: JSON
    ) -> web.StreamResponse:
        trouble = fault.name if fault else ""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **self._headers()})
        await response.prepare(request)
        pause = turn.delay or (fault.seconds if fault and trouble == "slow_chunks" else 0)
        with contextlib.suppress(ConnectionError):
            for count, event in enumerate(events):
                record["chunks"] = count
                if turn.hold == count:
                    await self._held(record)
                if fault and trouble in {"cut", "broken_sse"} and count == fault.after:
                    if trouble == "broken_sse":
                        await response.write(b'data: {"choices": [{"del\n\n')
                    elif not fault.clean:
                        self._hang_up(request)
                    break
                if pause:
                    await asyncio.sleep(pause)
                await response.write(event)
            await response.write_eof()
            return response
        record["aborted"] = True  # by the client, or on purpose
        return response

    async def _cut(self, request: web.Request, whole: JSON, record: JSON) -> web.StreamResponse:
        data = json.dumps(whole).encode()
        half = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
        await half.prepare(request)
        await half.write(data[: len(data) // 2])
        self._hang_up(request)
        record["aborted"] = True
        return half

    async def _held(self, record: JSON) -> None:
        record["held"] = True
        if self._released is not None:
            await asyncio.wait_for(self._released.wait(), 120)

    @staticmethod
    def _hang_up(request: web.Request) -> None:
        if request.transport is not None:
            request.transport.close()

    # -- the SQL API --

    def _sql(self, request: web.Request, body: Any, fault: Fault | None, record: JSON) -> web.Response:
        if request.method == "GET":
            handle = request.path.rpartition("/")[2]
            if handle not in self._statements:
                return self._error(record, 404, {"code": "391404", "message": "statement not found"})
            polls, status, result = self._statements[handle]
            self._statements[handle] = (polls - 1, status, result)
            return self._statement(record, handle, int(request.query.get("partition", "0")))
        if not isinstance(body, dict) or not isinstance(body.get("statement"), str):
            return self._error(record, 400, {"code": "391902", "message": "statement is required"})
        record["statement"] = body["statement"]
        handle = str(uuid.uuid4())
        failed = SQL_FAULTS.get(fault.name) if fault and fault.name != "sql_running" else None
        status, result = failed or self._run(body["statement"], body.get("warehouse") or self.warehouse)
        polls = (fault.after or 1) if fault and fault.name == "sql_running" else 0
        self._statements[handle] = (polls, status, result)
        return self._statement(record, handle, 0)

    def _statement(self, record: JSON, handle: str, partition: int) -> web.Response:
        polls, status, result = self._statements[handle]
        known = {"statementHandle": handle, "statementStatusUrl": f"{STATEMENTS}/{handle}"}
        if polls > 0:
            waiting = "Asynchronous execution in progress. Use provided query id to perform query monitoring."
            return self._json({"code": "333334", "message": waiting, **known}, 202)
        if status != 200:
            return self._error(record, status, {**result, **known})
        rows, page = result["rows"], self.sql_page
        pages = [rows[at : at + page] for at in range(0, len(rows), page)] or [[]]
        if not 0 <= partition < len(pages):
            return self._error(record, 400, {"code": "391921", "message": "partition does not exist"})
        if partition:  # only the first partition has the metadata; the others come compressed
            response = self._json({"data": pages[partition]})
            response.enable_compression(web.ContentCoding.gzip)
            return response
        meta = {
            "numRows": len(rows),
            "format": "jsonv2",
            "partitionInfo": [{"rowCount": len(part), "uncompressedSize": len(json.dumps(part))} for part in pages],
            "rowType": [{"name": name, "type": kind} for name, kind in result["columns"]],
        }
        done = {"code": "090001", "sqlState": "00000", "message": "Statement executed successfully."}
        return self._json({"resultSetMetaData": meta, "data": pages[0], **done, **known})

    def _run(self, statement: str, warehouse: str | None) -> tuple[int, JSON]:
        world = World(
            account=self.account,
            user=self.user,
            warehouse=warehouse,
            fingerprints=tuple(self._keys[slot][0] if slot in self._keys else None for slot in (1, 2)),
            failures=self.login_failures,
            requests=self.requests,
            rows=self.sql_rows,
            models=tuple(self.options.models),
            cross_region=self.cross_region,
        )
        return run_statement(statement, world)

    # -- control over HTTP --

    async def _control(self, request: web.Request) -> web.Response:
        """`/_stub/…` for tests in another process; the answer is JSON, an error is a 400 with its reason."""
        what = f"{request.method} {request.path.removeprefix('/_stub/')}"
        try:
            value: Any = await request.json() if request.can_read_body else None
            if what == "GET requests":
                return self._json({"requests": self.requests[int(request.query.get("since", "0")) :]})
            if what == "GET totals":
                return self._json(self.totals())
            if what == "GET failures":
                return self._json(self.login_failures)
            if what == "POST faults":
                self.fault(**value)
            elif what == "DELETE faults":
                self.clear_faults()
            elif what == "POST script":
                self.script = read_script(value)
            elif what == "POST options":
                self.set_options(**value)
            elif what == "POST set":
                self._set(value)
            elif what == "POST key":
                self.register_key(value["public_key"], value.get("slot", 1))
            elif what == "POST release":
                self._release()
            elif what == "POST refuse":
                asyncio.get_running_loop().call_soon(self._refuse, float(value["seconds"]))
            else:
                return self._json({"message": f"nothing at {what}"}, 404)
        except (ValueError, TypeError, KeyError) as error:
            return self._json({"message": f"{what}: {error}"}, 400)
        return self._json({})

    def _set(self, values: JSON) -> None:
        for name, value in values.items():
            if name == "missing_models":
                self.missing_models = frozenset(value)
            elif name in {"skew", "underscores", "issued_ahead", "warehouse", "cross_region", "sql_rows", "sql_page"}:
                setattr(self, name, value)
            else:
                raise ValueError(f"no attribute {name!r} to set")

    def _refuse(self, seconds: float) -> None:
        async def pause() -> None:
            await asyncio.sleep(0.05)  # lets the answer to this very call leave first
            await self._close()
            await asyncio.sleep(seconds)
            await self._listen()

        self._pause = asyncio.get_running_loop().create_task(pause())


def odd_events(events: Iterable[bytes]) -> Iterator[bytes]:
    """The same events with what else a stream may hold (docs/cortex.md#answer-stream-lines)."""
    *others, last = events
    for event in others:
        yield b": keep-alive\n\nevent: ping\n\ndata:\n\n" + event
    yield last.rstrip(b"\n")


def _parse(raw: bytes, *, lean: bool) -> Any:
    """A body, or None when it is not JSON. `lean` reads only what an answer needs, at a fixed cost."""
    if lean and b"[[" not in raw:
        model = re.search(rb'"model":\s*"([^"]*)"', raw)
        return {
            "model": model.group(1).decode() if model else "",
            "stream": re.search(rb'"stream":\s*true', raw) is not None,
            "stream_options": {"include_usage": b'"include_usage"' in raw},
            "messages": [],
            "max_tokens": 4096,
        }
    try:
        return json.loads(raw or b"null")
    except ValueError:
        return None


# --- as a process ---------------------------------------------------------------------------------------------------


async def _run_process(stub: CortexStub, port: int) -> None:
    stub.port = port
    await stub.serve()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sys.stdout.write(f"listening on {stub.url}\n")
    sys.stdout.flush()
    await stop.wait()
    await stub.shut_down()


@contextlib.contextmanager
def _log_file(path: Path | None) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    # Prompts are in it: nobody else may read them.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
        yield file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stand-in until SIGINT or SIGTERM; 2 for a wrong argument, 1 when the port is taken."""
    parser = argparse.ArgumentParser(description="A local stand-in for Snowflake Cortex, on loopback only.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the first line of output names it")
    parser.add_argument("--account", required=True, help="as in the claims, for example MYORG-MYACCOUNT")
    parser.add_argument("--user", required=True, help="login name")
    parser.add_argument("--public-key", type=Path, action="append", default=[], help="PEM; twice for both slots")
    parser.add_argument("--demo", action="store_true", help="every answer says that no model is behind it")
    parser.add_argument("--bench", action="store_true", help="no rules, no charging, no record of bodies")
    parser.add_argument("--script", type=Path, help="JSON: a list of turns or of {when, turns}")
    parser.add_argument("--log", type=Path, help="append one JSON line a request")
    given = parser.parse_args(arguments)
    try:
        keys = [path.read_text(encoding="ascii") for path in given.public_key]
        script = json.loads(given.script.read_text(encoding="utf-8")) if given.script else ()
        with _log_file(given.log) as log:
            stub = CortexStub(
                given.account, given.user, keys, script=script, demo=given.demo, bench=given.bench, log=log
            )
            asyncio.run(_run_process(stub, given.port))
    except (OSError, ValueError, TypeError) as error:
        sys.stderr.write(f"cortex_stub: {error}\n")
        return 1 if isinstance(error, OSError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
