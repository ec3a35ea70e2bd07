"""mode.changed: a deployment switched its mode."""

from typing import ClassVar

from schemas.envelope import HeadedEvent
from schemas.values import Identifier, Name, Text


class ModeChanged(HeadedEvent):
    NAME: ClassVar[str] = "mode.changed"

    deployment: Identifier
    to_mode: Name
    actor: Identifier
    reason: Text | None = None
