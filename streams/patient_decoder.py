"""Decodes records in the thread of a reader that must outlive an outage of the registry."""

import threading
from typing import Final

from confluent_kafka import Message

from schemas import Event, Recorded
from streams.codec import Tombstone, Undecodable, decode, schema_id_of
from streams.errors import Unreachable
from streams.live_reader import RETRY_S
from streams.registry import Catalogue, Registry

PATIENCE_S: Final = 2.0  # with one request; below LiveReader's, so that close need not wait


class PatientDecoder:
    """Waits for the registry where a schema is not known yet, until it is stopped."""

    def __init__(self, registry: str) -> None:
        """registry: URL of an API like Confluent's; it is not asked yet."""
        self._stopped = threading.Event()
        self._registry = Registry(registry, timeout_s=PATIENCE_S)
        self._catalogue = Catalogue(self._registry, topics=())

    def decode(self, message: Message) -> Recorded[Event] | Undecodable | Tombstone | None:
        """A record as streams.codec.decode has it; None: stopped while it waited."""
        value = message.value()
        if isinstance(value, bytes) and len(value) >= 5 and value[0] == 0:
            while True:
                if self._stopped.is_set():
                    return None
                try:
                    self._catalogue.writer(schema_id_of(value), patience_s=0)
                    break
                except Unreachable:
                    self._stopped.wait(RETRY_S)
        return decode(self._catalogue, message)

    def stop(self) -> None:
        """Whoever waits in decode gets None."""
        self._stopped.set()

    def close(self) -> None:
        """Ends the connections; may be called twice."""
        self._stopped.set()
        self._registry.close()
