"""The catalogue of models is a fold over the log: the newest word on each model holds."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas import ModelProfileScored, ModelRegistered, Position, RateCardUpdated, Recorded
from schemas.model import RegistrationAction
from tests.support.events import GOOD, good
from tools.models import FACTS, NOTHING_SAID, registered, table

NOW = 1_760_000_000_000
DELETE = RegistrationAction.DELETE


def recorded(offset: int, event: Any) -> Recorded[Any]:
    return Recorded(event, Position(event.NAME, 0, offset, 1_700_000_000_000 + offset), b"k")


def ranking(role: str, *models: str) -> ModelProfileScored:
    entry = GOOD[ModelProfileScored]["entries"][0]
    entries = [{**entry, "provider": "p", "model": model} for model in models]
    return good(ModelProfileScored, role=role, entries=entries)


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("mn"), st.booleans())))
def test_of_each_model_the_last_word_holds(words: list[tuple[str, str, bool]]) -> None:
    said = [
        recorded(
            offset,
            good(
                ModelRegistered,
                provider=provider,
                model=model,
                action="SET" if known else "DELETE",
                notes=str(offset),
            ),
        )
        for offset, (provider, model, known) in enumerate(words)
    ]
    last = {(p, m): (known, str(offset)) for offset, (p, m, known) in enumerate(words)}
    found = {who: r.event.notes for who, r in registered(said).items()}
    assert found == {who: notes for who, (known, notes) in last.items() if known}


def test_a_model_that_is_registered_priced_or_ranked_is_there_once() -> None:
    said = [
        recorded(0, good(ModelRegistered, model="both", roles=["chat"])),
        recorded(1, good(ModelRegistered, model="gone")),
        recorded(2, good(ModelRegistered, model="gone", action=DELETE)),
        recorded(3, good(ModelRegistered, provider="p/x", model="alone")),
    ]
    price = {"price_picousd_per_million": 6 * 10**11}
    cards = [
        recorded(0, good(RateCardUpdated, model="both", **price)),
        recorded(1, good(RateCardUpdated, model="priced", unit="OUTPUT_TOKEN", **price)),
        recorded(2, good(RateCardUpdated, model="past", valid_to_ms=NOW)),
    ]
    rankings = [ranking("code", "both", "ranked"), ranking("a role", "both")]
    rows = {f"{r['provider']}/{r['model']}": r for r in table(said, cards, rankings, NOW)}
    assert list(rows) == ["p/both", "p/past", "p/priced", "p/ranked", "p/x/alone"]
    both = rows["p/both"]
    assert (both["registered"], both["offset"], both["since"]) == (
        True,
        0,
        "2023-11-14T22:13:20.000Z",
    )
    assert (both["roles"], both["ranked_in"]) == (("dialogue",), ["a role", "code"])
    assert (both["input"], both["cached"], both["output"]) == ("$0.60", None, None)
    assert rows["p/priced"]["output"] == "$0.60"
    assert rows["p/past"]["input"] is None, "its price was over"
    for row in rows.values():
        assert row.keys() == both.keys()
        if not row["registered"]:
            assert {name: row[name] for name in FACTS} == NOTHING_SAID
            assert (row["actor"], row["since"], row["offset"]) == (None, None, None)


def test_every_fact_of_the_event_is_in_the_table() -> None:
    header = {"provider", "model", "action", "actor", "reason"}
    events_own = set(ModelRegistered.model_fields) - set(ModelRegistered.__base__.model_fields)  # type: ignore[union-attr]
    assert set(FACTS) == events_own - header
