"""Where a command finds broker and registry: those given, those running, or those it starts."""

import contextlib
import getpass
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from streams.errors import BadConfiguration, RosterError, Unreachable
from streams.settings import Settings
from tools import stack
from tools.supervisor import running

CONNECT_WITHIN_S: Final = 3.0
READY_WITHIN_S: Final = 90.0
LOOK_EVERY_S: Final = 0.3


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
    from streams import kafka, topics
    from streams.registry import Registry

    until = time.monotonic() + within_s
    bootstrap = settings.need_kafka()
    _wait(lambda: require_broker(bootstrap), until)  # without a client: there are cheaper ways
    admin = kafka.admin(bootstrap)

    def topics_there() -> None:
        lacking = topics.drift(admin)
        if lacking:
            raise Unreachable(f"topic {lacking[0]}; `roster topics --create` makes what is missing")

    _wait(topics_there, until)
    wanted = {topic.subject(event) for topic in topics.TOPICS for event in topic.events}
    with Registry(settings.need_registry()) as registry:

        def schemas_there() -> None:
            unknown = sorted(wanted - set(registry.subjects()))
            if unknown:
                raise Unreachable(
                    f"schema {unknown[0]} is not registered: `roster topics --create` does it"
                )

        _wait(schemas_there, until)


def _wait(check: Callable[[], None], until: float) -> None:
    """Until the check raises nothing. Raises what it said last when the time is over."""
    while True:
        try:
            check()
            return
        except Exception as error:  # clients raise errors of their own while a server starts
            if time.monotonic() > until:
                if isinstance(error, RosterError):
                    raise
                raise Unreachable(f"the broker does not answer: {error}") from None
        time.sleep(LOOK_EVERY_S)


def actor() -> str:
    """Who decides, where nobody is named: the account's name, in the form of an identifier."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown"
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-") or "unknown"
