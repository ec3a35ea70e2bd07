"""What a fresh log begins with: policies for every role and mode, the sample's models and their
recorded prices, profiles of its roles, the deployment's mode, budgets of the sample's tenants.

All of it are ordinary events with ids that follow from what they say something about: publishing
again adds only what is missing, and whatever a person has set since stays.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from schemas import (
    BudgetUpdated,
    HeadedEvent,
    ModeChanged,
    ModelProfileUpdated,
    ModelRegistered,
    RateCardUpdated,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from schemas.budget import BudgetPeriod, CapAction
from schemas.envelope import Recorded
from schemas.model import RegistrationAction
from schemas.model_profile import ProfileAction
from schemas.rate_card import PriceUnit
from schemas.scoring_policy import CostUnit, Severity
from schemas.values import MODES, ROLES, derived_id
from streams import kafka
from streams.codec import decode, encode
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.topics import (
    BUDGET_UPDATED,
    MODE_CHANGED,
    MODEL_PROFILE_UPDATED,
    MODEL_REGISTERED,
    RATE_CARD_UPDATED,
    SCORING_POLICY_UPDATED,
    Topic,
)
from tools import sample

SOURCE: Final = "defaults"
SINCE_MS: Final = 1_704_067_200_000  # 2024-01-01: in force for whatever is filled in behind it

PRICE_KEYS: Final[dict[tuple[str, str], str | None]] = {
    # By hand: (provider, model) of the recorded calls -> key of the recorded price list. Fireworks
    # and Together priced by size class; "7b" is 6.7 billion parameters. None: no price was ever
    # published in that list, so these models are shown as unpriced.
    ("anyscale", "llama-2-7b-chat"): "anyscale/meta-llama/Llama-2-7b-chat-hf",
    ("anyscale", "llama-2-13b-chat"): "anyscale/meta-llama/Llama-2-13b-chat-hf",
    ("anyscale", "llama-2-70b-chat"): "anyscale/meta-llama/Llama-2-70b-chat-hf",
    ("bedrock", "llama-2-13b-chat"): "meta.llama2-13b-chat-v1",
    ("bedrock", "llama-2-70b-chat"): "meta.llama2-70b-chat-v1",
    ("fireworks", "llama-2-7b-chat"): "fireworks-ai-up-to-16b",
    ("fireworks", "llama-2-13b-chat"): "fireworks-ai-up-to-16b",
    ("fireworks", "llama-2-70b-chat"): "fireworks-ai-16.1b-to-80b",
    ("groq", "llama-2-70b-chat"): "groq/llama2-70b-4096",
    ("lepton", "llama-2-7b-chat"): None,
    ("lepton", "llama-2-13b-chat"): None,
    ("lepton", "llama-2-70b-chat"): None,
    ("perplexity", "llama-2-70b-chat"): "perplexity/llama-2-70b-chat",
    ("replicate", "llama-2-7b-chat"): "replicate/meta/llama-2-7b-chat",
    ("replicate", "llama-2-13b-chat"): "replicate/meta/llama-2-13b-chat",
    ("replicate", "llama-2-70b-chat"): "replicate/meta/llama-2-70b-chat",
    ("together", "llama-2-7b-chat"): "together-ai-4.1b-8b",
    ("together", "llama-2-13b-chat"): "together-ai-8.1b-21b",
    ("together", "llama-2-70b-chat"): "together-ai-41.1b-80b",
}
Unit = Literal[PriceUnit.INPUT_TOKEN, PriceUnit.CACHED_TOKEN, PriceUnit.OUTPUT_TOKEN]
PRICE_COLUMNS: Final[dict[Unit, str]] = {
    PriceUnit.INPUT_TOKEN: "input_cost_per_token",
    PriceUnit.CACHED_TOKEN: "cache_read_input_token_cost",
    PriceUnit.OUTPUT_TOKEN: "output_cost_per_token",
}

DEVELOPER: Final = (2000, 3500, 3500, 1000)
WEIGHTS: Final = {  # quality, cost, latency, reliability in ten-thousandths (M1)
    "LOCAL": DEVELOPER,
    "DEVELOPMENT": DEVELOPER,
    "TEST": (4000, 1000, 1000, 4000),
    "TRAINING": (5000, 2000, 1000, 2000),
    "PRODUCTION": (4000, 1500, 1500, 3000),
}
# The recorded prices lie between 0.00005 and 0.002 USD per 1,000 tokens of the trace's mix, the
# recorded p95 between 0.9 and 35 s. With these references the small models reach the cap of 2 in
# cost and the quickest one in latency, most terms lie between 0.2 and 2, and none is near 0 but
# that of the slowest model.
PER_1K_PICOUSD: Final = 400_000_000
PER_REQUEST_PICOUSD: Final = 4_000_000_000
LATENCY_US: Final = {"dialogue": 2_000_000, "embedding": 1_000_000, "image_generation": 10_000_000}
USUAL_LATENCY_US: Final = 3_000_000
BY_REQUEST: Final = frozenset({"speech_recognition", "speech_synthesis", "image_generation"})
MIN_RELIABILITY: Final = {"PRODUCTION": 8000, "TEST": 7000}  # elsewhere nothing is shut out
SLA_SUCCESS: Final = {"PRODUCTION": 9500, "TEST": 9000}
SLA_REFERENCES: Final = 2  # a call above twice the reference is slow (M7)
Loudness = Literal[Severity.INFO, Severity.WARN, Severity.PAGE]
SEVERITY: Final[dict[str, Loudness]] = {"PRODUCTION": Severity.PAGE, "TEST": Severity.WARN}

Chain = tuple[str, str, str]
# Targets in order, three providers each, so that a request whose provider fails has two others.
PRODUCTION_CHAINS: Final[dict[str, Chain]] = {
    "code": (
        "anyscale/llama-2-70b-chat",
        "groq/llama-2-70b-chat",
        "together/llama-2-70b-chat",
    ),
    "dialogue": (
        "groq/llama-2-70b-chat",
        "together/llama-2-70b-chat",
        "perplexity/llama-2-70b-chat",
    ),
    "summary": (
        "together/llama-2-13b-chat",
        "anyscale/llama-2-13b-chat",
        "fireworks/llama-2-13b-chat",
    ),
}
CHEAP_CHAINS: Final[dict[str, Chain]] = {
    "code": (
        "together/llama-2-13b-chat",
        "anyscale/llama-2-13b-chat",
        "fireworks/llama-2-13b-chat",
    ),
    "dialogue": (
        "together/llama-2-7b-chat",
        "fireworks/llama-2-7b-chat",
        "anyscale/llama-2-7b-chat",
    ),
    "summary": (
        "fireworks/llama-2-7b-chat",
        "anyscale/llama-2-7b-chat",
        "together/llama-2-7b-chat",
    ),
}

BUDGET: Final = "daily"
CAPS_USD: Final = {"acme": 200, "globex": 110, "initech": 50, "umbrella": 60}
"""Caps per tenant and day (UTC). 24 h of the sample cost them about 132, 75, 59 and 29 USD: initech
reaches 80 % in the afternoon and its cap in the evening of every day, the others stay below 80 %.
The tenant that does so while one watches has its budget from tools.workload.story."""


def chain(role: str, mode: str) -> Chain:
    """Targets of a role of the sample in a mode: the profile's model and its fallbacks."""
    return (PRODUCTION_CHAINS if mode == "PRODUCTION" else CHEAP_CHAINS)[role]


def events(deployment: str) -> Iterator[tuple[Topic, HeadedEvent]]:
    """All default events with their topics, in the order in which they are to be published."""
    yield from ((SCORING_POLICY_UPDATED, policy(role, mode)) for role in ROLES for mode in MODES)
    for provider, model in sorted(PRICE_KEYS):
        yield MODEL_REGISTERED, registration(provider, model)
        yield from ((RATE_CARD_UPDATED, card) for card in cards(provider, model))
    yield from (
        (MODEL_PROFILE_UPDATED, profile(role, mode)) for role in PRODUCTION_CHAINS for mode in MODES
    )
    yield MODE_CHANGED, _mode(deployment)
    yield from ((BUDGET_UPDATED, _budget(tenant, usd)) for tenant, usd in CAPS_USD.items())


def policy(role: str, mode: str) -> ScoringPolicyUpdated:
    """The scoring policy of a role in a mode."""
    quality, cost, latency, reliability = WEIGHTS[mode]
    by_request = role in BY_REQUEST
    return ScoringPolicyUpdated(
        event_id=derived_id(SOURCE, "scoring.policy.updated", role, mode),
        occurred_at_ms=SINCE_MS,
        source=SOURCE,
        role=role,
        deployment_mode=mode,
        weight_quality=quality,
        weight_cost=cost,
        weight_latency=latency,
        weight_reliability=reliability,
        cost_unit=CostUnit.PER_REQUEST if by_request else CostUnit.PER_1K_TOKENS,
        reference_cost_picousd=PER_REQUEST_PICOUSD if by_request else PER_1K_PICOUSD,
        reference_latency_us=LATENCY_US.get(role, USUAL_LATENCY_US),
        min_reliability=MIN_RELIABILITY.get(mode, 0),
        sla_success=SLA_SUCCESS.get(mode),
        sla_latency_us=SLA_REFERENCES * LATENCY_US.get(role, USUAL_LATENCY_US),
        severity=SEVERITY.get(mode, Severity.INFO),
        actor=SOURCE,
    )


def registration(provider: str, model: str) -> ModelRegistered:
    """A model of the sample in the catalogue: the roles that call it, and what the price list says
    of it. The list's size classes are no models, and nothing else that is here tells its facts."""
    key = PRICE_KEYS[provider, model]
    stated = {} if key is None else sample.prices()[key][-1]
    known = stated if stated.get("mode") == "chat" else {}
    return ModelRegistered(
        event_id=derived_id(SOURCE, "model.registered", provider, model),
        occurred_at_ms=SINCE_MS,
        source=SOURCE,
        provider=provider,
        model=model,
        action=RegistrationAction.SET,
        context_tokens=int(known.get("max_input_tokens") or 0) or None,
        max_output_tokens=int(known.get("max_output_tokens") or 0) or None,
        roles=tuple(PRODUCTION_CHAINS),  # of each, some requests go to any model of the sample
        actor=SOURCE,
        reason="shipped default",
    )


def cards(provider: str, model: str) -> list[RateCardUpdated]:
    """Rate cards of a model, unit by unit, each change one version; [] for an unpriced model.

    A price holds until the next change in the list, a model that left the list has none.
    """
    key = PRICE_KEYS[provider, model]
    if key is None:
        return []
    changes = sample.prices()[key]
    since = [_ms(change["effective_at"]) for change in changes]
    found = []
    for unit, column in PRICE_COLUMNS.items():
        version = 0
        for begin, end, change in zip(since, [*since[1:], None], changes, strict=True):
            if not change[column]:
                continue
            version += 1
            found.append(
                RateCardUpdated(
                    event_id=derived_id(
                        SOURCE, "rate.card.updated", provider, model, unit.value, version
                    ),
                    occurred_at_ms=begin,
                    source=SOURCE,
                    provider=provider,
                    model=model,
                    unit=unit,
                    price_picousd_per_million=picousd_per_million(change[column]),
                    valid_from_ms=begin,
                    valid_to_ms=end,
                    version=version,
                    origin=f"AgentOps-AI/tokencost e7f7c19: {key}",
                )
            )
    return found


def picousd_per_million(usd_per_unit: str) -> int:
    """A decimal price in USD per unit as pico-USD per 1,000,000 units, exactly.

    Raises ValueError if it is finer than that (18 decimals).
    """
    price = Decimal(usd_per_unit).scaleb(18)
    if price != price.to_integral_value():
        raise ValueError(f"{usd_per_unit} USD is finer than 1e-18 USD per unit")
    return int(price)


def profile(role: str, mode: str) -> ModelProfileUpdated:
    """The system's profile of a role of the sample. It expects version 0: whatever anyone has set
    before stays."""
    model, *fallbacks = chain(role, mode)
    return ModelProfileUpdated(
        event_id=derived_id(SOURCE, "model.profile.updated", "system", role, mode),
        occurred_at_ms=SINCE_MS,
        source=SOURCE,
        mode=mode,
        scope="system",
        role=role,
        deployment_mode=mode,
        action=ProfileAction.SET,
        model=model,
        fallbacks=tuple(fallbacks),
        temperature=0.1 if role == "code" else 0.65,
        max_tokens=2048,
        actor=SOURCE,
        reason="shipped default",
        expected_version=0,
    )


def _mode(deployment: str) -> ModeChanged:
    return ModeChanged(
        event_id=derived_id(SOURCE, "mode.changed", deployment),
        occurred_at_ms=SINCE_MS,
        source=SOURCE,
        mode="PRODUCTION",
        deployment=deployment,
        to_mode="PRODUCTION",
        actor=SOURCE,
        reason="shipped default",
    )


def _budget(tenant: str, usd: int) -> BudgetUpdated:
    return BudgetUpdated(
        event_id=derived_id(SOURCE, "budget.updated", tenant, BUDGET),
        occurred_at_ms=SINCE_MS,
        source=SOURCE,
        tenant=tenant,
        budget=BUDGET,
        cap_picousd=usd * 10**12,
        period=BudgetPeriod.DAY,
        at_cap=CapAction.DOWNGRADE,
        actor=SOURCE,
    )


def control_key(event: HeadedEvent) -> bytes:
    """Record key of an event of the control plane, as streams/topics.py and the folds expect it."""
    match event:
        case ScoringPolicyUpdated():
            key = f"{event.role}/{event.deployment_mode}"
        case RateCardUpdated() | ModelRegistered():
            key = f"{event.provider}/{event.model}"
        case ModelProfileUpdated():
            key = event.profile_key()
        case ModeChanged():
            key = event.deployment
        case BudgetUpdated():
            key = f"{event.tenant}/{event.budget}"
        case SlmBenchmarkResults():
            key = f"{event.provider}/{event.model}/{event.name}"
        case _:
            raise TypeError(f"{event.NAME} is not an event of the control plane")
    return key.encode()


def publish_defaults(settings: Settings) -> dict[str, int]:
    """Publishes the default events that the log does not hold yet; how many, by topic.

    Returns when all are acknowledged. Raises Unreachable, LogDamaged (a topic is missing).
    """
    bootstrap = settings.need_kafka()
    with Registry(settings.need_registry()) as registry:
        wanted = list(events(settings.deployment))
        topics = dict.fromkeys(topic for topic, _ in wanted)
        catalogue = Catalogue(registry, topics)
        with ThreadPoolExecutor(len(topics)) as pool:  # each read waits more than it works
            read = pool.map(lambda topic: _event_ids(bootstrap, catalogue, topic), topics)
            known = dict(zip(topics, read, strict=True))
    counts = {topic.name: 0 for topic in topics}
    outbound = kafka.Outbound(kafka.producer(bootstrap))
    for topic, event in wanted:
        if event.event_id not in known[topic]:
            outbound.send(topic.name, control_key(event), encode(catalogue, topic, event))
            counts[topic.name] += 1
    outbound.flush()
    return counts


def _event_ids(bootstrap: str, catalogue: Catalogue, topic: Topic) -> set[str]:
    recorded = (decode(catalogue, m) for m in kafka.read_to_end(bootstrap, topic.name))
    return {
        r.event.event_id
        for r in recorded
        if isinstance(r, Recorded) and isinstance(r.event, HeadedEvent)
    }


def _ms(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp()) * 1000
