"""model.registered: what a model is, by those who know it: the catalogue of models."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.envelope import HeadedEvent
from schemas.values import Identifier, Name, Text, Tokens, canonical_role


class RegistrationAction(StrEnum):
    UNKNOWN = "UNKNOWN"
    SET = "SET"
    DELETE = "DELETE"


class ModelRegistered(HeadedEvent):
    """The newest one of a model holds whole. null and empty: not said."""

    NAME: ClassVar[str] = "model.registered"

    provider: Identifier
    model: Identifier
    action: Literal[RegistrationAction.SET, RegistrationAction.DELETE]
    tier: Name | None = None
    quantization: Name | None = None
    licence: Text | None = None
    parameters_millions: Annotated[int, Field(ge=1, le=10**9)] | None = None
    context_tokens: Annotated[Tokens, Field(ge=1)] | None = None
    max_output_tokens: Annotated[Tokens, Field(ge=1)] | None = None
    roles: tuple[Name, ...] = ()
    capabilities: tuple[Name, ...] = ()
    allowed_personas: tuple[Identifier, ...] = ()
    revision: Text | None = None
    strengths: Text | None = None
    notes: Text | None = None
    actor: Identifier
    reason: Text | None = None

    def canonical_roles(self) -> tuple[str, ...]:
        """Its roles by their canonical names, each once, in the order given."""
        return tuple(dict.fromkeys(map(canonical_role, self.roles)))
