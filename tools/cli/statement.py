"""How a command says something: one event, checked, acknowledged, and told where it stands."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from tools.cli.output import show_one

Actor = Annotated[str | None, typer.Option(help="who decides; default: your account's name")]
Reason = Annotated[str | None, typer.Option(help="why")]


def publish_one(
    topic: Any,
    kind: Any,
    fields: Any,
    as_json: bool,
    check: Callable[[Any], None] | None = None,
    hinted: bool = False,
) -> None:
    """Publishes one event. fields: what it says, or what it says given all events of the topic so
    far: these are only read if it asks for them. check: of the event, before it is sent.
    hinted: with a note if no ranking has the role and model that it is about.

    Raises BadEvent, BadConfiguration, Unreachable.
    """
    from streams import settings
    from streams.registry import Catalogue, Registry
    from tools import publish
    from tools.cli.known import hint
    from tools.log_reader import events, newest_rankings
    from tools.session import cluster

    def checked(given: Mapping[str, object]) -> Any:
        event = publish.checked_event(topic, given, publish.now_ms())
        if check is not None:
            check(event)
        return event

    # What does not depend on the log is checked before a broker is started for it.
    event = None if callable(fields) else checked(fields)
    with cluster(settings.load()) as session:
        if event is None:
            event = checked(fields(events(session.settings, topic, kind)))
        ready = publish.Ready(1, event, publish.record_key(event))
        with Registry(session.settings.need_registry()) as registry:
            catalogue = Catalogue(registry, [topic])
            kafka = session.settings.need_kafka()
            partition, offset = publish.send(kafka, catalogue, topic, [ready])[0]
        if hinted:
            known = newest_rankings(session.settings)
            hint(known, event.role, [f"{event.provider}/{event.model}"])
    if as_json:
        show_one({**event.model_dump(mode="json"), "partition": partition, "offset": offset}, True)
    else:
        print(f"published to {topic.name}[{partition}] offset {offset}, event {event.event_id}")
