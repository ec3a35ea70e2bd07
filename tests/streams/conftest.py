"""Topics and schemas on the shared broker and registry."""

from collections.abc import Iterator

import pytest

from streams import topics
from streams.kafka import admin
from streams.registry import Catalogue, Registry, register_all


@pytest.fixture(scope="session")
def catalogue(kafka: str, registry: str) -> Iterator[Catalogue]:
    """All topics made, all schemas registered."""
    topics.create(admin(kafka), 1)
    with Registry(registry) as client:
        yield register_all(client)
