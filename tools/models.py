"""The catalogue of models: what is registered, priced or was ranked, each model once. Pure."""

from collections.abc import Iterable
from typing import Any, Final

from schemas import ModelProfileScored, ModelRegistered, RateCardUpdated, Recorded
from schemas.model import RegistrationAction
from schemas.pricing import PRICE_UNITS, Card, card_of, choose
from tools.units import moment, usd

Who = tuple[str, str]
"""(provider, model)."""

FACTS: Final = (
    "tier",
    "quantization",
    "licence",
    "parameters_millions",
    "context_tokens",
    "max_output_tokens",
    "roles",
    "capabilities",
    "allowed_personas",
    "revision",
    "strengths",
    "notes",
)
"""What a registration says of a model; an event has each of them."""


def registered(
    said: Iterable[Recorded[ModelRegistered]],
) -> dict[Who, Recorded[ModelRegistered]]:
    """The registration that holds of each model, by model. said: in the order of the log."""
    found: dict[Who, Recorded[ModelRegistered]] = {}
    for recorded in said:
        event = recorded.event
        if event.action is RegistrationAction.SET:
            found[event.provider, event.model] = recorded
        else:
            found.pop((event.provider, event.model), None)
    return found


def facts(event: ModelRegistered) -> dict[str, Any]:
    """The facts of a registration, roles by their canonical names."""
    return {**event.model_dump(mode="json", include=set(FACTS)), "roles": event.canonical_roles()}


NOTHING_SAID: Final = {
    name: info.get_default() for name, info in ModelRegistered.model_fields.items() if name in FACTS
}


def table(
    registrations: Iterable[Recorded[ModelRegistered]],
    cards: Iterable[Recorded[RateCardUpdated]],
    rankings: Iterable[ModelProfileScored],
    now_ms: int,
) -> list[dict[str, Any]]:
    """A row per model, by provider and model: whether and as what it is registered, the prices in
    force (USD per million tokens), the roles in whose newest rankings it stands."""
    known = registered(registrations)
    prices: dict[tuple[Who, str], list[Card]] = {}
    for card in cards:
        who = (card.event.provider, card.event.model)
        prices.setdefault((who, card.event.unit.value), []).append(card_of(card.event, card.at))
    ranked: dict[Who, set[str]] = {}
    for ranking in rankings:
        for entry in ranking.entries:
            ranked.setdefault((entry.provider, entry.model), set()).add(ranking.role)

    def price(who: Who, unit: str) -> str | None:
        card = choose(prices.get((who, unit), ()), now_ms)
        return None if card is None else usd(card.price_picousd)

    return [
        {
            "provider": who[0],
            "model": who[1],
            "registered": who in known,
            **_registration(known.get(who)),
            **{
                unit.value.lower().removesuffix("_token"): price(who, unit.value)
                for unit in PRICE_UNITS
            },
            "ranked_in": sorted(ranked.get(who, ())),
        }
        for who in sorted(known.keys() | {who for who, _ in prices} | ranked.keys())
    ]


def _registration(recorded: Recorded[ModelRegistered] | None) -> dict[str, Any]:
    if recorded is None:
        return {**NOTHING_SAID, "actor": None, "reason": None, "since": None, "offset": None}
    return {
        **facts(recorded.event),
        "actor": recorded.event.actor,
        "reason": recorded.event.reason,
        "since": moment(recorded.at.append_ms),
        "offset": recorded.at.offset,
    }
