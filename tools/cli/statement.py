"""How a command says something: one event, checked, acknowledged, and told where it stands."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tools.cli.output import show_one

Actor = Annotated[str | None, typer.Option(help="who decides; default: your account's name")]
Reason = Annotated[str | None, typer.Option(help="why")]


def publish_one(topic: Any, kind: Any, fields: Any, as_json: bool) -> None:
    """Publishes one event. fields: what it says, given all events of the topic so far.

    Raises BadEvent, BadConfiguration, Unreachable.
    """
    from streams import settings
    from streams.registry import Catalogue, Registry
    from tools import publish
    from tools.log_reader import events
    from tools.session import cluster

    with cluster(settings.load()) as session:
        given: Mapping[str, object] = fields(events(session.settings, topic, kind))
        event = publish.checked_event(topic, given, publish.now_ms())
        ready = publish.Ready(1, event, publish.record_key(event))
        with Registry(session.settings.need_registry()) as registry:
            catalogue = Catalogue(registry, [topic])
            kafka = session.settings.need_kafka()
            partition, offset = publish.send(kafka, catalogue, topic, [ready])[0]
    if as_json:
        show_one({**event.model_dump(mode="json"), "partition": partition, "offset": offset}, True)
    else:
        print(f"published to {topic.name}[{partition}] offset {offset}, event {event.event_id}")
