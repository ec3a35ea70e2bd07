"""Where a command finds broker and registry: those given, those running, or those it starts."""

import contextlib
import getpass
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from streams.errors import BadConfiguration, RosterError, Unreachable
from streams.settings import Settings
from tools import stack
from tools.supervisor import running

CONNECT_WITHIN_S: Final = 3.0
READY_WITHIN_S: Final = 90.0
LOOK_EVERY_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Session:
    """settings: with addresses. fresh: broker and registry were started for this command alone,
    so no agent is at work on what it publishes."""

    settings: Settings
    fresh: bool


@contextlib.contextmanager
def cluster(settings: Settings) -> Iterator[Session]:
    """Broker and registry for as long as the block lasts.

    ROSTER_KAFKA's, else those that run on the data folder, else started there and ended again.
    Raises BadConfiguration, Unreachable.
    """
    found = _running(settings)
    if found is not None:
        require_broker(found.need_kafka())
        yield Session(found, fresh=False)
        return
    stack.prepare(settings.cache, say=lambda text: print(text, file=sys.stderr))
    with stack.attached(settings.data, settings.cache) as at:
        yield Session(replace(settings, kafka=at.kafka, registry=at.registry, api=None), fresh=True)


def _running(settings: Settings) -> Settings | None:
    if settings.own_cluster:
        return settings
    found: dict[str, str] = {}
    until = time.monotonic() + stack.READY_WITHIN_S
    for record in ("run-kafka", "run-registry", "run"):
        owner = running(settings.data, record)
        while record == "run" and owner is not None and "kafka" not in owner.addresses:
            if time.monotonic() > until:  # it is just starting: a moment later it would be there
                raise Unreachable(f"pid {owner.pid} has started no broker; see `roster status`")
            time.sleep(LOOK_EVERY_S)
            owner = running(settings.data, record)
        found |= owner.addresses if owner is not None else {}
    if "kafka" not in found:
        return None
    if "registry" not in found:
        raise BadConfiguration("a broker runs here without a registry: start `roster registry`")
    api = settings.api or found.get("api")
    return replace(settings, kafka=found["kafka"], registry=found["registry"], api=api)


def require_broker(bootstrap: str) -> None:
    """Raises Unreachable if nobody listens at any of the addresses: a client of the broker would
    say so at length, and only after its time-out."""
    said = ""
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_WITHIN_S).close()
            return
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error)
    raise Unreachable(f"no broker at {bootstrap} ({said}): start it, or correct ROSTER_KAFKA")


def found_here(settings: Settings) -> Settings:
    """The settings with the addresses of what runs on this data folder. Raises BadConfiguration if
    nothing does."""
    found = _running(settings)
    if found is None:
        raise BadConfiguration(
            "no broker: start one with `roster up` or `roster kafka`, or set ROSTER_KAFKA"
        )
    return found


def await_ready(settings: Settings, within_s: float = READY_WITHIN_S) -> None:
    """Waits until broker, topics and schemas are there, so that processes may be started in any
    order, together with their broker.

    Raises Unreachable when that takes longer than within_s; the text names what is missing.
    """
    until = time.monotonic() + within_s
    while (missing := _missing(settings)) is not None:
        if time.monotonic() > until:
            raise Unreachable(missing)
        time.sleep(LOOK_EVERY_S)


def _missing(settings: Settings) -> str | None:
    from streams import kafka, topics
    from streams.registry import Registry

    try:
        require_broker(settings.need_kafka())
        lacking = [line for line in topics.drift(kafka.admin(settings.need_kafka())) if line]
        if lacking:
            return f"topic {lacking[0]}; `roster topics --create` makes what is missing"
        with Registry(settings.need_registry()) as registry:
            wanted = {topic.subject(event) for topic in topics.TOPICS for event in topic.events}
            unknown = sorted(wanted - set(registry.subjects()))
    except RosterError as error:
        return str(error)
    except Exception as error:  # the client raises errors of its own while a broker starts
        return f"the broker at {settings.kafka} does not answer: {error}"
    return f"schema {unknown[0]} is not registered: `roster topics --create`" if unknown else None


def actor() -> str:
    """Who decides, where nobody is named: the account's name, in the form of an identifier."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown"
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-") or "unknown"
