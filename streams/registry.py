"""The schema registry (Confluent's REST API), and the catalogue of schema ids a process knows."""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import httpx

from schemas.avro import Schema, full_name, parse, schema_text
from schemas.envelope import Event
from streams.errors import BadConfiguration, Stopped, Unreachable
from streams.settings import is_near
from streams.topics import TOPICS, Topic

COMPATIBILITY: Final = "FULL_TRANSITIVE"  # all history is replayed with new code, and rolled back
NO_SUCH_ID: Final = frozenset({400, 404, 422})
UNKNOWN_FOR_S: Final = 1.0
"""An id that is unknown now may be the next one to be registered: it is asked for again."""
ASK_EVERY_S: Final = 0.5
HEADERS: Final = {"Content-Type": "application/vnd.schemaregistry.v1+json"}


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """A schema that some record was written with. event: our type of that name, if any; name:
    empty for one that is no Avro record."""

    schema_id: int
    name: str
    text: str
    schema: Schema
    event: type[Event] | None
    ours: bool  # the very schema this version writes: no resolution is needed


class Registry:
    """Client of a registry. Every method raises Unreachable when it does not answer."""

    def __init__(self, url: str, timeout_s: float = 10.0) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(timeout=timeout_s, headers=HEADERS, trust_env=not is_near(url))

    def _call(self, method: str, path: str, body: object = None) -> httpx.Response:
        try:
            response = self._http.request(
                method, self._url + path, content=None if body is None else json.dumps(body)
            )
        except httpx.HTTPError as error:
            raise Unreachable(
                f"the schema registry at {self._url} does not answer: {error}"
            ) from None
        if response.status_code >= 500:
            raise Unreachable(
                f"the schema registry at {self._url} failed: {response.status_code} on {path}"
            )
        return response

    def register(self, subject: str, text: str) -> int:
        """Id of a schema under a subject, registered if new.

        Raises BadConfiguration if the registry finds it incompatible.
        """
        response = self._call("POST", f"/subjects/{subject}/versions", {"schema": text})
        if response.status_code != 200:
            raise BadConfiguration(f"schema of {subject} was refused: {response.text[:300]}")
        return int(response.json()["id"])

    def set_compatibility(self, subject: str) -> None:
        """Demands FULL_TRANSITIVE of all later versions of a subject."""
        response = self._call("PUT", f"/config/{subject}", {"compatibility": COMPATIBILITY})
        if response.status_code != 200:
            raise BadConfiguration(
                f"{subject}: compatibility could not be set: {response.text[:300]}"
            )

    def text(self, schema_id: int) -> str | None:
        """Text of a schema by id; None if the registry does not know it."""
        response = self._call("GET", f"/schemas/ids/{schema_id}")
        if response.status_code == 200:
            return str(response.json()["schema"])
        if response.status_code in NO_SUCH_ID:
            return None
        raise Unreachable(  # refused, throttled: that says nothing about the id
            f"the schema registry at {self._url} answers {response.status_code} on schema ids"
        )

    def subjects(self) -> list[str]:
        """Names of all subjects."""
        return [str(name) for name in self._call("GET", "/subjects").json()]

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Catalogue:
    """Schema ids: those this version writes with, and those it met."""

    def __init__(
        self,
        registry: Registry,
        topics: Iterable[Topic] = TOPICS,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Registers every schema of every topic. stopped: whether the process is to end, which
        ends every wait. Raises Unreachable, BadConfiguration."""
        self._registry = registry
        self._stopped = stopped
        self._known: dict[int, WriterSchema] = {}
        self._unknown: dict[int, float] = {}  # until when
        self._ids: dict[tuple[str, type[Event]], int] = {}
        wanted = [(topic, event) for topic in topics for event in topic.events]
        with ThreadPoolExecutor(8) as pool:  # one takes the registry some 60 ms
            ids = list(
                pool.map(lambda w: registry.register(w[0].subject(w[1]), schema_text(w[1])), wanted)
            )
        for (topic, event), schema_id in zip(wanted, ids, strict=True):
            text = schema_text(event)
            self._ids[topic.name, event] = schema_id
            self._known[schema_id] = WriterSchema(
                schema_id, full_name(event), text, parse(text), event, True
            )

    def id_of(self, topic: Topic, event: type[Event]) -> int:
        """Schema id to write an event with. KeyError: the topic does not carry it (a bug)."""
        return self._ids[topic.name, event]

    def writer(self, schema_id: int, patience_s: float | None = None) -> WriterSchema | None:
        """The schema of an id; None if the registry does not know it.

        While the registry does not answer this waits: whether an id is known must follow from
        the registry, not from its being down. patience_s bounds the wait, then Unreachable.
        Raises Stopped when the process is to end meanwhile.
        """
        if schema_id in self._known:
            return self._known[schema_id]
        begun = time.monotonic()
        if begun < self._unknown.get(schema_id, begun):
            return None
        while True:
            try:
                text = self._registry.text(schema_id)
                break
            except Unreachable:
                if patience_s is not None and time.monotonic() - begun > patience_s:
                    raise
                if self._stopped():
                    raise Stopped from None
                time.sleep(ASK_EVERY_S)
        if text is None:
            self._unknown[schema_id] = time.monotonic() + UNKNOWN_FOR_S
            return None
        self._known[schema_id] = _foreign(schema_id, text)
        return self._known[schema_id]


def _foreign(schema_id: int, text: str) -> WriterSchema:
    try:
        schema = parse(text)
    except Exception:  # some other kind of schema: it decodes nothing of ours
        return WriterSchema(schema_id, "", text, {}, None, False)
    name = str(schema["name"])
    by_name = {full_name(event): event for topic in TOPICS for event in topic.events}
    return WriterSchema(schema_id, name, text, schema, by_name.get(name), False)


def register_all(registry: Registry) -> Catalogue:
    """Registers all schemas and sets FULL_TRANSITIVE on every subject."""
    catalogue = Catalogue(registry)
    subjects = [topic.subject(event) for topic in TOPICS for event in topic.events]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(registry.set_compatibility, subjects))
    return catalogue
