"""The shipped defaults: complete, exact, in force, and published once."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from schemas import (
    HeadedEvent,
    ModelProfileUpdated,
    ModelRegistered,
    RateCardUpdated,
    ScoringPolicyUpdated,
)
from schemas.envelope import Recorded
from schemas.model_profile import ProfileFields
from schemas.rate_card import PriceUnit
from schemas.values import MODES, ROLES
from streams import topics
from streams.codec import decode
from streams.kafka import admin, read_to_end
from streams.registry import Registry, register_all
from streams.settings import Settings, load
from tools import defaults, sample
from tools.sample import traffic

DAY_MS = 86_400_000


def policies() -> dict[tuple[str, str], ScoringPolicyUpdated]:
    found = [e for _, e in defaults.events("main") if isinstance(e, ScoringPolicyUpdated)]
    assert len(found) == len(ROLES) * len(MODES)
    return {(p.role, p.deployment_mode): p for p in found}


def test_every_role_and_mode_has_one_policy() -> None:
    assert set(policies()) == {(role, mode) for role in ROLES for mode in MODES}


def test_local_mode_has_the_weights_of_developers() -> None:
    for role in ROLES:
        local, development = policies()[role, "LOCAL"], policies()[role, "DEVELOPMENT"]
        assert local.weight_latency == development.weight_latency == 3500
        assert local.weight_reliability == development.weight_reliability == 1000


def test_ids_differ_and_making_them_again_repeats_them() -> None:
    first, again = ([e.event_id for _, e in defaults.events("main")] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)


def test_price_keys_name_every_recorded_pair_and_only_prices_that_are_there() -> None:
    assert set(defaults.PRICE_KEYS) == set(sample.calls().pairs)
    for key in defaults.PRICE_KEYS.values():
        assert key is None or key in sample.prices()


def test_every_model_of_the_sample_is_registered_once_with_what_is_recorded_of_it() -> None:
    found = [e for _, e in defaults.events("main") if isinstance(e, ModelRegistered)]
    by_model = {(e.provider, e.model): e for e in found}
    assert len(found) == len(by_model)
    assert set(by_model) == set(sample.calls().pairs)
    # The newest line of the price list, where that is one of a model.
    assert {
        who: (e.context_tokens, e.max_output_tokens)
        for who, e in by_model.items()
        if e.context_tokens or e.max_output_tokens
    } == {
        **{("anyscale", f"llama-2-{size}-chat"): (4096, None) for size in ("7b", "13b", "70b")},
        **{("bedrock", f"llama-2-{size}-chat"): (4096, None) for size in ("13b", "70b")},
        **{("replicate", f"llama-2-{size}-chat"): (4096, 4096) for size in ("7b", "13b", "70b")},
        ("groq", "llama-2-70b-chat"): (4096, 4096),
        ("perplexity", "llama-2-70b-chat"): (4096, 4096),
    }
    said = set(ModelRegistered.model_fields) - {"context_tokens", "max_output_tokens"}
    facts = said - set(HeadedEvent.model_fields) - {"provider", "model", "action"}
    for event in found:
        told = {name for name in facts if getattr(event, name)}
        assert told == {"roles", "actor", "reason"}, "nothing here knows more"


def test_a_model_is_registered_for_the_roles_whose_requests_it_gets() -> None:
    now = 1_760_000_000_000
    served: dict[tuple[str, str], set[str]] = {}
    for batch in traffic.events(7, now, now - 6 * 3_600_000, now):
        columns = (batch.invocations[name].to_pylist() for name in ("provider", "model", "role"))
        for provider, model, role in zip(*columns, strict=True):
            served.setdefault((provider, model), set()).add(role)
    for who, roles in served.items():
        assert roles == set(defaults.registration(*who).roles), who
    assert set(served) == set(defaults.PRICE_KEYS)


def test_a_model_without_a_published_price_has_no_card_and_every_other_one_is_priced_now() -> None:
    unpriced = {pair for pair in defaults.PRICE_KEYS if not defaults.cards(*pair)}
    assert {provider for provider, _ in unpriced} == {"lepton"}
    for pair in set(defaults.PRICE_KEYS) - unpriced:
        open_ended = [c.unit for c in defaults.cards(*pair) if c.valid_to_ms is None]
        assert open_ended == [PriceUnit.INPUT_TOKEN, PriceUnit.OUTPUT_TOKEN], pair


def test_cards_of_a_unit_follow_each_other_without_gap_or_overlap() -> None:
    for pair in defaults.PRICE_KEYS:
        for unit in PriceUnit:
            cards = [c for c in defaults.cards(*pair) if c.unit is unit]
            assert [c.version for c in cards] == list(range(1, len(cards) + 1))
            for card, following in pairwise(cards):
                assert card.valid_to_ms == following.valid_from_ms


def test_a_recorded_change_of_price_is_two_cards() -> None:
    # 2024-01-30T21:24:04-08:00 at 0 USD, 2024-03-25T12:34:55-07:00 at 2.8e-06 USD per token
    cards = defaults.cards("perplexity", "llama-2-70b-chat")
    output = [c for c in cards if c.unit is PriceUnit.OUTPUT_TOKEN]
    assert [(c.valid_from_ms, c.valid_to_ms, c.price_picousd_per_million) for c in output] == [
        (1_706_678_644_000, 1_711_395_295_000, 0),
        (1_711_395_295_000, None, 2_800_000_000_000),
    ]


@pytest.mark.parametrize(
    ("usd", "picousd"),
    [("0.0", 0), ("2.5e-07", 250_000_000_000), ("5.0001e-07", 500_010_000_000), ("1e-18", 1)],
)
def test_a_decimal_price_becomes_picousd_per_million_exactly(usd: str, picousd: int) -> None:
    assert defaults.picousd_per_million(usd) == picousd


def test_a_price_finer_than_a_picousd_per_million_is_refused() -> None:
    with pytest.raises(ValueError, match="1e-19"):
        defaults.picousd_per_million("1e-19")


def test_every_shipped_price_converts_and_converts_back() -> None:
    for changes in sample.prices().values():
        for change in changes:
            for column in defaults.PRICE_COLUMNS.values():
                if change[column]:
                    exact = defaults.picousd_per_million(change[column])
                    assert exact / 10**18 == pytest.approx(float(change[column]), rel=1e-15)


def test_references_leave_the_models_of_the_sample_apart() -> None:
    """Ratios reference/measured of cost and p95: some at the cap, most below it, none near 0."""
    trace, calls = sample.arrivals(), sample.calls()
    tokens: dict[defaults.Unit, int] = {
        PriceUnit.INPUT_TOKEN: int(trace.input_tokens.sum()),
        PriceUnit.OUTPUT_TOKEN: int(trace.output_tokens.sum()),
    }
    policy = policies()["code", "PRODUCTION"]
    cost, latency = [], []
    for number, pair in enumerate(calls.pairs):
        card = {c.unit: c for c in defaults.cards(*pair) if c.valid_to_ms is None}
        if card:
            spent = sum(n * card[unit].price_picousd_per_million for unit, n in tokens.items())
            per_1k = spent / 10**6 / sum(tokens.values()) * 1000
            cost.append(policy.reference_cost_picousd / per_1k)
        of_pair = slice(calls.first[number], calls.first[number] + calls.count[number])
        complete = np.array([code == "" for code in calls.error_code[of_pair]])
        p95 = np.percentile(calls.latency_us[of_pair][complete], 95, method="lower")
        latency.append(policy.reference_latency_us / float(p95))
    cap = policy.max_ratio_percent / 100
    for ratios in (cost, latency):
        floored = sum(ratio >= cap for ratio in ratios)
        assert 1 <= floored <= len(ratios) / 2
        assert sum(ratio > 0.2 for ratio in ratios) >= len(ratios) - 2
        assert min(ratios) > 0.05


def test_profiles_are_valid_name_sampled_models_and_fall_back_to_other_providers() -> None:
    known = {f"{provider}/{model}" for provider, model in sample.calls().pairs}
    found = [e for _, e in defaults.events("main") if isinstance(e, ModelProfileUpdated)]
    assert {(p.role, p.deployment_mode) for p in found} == {
        (role, mode) for role in ("code", "dialogue", "summary") for mode in MODES
    }
    for event in found:
        fields = ProfileFields.model_validate(
            event.model_dump(include=set(ProfileFields.model_fields))
        )
        chain = [fields.model, *fields.fallbacks]
        assert set(chain) <= known
        assert len({model.split("/")[0] for model in chain}) == len(chain) == 3


def settings(kafka: str, registry: str, data: Path, deployment: str) -> Settings:
    return load(
        {
            "ROSTER_KAFKA": kafka,
            "ROSTER_REGISTRY": registry,
            "ROSTER_DATA": str(data),
            "ROSTER_DEPLOYMENT": deployment,
        }
    )


@pytest.mark.kafka
def test_publishing_adds_only_what_is_missing(kafka: str, registry: str, tmp_path: Path) -> None:
    topics.create(admin(kafka), 1)
    defaults.publish_defaults(settings(kafka, registry, tmp_path, "main"))

    again = defaults.publish_defaults(settings(kafka, registry, tmp_path, "main"))
    assert set(again.values()) == {0}
    other = defaults.publish_defaults(settings(kafka, registry, tmp_path, "defaults-test"))
    assert {topic: n for topic, n in other.items() if n} == {"mode.changed": 1}

    wanted = {event.event_id: event for _, event in defaults.events("main")}
    seen: Counter[str] = Counter()
    with Registry(registry) as client:
        catalogue = register_all(client)
        for name in again:
            for message in read_to_end(kafka, name):
                record = decode(catalogue, message)
                if isinstance(record, Recorded) and isinstance(record.event, HeadedEvent):
                    event_id = record.event.event_id
                    if event_id in wanted:
                        seen[event_id] += 1
                        assert record.event == wanted[event_id]
                        assert record.key == defaults.control_key(wanted[event_id])
    assert seen == dict.fromkeys(wanted, 1)


def test_cards_begin_long_before_any_back_fill() -> None:
    newest = max(
        e.valid_from_ms for _, e in defaults.events("main") if isinstance(e, RateCardUpdated)
    )
    assert newest < 1_756_684_800_000  # 2025-09-01, the end of the recorded history
