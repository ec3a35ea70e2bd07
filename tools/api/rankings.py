"""Rankings over HTTP: as they were published, and why; and feedback on quality into the log.

    GET  /v1/rankings?role=&mode=&at=      newest final and provisional of each key (by a moment)
    GET  /v1/rankings?tenant=&...          by one tenant's traffic alone, from closed panes
    GET  /v1/rankings/explain?role=&mode=&tenant=&at=   as below, of the newest final of a key
    GET  /v1/rankings/{event_id}           one ranking
    GET  /v1/rankings/{event_id}/explain   why it is as it is, and what would flip it
    POST /v1/quality                       model.quality.observed; answers when it is in the log

Errors are problem details (problems.py). A body must be application/json: no page of another origin
can send that without being asked first.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError, Message, Producer
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from processors.explain import explain
from projections.reader import Routes
from schemas import ModelProfileScored, ModelQualityObserved
from schemas.values import FUTURE_LIMIT_MS, MAX_RECORD_BYTES, PAST_LIMIT_MS
from streams import kafka
from streams.codec import encode, time_verdict
from streams.errors import BadConfiguration, Unreachable
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.topics import MODEL_QUALITY_OBSERVED
from tools.api.problems import Problem, ProblemRoute, invalid, of_validation
from tools.cli.control import time_ms
from tools.publish import now_ms, record_key, uuid7
from tools.published import Ask, Tables, chosen
from tools.rankings import rankings as made

SOURCE: Final = "roster-api"
ACKNOWLEDGED_WITHIN_S: Final = 10.0

Place = tuple[int, int]
"""(partition, offset)."""
Send = Callable[[ModelQualityObserved], Place]


def mounted(settings: Settings) -> Routes:
    """What the projector mounts: the routes, publishing to this cluster."""
    return lambda ask, _: router(ask, Publisher(settings).send)


class Publisher:
    """Appends observations and waits for each acknowledgement. Any thread may call it."""

    def __init__(self, settings: Settings) -> None:
        """Reaches out to broker and registry when the first one is sent."""
        self._settings = settings
        self._lock = threading.Lock()
        self._clients: tuple[Producer, Catalogue] | None = None

    def send(self, event: ModelQualityObserved) -> Place:
        """Where the record stands. Raises Unreachable if it is not acknowledged in time."""
        client, catalogue = self._open()
        placed: list[Place] = []
        failed: list[str] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                placed.append((message.partition() or 0, message.offset() or 0))
            else:
                failed.append(error.str())

        topic = MODEL_QUALITY_OBSERVED
        value = encode(catalogue, topic, event)
        try:
            client.produce(topic.name, value=value, key=record_key(event), on_delivery=delivered)
        except BufferError:
            raise Unreachable("the broker takes nothing just now: the queue is full") from None
        until = time.monotonic() + ACKNOWLEDGED_WITHIN_S + 1
        while not placed and not failed and time.monotonic() < until:
            client.poll(0.05)  # whoever polls reports to all
        if not placed:
            why = failed[0] if failed else f"nothing came within {ACKNOWLEDGED_WITHIN_S:g} s"
            raise Unreachable(f"the broker has not acknowledged the event: {why}")
        return placed[0]

    def _open(self) -> tuple[Producer, Catalogue]:
        with self._lock:
            if self._clients is None:
                with Registry(self._settings.need_registry()) as registry:
                    catalogue = Catalogue(registry, [MODEL_QUALITY_OBSERVED])
                client = kafka.producer(
                    self._settings.need_kafka(),
                    message_timeout_ms=int(ACKNOWLEDGED_WITHIN_S * 1000),
                )
                self._clients = client, catalogue
            return self._clients


def router(ask: Ask, send: Send) -> APIRouter:
    """The routes over a query function and what publishes."""
    tables = Tables(ask)
    routes = APIRouter(route_class=ProblemRoute)

    def found(event_id: str) -> ModelProfileScored:
        record = tables.by_id(event_id)
        if record is None:
            raise Problem(404, "Not found", f"no ranking has the id {event_id}")
        return record

    @routes.get("/v1/rankings")
    def rankings(
        role: str | None = None,
        mode: str | None = None,
        tenant: str | None = None,
        at: str | None = None,
    ) -> JSONResponse:
        if tenant is None:
            records = tables.standing(chosen(role, mode, at_ms=_moment(at)))
        else:
            records = made(ask, tenant, role, mode, _moment(at))
        return JSONResponse({"rankings": [record.model_dump(mode="json") for record in records]})

    @routes.get("/v1/rankings/explain")
    def newest_explained(
        role: str, mode: str, tenant: str | None = None, at: str | None = None
    ) -> JSONResponse:
        if tenant is None:
            wanted = chosen(role, mode, status=("FINAL",), at_ms=_moment(at))
            records = tables.standing(wanted)
        else:
            records = made(ask, tenant, role, mode, _moment(at))
        if not records:
            raise Problem(404, "Not found", f"no ranking of role {role}, mode {mode}")
        return explanation(records[0])

    @routes.get("/v1/rankings/{event_id}")
    def ranking(event_id: str) -> JSONResponse:
        return JSONResponse(found(event_id).model_dump(mode="json"))

    @routes.get("/v1/rankings/{event_id}/explain")
    def explained(event_id: str) -> JSONResponse:
        return explanation(found(event_id))

    def explanation(record: ModelProfileScored) -> JSONResponse:
        policy = tables.policy(record.policy_event_id)
        if policy is None:
            raise Problem(404, "Not found", f"policy {record.policy_event_id} is not filed")
        return JSONResponse(explain(record, policy).plain())

    @routes.post("/v1/quality", status_code=201)
    async def quality(request: Request) -> JSONResponse:
        event = observed(await _body(request), now_ms())
        partition, offset = await run_in_threadpool(send, event)
        place = {"topic": MODEL_QUALITY_OBSERVED.name, "partition": partition, "offset": offset}
        return JSONResponse({"event_id": event.event_id, **place}, 201)

    return routes


def observed(fields: dict[str, Any], at_ms: int) -> ModelQualityObserved:
    """The event of a body; event_id, occurred_at_ms and source are filled in where they are absent.
    Raises Problem."""
    header = {"event_id": uuid7(at_ms), "occurred_at_ms": at_ms, "source": SOURCE}
    try:
        event = ModelQualityObserved.model_validate({**header, **fields})
    except ValidationError as error:
        raise of_validation(error, fields, ", ".join(ModelQualityObserved.model_fields)) from None
    if time_verdict(event.occurred_at_ms, at_ms) is not None:
        allowed = f"{at_ms - PAST_LIMIT_MS} to {at_ms + FUTURE_LIMIT_MS}: 35 days back, 5 min ahead"
        raise invalid("occurred_at_ms", event.occurred_at_ms, allowed)
    return event


async def _body(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "Unsupported media type", "allowed: Content-Type application/json")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_RECORD_BYTES:
            raise Problem(413, "Too large", f"allowed: {MAX_RECORD_BYTES} bytes")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "Not JSON", f"the body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Problem(400, "Not an object", "allowed: one JSON object, an observation")
    return fields


def _moment(text: str | None) -> int | None:
    if text is None:
        return None
    plain = text.replace(" ", "+") if "T" in text else text  # what a form makes of an offset's sign
    try:
        return time_ms(plain, "at")
    except BadConfiguration:
        raise invalid("at", text, "an ISO 8601 time such as 2025-01-31T12:00:00Z") from None
