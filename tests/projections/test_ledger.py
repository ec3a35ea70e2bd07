from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections import history, ledger, store
from projections.known_ids import Fingerprints
from schemas import Event, LateEvent, LlmInvocation, Position, RateCardUpdated, Recorded
from schemas.avro import encode
from schemas.pricing import PRICE_UNITS, Card, card_of, choose, cost_picousd
from schemas.rate_card import PriceUnit
from schemas.values import Outcome, canonical_role
from streams.batch import arrow_schema
from streams.topics import LATE_EVENTS

HOUR = 3_600_000
DAY10 = 1_771_200_000_000 // HOUR * HOUR  # some full hour
APPENDED = DAY10 + 10 * HOUR
OPENAI = ("openai", "gpt-4o-mini")


def invocation(event_id: str, at_ms: int = DAY10, **fields: Any) -> LlmInvocation:
    return LlmInvocation(
        **{
            "event_id": event_id,
            "occurred_at_ms": at_ms,
            "source": "gateway",
            "tenant": "acme",
            "mode": "prod",
            "role": "chat",
            "provider": OPENAI[0],
            "model": OPENAI[1],
            "outcome": Outcome.SUCCESS,
            "input_tokens": 1234,
            "output_tokens": 567,
            "latency_us": 812_000,
            **fields,
        }
    )


@dataclass
class Book:
    """A ledger over a file, fed with events at growing offsets."""

    db: duckdb.DuckDBPyConnection
    cards: ledger.Cards = field(default_factory=dict)
    known: Fingerprints = field(default_factory=Fingerprints)
    next_offset: int = 0

    def price(
        self, unit: PriceUnit, price: int, append_ms: int = 0, model: str = OPENAI[1], **more: Any
    ) -> None:
        card = RateCardUpdated(
            event_id=f"card-{len(self.cards)}",
            occurred_at_ms=0,
            source="test",
            provider=OPENAI[0],
            model=model,
            unit=unit,  # type: ignore[arg-type]  # never UNKNOWN here
            price_picousd_per_million=price,
            **{"valid_from_ms": 0, **more},
        )
        at = Position("rate.card.updated", 0, self.next_offset, append_ms)
        self.next_offset += 1
        ledger.add_card(self.cards, (OPENAI[0], model), unit, card_of(card, at))

    def file(self, *events: LlmInvocation, partition: int = 0, append_ms: int = APPENDED) -> Any:
        rows = [
            {
                **event.model_dump(mode="json"),
                "partition": partition,
                "offset": self.next_offset + i,
                "append_ms": append_ms,
            }
            for i, event in enumerate(events)
        ]
        self.next_offset += len(rows)
        table = pa.Table.from_pylist(rows, schema=arrow_schema())
        with store.transaction(self.db):
            return ledger.file(self.db, table, [encode(e) for e in events], self.cards, self.known)

    def rows(self, sql: str) -> list[Any]:
        return self.db.execute(sql).fetchall()


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    db = store.connect(tmp_path / store.FILE)
    yield Book(db)
    db.close()


def test_the_worked_example_of_m8(book: Book) -> None:
    book.price(PriceUnit.INPUT_TOKEN, 150_000_000_000)
    book.price(PriceUnit.OUTPUT_TOKEN, 600_000_000_000)
    book.file(invocation("e1"))
    assert book.rows("SELECT cost_picousd, card_cost_picousd FROM invocations") == [
        (525_300_000, 525_300_000)
    ]
    assert str(book.rows("SELECT cost_usd FROM invocations_usd")[0][0]) == "0.000525300000"


def test_the_worked_example_of_m10(book: Book) -> None:
    """e1 10:15; e2 10:59:59.999; e1 again; e3 late; e4 without a card; e5 11:00:00.000."""
    ten = DAY10
    book.price(PriceUnit.INPUT_TOKEN, 150_000_000_000)
    book.price(PriceUnit.OUTPUT_TOKEN, 600_000_000_000)
    e1 = invocation("e1", ten + 15 * 60_000)
    e2 = invocation("e2", ten + HOUR - 1, reported_cost_picousd=1_000_000)
    e3 = invocation("e3", ten + 20 * 60_000, reported_cost_picousd=2_000_000)
    e4 = invocation("e4", ten + 30 * 60_000, model="unheard-of")
    e5 = invocation("e5", ten + HOUR, reported_cost_picousd=7)
    filed = book.file(e1, e2, e1, e3, e4, e5)
    assert filed.duplicates.tolist() == [2]
    late = LateEvent(
        event_id="late-e3",
        occurred_at_ms=e3.occurred_at_ms,
        source="meter",
        tenant="acme",
        late_event_id="e3",
        origin_topic="llm.invocation",
        origin_partition=0,
        origin_offset=book.rows("SELECT src_offset FROM invocations WHERE event_id='e3'")[0][0],
        pane_start_ms=ten,
        watermark_ms=ten + HOUR,
        generation=1,
    )
    recorded: Recorded[Event] = Recorded(late, Position(LATE_EVENTS.name, 0, 0, APPENDED), b"k")
    history.file(book.db, LATE_EVENTS.name, [recorded], [b"body"])
    assert book.rows(
        "SELECT hour_ms, sum(cost_picousd), sum(n), sum(unpriced_n) FROM cost_hourly"
        " GROUP BY hour_ms ORDER BY hour_ms"
    ) == [(ten, 528_300_000, 4, 1), (ten + HOUR, 7, 1, 0)]
    assert book.rows("SELECT hour_ms, sum(late_n) FROM late_hourly GROUP BY ALL") == [(ten, 1)]
    assert str(book.rows("SELECT sum(cost_usd) FROM cost_daily_usd")[0][0]) == "0.000528300007"


def test_a_reported_cost_is_charged_and_the_cost_by_cards_is_kept_beside_it(book: Book) -> None:
    book.price(PriceUnit.INPUT_TOKEN, 1_000_000)
    book.price(PriceUnit.OUTPUT_TOKEN, 0)
    book.file(invocation("a", reported_cost_picousd=9))
    assert book.rows("SELECT cost_picousd, card_cost_picousd FROM invocations") == [(9, 1234)]


def test_without_a_card_for_a_unit_that_was_used_the_cost_is_unknown_and_never_zero(
    book: Book,
) -> None:
    book.price(PriceUnit.INPUT_TOKEN, 1_000_000)
    book.file(invocation("a"), invocation("b", output_tokens=0))
    assert book.rows("SELECT event_id, cost_picousd FROM invocations ORDER BY 1") == [
        ("a", None),
        ("b", 1234),
    ]
    assert book.rows("SELECT sum(n), sum(unpriced_n), sum(cost_picousd) FROM cost_panes") == [
        (2, 1, 1234)
    ]


def test_a_card_appended_at_or_after_the_invocation_is_not_applied(book: Book) -> None:
    book.price(PriceUnit.INPUT_TOKEN, 1_000_000, append_ms=APPENDED)
    book.price(PriceUnit.OUTPUT_TOKEN, 0)
    book.file(invocation("early"))
    book.file(invocation("later"), append_ms=APPENDED + 1)
    assert book.rows("SELECT event_id, cost_picousd FROM invocations ORDER BY 1") == [
        ("early", None),
        ("later", 1234),
    ]


def test_costs_beyond_64_bits_are_exact(book: Book) -> None:
    book.price(PriceUnit.INPUT_TOKEN, 2**63 - 1)
    book.price(PriceUnit.OUTPUT_TOKEN, 2**63 - 1)
    huge = invocation("huge", input_tokens=10**9, output_tokens=3)
    book.file(huge, invocation("free", input_tokens=0, output_tokens=0), invocation("x", model="m"))
    expected = cost_picousd((10**9, 0, 3), (2**63 - 1, None, 2**63 - 1))
    assert book.rows("SELECT event_id, cost_picousd FROM invocations ORDER BY 1") == [
        ("free", 0),
        ("huge", expected),
        ("x", None),
    ]


def test_the_same_id_is_charged_once_for_ever_whatever_form_it_has(book: Book) -> None:
    v7, v4 = "019a0000-0000-7000-8000-000000000000", "6fa459ea-ee8a-4ca4-894e-db77e160355e"
    for event_id in (v7, v4, "order/17"):
        assert book.file(invocation(event_id)).applied.tolist() == [True]
        assert book.file(invocation(event_id)).duplicates.tolist() == [0]
        conflict = book.file(invocation(event_id, latency_us=1), invocation(f"{event_id}.1"))
        assert [c.row for c in conflict.conflicts] == [0]
        first = book.rows(f"SELECT src_offset FROM invocations WHERE event_id='{event_id}'")
        assert conflict.conflicts[0].first_offset == first[0][0]
    assert book.rows("SELECT count(*) FROM invocations") == [(6,)]
    assert book.rows("SELECT sum(n) FROM cost_panes") == [(6,)]


def test_an_id_belongs_to_its_tenant_source_and_partition(book: Book) -> None:
    for event_id in ("019a0000-0000-7000-8000-000000000000", "foreign"):
        one = invocation(event_id)
        others = [invocation(event_id, tenant="b"), invocation(event_id, source="s2")]
        assert book.file(one, *others).applied.all()
        assert book.file(one, partition=1).applied.all()
        assert not book.file(one, *others).applied.any()


def test_an_uuid_in_capitals_is_another_id(book: Book) -> None:
    text = "019a0000-0000-7abc-8000-000000000000"
    assert book.file(invocation(text), invocation(text.upper())).applied.all()
    assert not book.file(invocation(text), invocation(text.upper())).applied.any()


def test_the_first_of_a_batch_counts_and_its_body_decides_what_the_others_are(book: Book) -> None:
    filed = book.file(
        invocation("a"), invocation("a", latency_us=5), invocation("a"), invocation("b")
    )
    assert filed.applied.tolist() == [True, False, False, True]
    assert [c.row for c in filed.conflicts] == [1]
    assert filed.duplicates.tolist() == [2]


def test_fingerprints_are_made_again_from_the_file(book: Book) -> None:
    ids = ["foreign", "6fa459ea-ee8a-4ca4-894e-db77e160355e"]
    book.file(*map(invocation, ids), invocation("019a0000-0000-7000-8000-000000000000"))
    book.known = ledger.load_known(book.db)
    assert len(book.known) == 2
    assert not book.file(*map(invocation, ids)).applied.any()


def test_roles_and_modes_are_filed_by_their_canonical_names(book: Book) -> None:
    book.file(
        invocation("a", role="ASR", mode="QA"),
        invocation("b", role="My Role", mode=None),
    )
    assert book.rows("SELECT role, mode FROM invocations ORDER BY event_id") == [
        ("speech_recognition", "TEST"),
        ("My Role", ""),
    ]
    assert book.rows("SELECT role, mode FROM cost_panes ORDER BY role") == [
        ("My Role", ""),
        (canonical_role("asr"), "TEST"),
    ]


def test_merging_partials_changes_no_sum(book: Book) -> None:
    book.price(PriceUnit.INPUT_TOKEN, 3_000_000)
    book.price(PriceUnit.OUTPUT_TOKEN, 7_000_001)
    for i in range(20):
        book.file(*(invocation(f"{i}.{j}", DAY10 + j * 299_999) for j in range(5)))
    before = book.rows("SELECT * FROM cost_hourly ORDER BY ALL")
    with store.transaction(book.db):
        ledger.compact(book.db)
    assert book.rows("SELECT * FROM cost_hourly ORDER BY ALL") == before
    assert book.rows("SELECT count(*) FROM cost_panes") < [(10,)]


CARDS = st.builds(
    Card,
    version=st.integers(1, 3),
    offset=st.integers(0, 1000),
    append_ms=st.integers(0, 20),
    valid_from_ms=st.integers(0, 20),
    valid_to_ms=st.none() | st.integers(21, 30),
    price_picousd=st.integers(0, 10**12),
)


@given(
    st.lists(CARDS, max_size=8, unique_by=lambda c: c.offset),
    st.lists(st.tuples(st.integers(0, 35), st.integers(0, 25)), min_size=1, max_size=20),
)
def test_prices_of_whole_columns_are_those_of_single_rows(
    cards: list[Card], rows: list[tuple[int, int]]
) -> None:
    filed: ledger.Cards = {}
    for card in cards:
        ledger.add_card(filed, OPENAI, PRICE_UNITS[0], card)
    occurred, appended = np.array(rows, np.int64).T
    price, found = ledger._prices(filed.get((*OPENAI, PRICE_UNITS[0]), ()), occurred, appended)
    chosen = [choose(cards, at, before_append_ms=app) for at, app in rows]
    assert [p if f else None for p, f in zip(price.tolist(), found.tolist(), strict=True)] == [
        None if card is None else card.price_picousd for card in chosen
    ]
