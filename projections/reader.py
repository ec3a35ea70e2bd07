"""The projector's read path over HTTP: what the file says, asked while it is written.

    GET  /health        {"status": "ok"}; 503 while the file is not open
    GET  /v1/status     next offsets, conservation counters, rates and lag
    GET  /v1/budgets    every budget in force, its newest period with spend, thresholds crossed
    GET  /v1/recent     the newest notable events: mode, profile, rejection, policy, threshold
    POST /v1/sql        {"sql": ..., "max_rows": 1000} -> columns, types, rows, more, offsets
    POST /v1/snapshot   a copy of the file that any tool may open -> path, offsets

It runs in threads of the projector's process, which alone may open the file. Every question has a
cursor of its own; errors are {"error": one line}.
"""

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import duckdb
import uvicorn
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from projections.queries import MAX_ROWS, Answer, Refused, ask
from streams.errors import BadConfiguration

ANALYSTS: Final = 2  # questions at a time: the writer needs a core too
USUAL_PORT: Final = 8090
FREE_PORTS: Final = range(20_000, 32_000)  # below those that the kernel gives to clients
SNAPSHOT_WITHIN_S: Final = 60.0
START_WITHIN_S: Final = 10.0

BUDGETS: Final = """
SELECT b.tenant, b.budget, b.period, b.cap_picousd, b.thresholds, b.at_cap,
       s.period_start_ms, coalesce(s.spent_picousd, 0) AS spent_picousd,
       coalesce(s.unpriced_n, 0) AS unpriced_n,
       coalesce((SELECT list(t.threshold_percent ORDER BY t.threshold_percent)
                 FROM budget_thresholds t
                 WHERE t.budget_event_id = b.budget_event_id AND t.tenant = b.tenant
                   AND t.budget = b.budget AND t.period_start_ms = s.period_start_ms), [])
           AS crossed
FROM budgets b
LEFT JOIN (
    SELECT * FROM budget_spend
    QUALIFY row_number() OVER (PARTITION BY tenant, budget ORDER BY period_start_ms DESC) = 1
) s USING (tenant, budget)
ORDER BY b.tenant, b.budget
"""
RECENT: Final = (
    "SELECT * FROM notable ORDER BY append_ms DESC, topic, src_partition, src_offset DESC LIMIT {n}"
)


Asking = Callable[[str, int], list[dict[str, Any]]]
"""A reading statement and how many rows at most -> rows by column. Raises Refused, Unavailable."""
Telling = Callable[[], dict[str, Any]]
"""What /v1/status says now; {} before the first report."""
Routes = Callable[[Asking, Telling], APIRouter]
"""Further routes, made around ways to ask."""


class Question(BaseModel):
    """Body of /v1/sql."""

    model_config = ConfigDict(extra="forbid")

    sql: Annotated[str, Field(min_length=1, max_length=100_000)]
    max_rows: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 1000


class Unavailable(Exception):
    """The file is not open just now; the text says why."""


class Desk:
    """Where the writer leaves what readers may have, and readers their wishes. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._db: duckdb.DuckDBPyConnection | None = None
        self._why = "the file is being opened"
        self._asking: set[duckdb.DuckDBPyConnection] = set()
        self._wishes: list[Future[dict[str, Any]]] = []
        self.status: dict[str, Any] = {}

    def open(self, db: duckdb.DuckDBPyConnection) -> None:
        """From now on questions go to this connection."""
        with self._changed:
            self._db = db

    def close(self, why: str) -> None:
        """Ends questions under way and refuses others, until it is opened again."""
        with self._changed:
            self._db, self._why = None, why
            wishes, self._wishes = self._wishes, []
            for cursor in self._asking:
                cursor.interrupt()
            self._changed.wait_for(lambda: not self._asking, timeout=5.0)
        for wish in wishes:
            wish.set_exception(Unavailable(why))

    def ask(self, sql: str, max_rows: int) -> Answer:
        """Answers one question. Raises Refused, Unavailable."""
        with self._cursor() as cursor:
            return ask(cursor, sql, max_rows)

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._changed:
            cursor = self._open().cursor()
            self._asking.add(cursor)
        try:
            yield cursor
        finally:
            with self._changed:
                self._asking.discard(cursor)
                self._changed.notify_all()

    def _open(self) -> duckdb.DuckDBPyConnection:
        if self._db is None:
            raise Unavailable(self._why)
        return self._db

    def check(self) -> None:
        """Raises Unavailable if the file is not open."""
        with self._changed:
            self._open()

    def wish_snapshot(self) -> "Future[dict[str, Any]]":
        """Asks the writer for a snapshot. Raises Unavailable."""
        with self._changed:
            self._open()
            wish: Future[dict[str, Any]] = Future()
            self._wishes.append(wish)
            return wish

    def wishes(self) -> "list[Future[dict[str, Any]]]":
        """Snapshots that are wanted; the writer takes them between transactions."""
        with self._changed:
            wishes, self._wishes = self._wishes, []
            return wishes


def app(desk: Desk, further: Sequence[Routes] = ()) -> FastAPI:
    """The routes over a desk. Analysts' questions do not hold up a view or a health check."""
    analysts = ThreadPoolExecutor(ANALYSTS, "analyst")
    views = ThreadPoolExecutor(1, "view")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        analysts.shutdown(wait=False, cancel_futures=True)
        views.shutdown(wait=False, cancel_futures=True)

    api = FastAPI(title="Roster projector", lifespan=lifespan)

    async def asked(pool: ThreadPoolExecutor, sql: str, max_rows: int) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(pool, desk.ask, sql, max_rows)

    @api.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @api.exception_handler(Unavailable)
    async def unavailable(_: Request, error: Unavailable) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return JSONResponse({"error": f"{field}: {first['msg']}"}, 400)

    @api.get("/health")
    async def health() -> dict[str, str]:
        desk.check()
        return {"status": "ok"}

    @api.get("/v1/status")
    async def status() -> JSONResponse:
        desk.check()
        return JSONResponse(desk.status)

    @api.post("/v1/sql")
    async def sql(question: Question) -> JSONResponse:
        return JSONResponse(asdict(await asked(analysts, question.sql, question.max_rows)))

    @api.get("/v1/budgets")
    async def budgets() -> JSONResponse:
        return JSONResponse({"budgets": _records(await asked(views, BUDGETS, MAX_ROWS))})

    @api.get("/v1/recent")
    async def recent(n: Annotated[int, Query(ge=1, le=1000)] = 20) -> JSONResponse:
        return JSONResponse({"events": _records(await asked(views, RECENT.format(n=n), n))})

    @api.post("/v1/snapshot")
    async def snapshot() -> JSONResponse:
        wish = asyncio.wrap_future(desk.wish_snapshot())
        try:
            return JSONResponse(await asyncio.wait_for(wish, SNAPSHOT_WITHIN_S))
        except TimeoutError:
            raise Unavailable(f"no snapshot within {SNAPSHOT_WITHIN_S:g} s") from None

    for routes in further:
        api.include_router(
            routes(
                lambda sql, most: _records(views.submit(desk.ask, sql, most).result()),
                lambda: desk.status,
            )
        )
    return api


def _records(answer: Answer) -> list[dict[str, Any]]:
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


@contextlib.contextmanager
def serving(
    desk: Desk, data: Path, bind: str, port: int, further: Sequence[Routes] = ()
) -> Iterator[str]:
    """Serves the desk while the block lasts; yields the address, also in {data}/projector.json.

    port: 0 takes the last one if it is free, else the usual one, else any.
    Raises BadConfiguration if a given port is taken, or the address is not ours.
    """
    listener = _listen(data, bind, port)
    host = "127.0.0.1" if bind == "0.0.0.0" else bind
    address = f"http://{host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        app(desk, further), log_level="warning", access_log=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="api", daemon=True
    )
    thread.start()
    _write_address(data, address)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(START_WITHIN_S)
        listener.close()


def _write_address(data: Path, address: str) -> None:
    fresh = data / "projector.json.tmp"
    fresh.write_text(json.dumps({"api": address, "pid": os.getpid()}), encoding="utf-8")
    fresh.replace(data / "projector.json")


def _listen(data: Path, bind: str, port: int) -> socket.socket:
    last = 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads((data / "projector.json").read_text(encoding="utf-8"))
        last = int(str(state["api"]).rpartition(":")[2])
    candidates = [port] if port else [p for p in (last, USUAL_PORT) if p] + list(FREE_PORTS)
    for candidate in candidates:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((bind, candidate))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            if port:
                raise BadConfiguration(
                    f"port {port} for the projector's API cannot be used on {bind}:"
                    f" {error.strerror}"
                ) from None
    raise BadConfiguration(f"no free port for the projector's API on {bind}")
