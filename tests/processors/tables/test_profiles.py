"""Laws of the fold of profiles: pure, no broker."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.tables import profiles
from processors.tables.profiles import Outcome, Row, decode, encode, evolve
from schemas import ModelProfileUpdated, Position, Recorded
from schemas.model_profile import ProfileAction, RejectionKind
from schemas.values import derived_id

TOPIC = "model.profile.updated"


def recorded(
    offset: int, *, partition: int = 0, key: str | None = None, **fields: Any
) -> Recorded[ModelProfileUpdated]:
    """A change as it stands in the log; its id follows from its offset unless it is given."""
    event = ModelProfileUpdated.model_validate(
        {
            "event_id": f"id-{offset}",
            "occurred_at_ms": 1000 + offset,
            "source": "test",
            "tenant": "acme",
            "scope": "tenant:acme",
            "role": "code",
            "deployment_mode": "PRODUCTION",
            "action": ProfileAction.SET,
            "model": f"openai/m{offset}",
            "actor": "ann",
            **fields,
        }
    )
    at = Position(TOPIC, partition, offset, 5000 + offset)
    return Recorded(event, at, (key or event.profile_key()).encode())


def folded(*records: Recorded[ModelProfileUpdated], row: Row | None = None) -> list[Outcome]:
    """Outcomes of records one after the other."""
    outcomes = []
    for record in records:
        outcomes.append(evolve(row, record))
        row = outcomes[-1].row
    return outcomes


def test_a_change_gives_the_next_version_and_is_published() -> None:
    first, second = folded(recorded(3), recorded(4, temperature=1.5, fallbacks=("a/b",)))
    assert (first.row.version, second.row.version) == (1, 2)
    assert second.verdict == "accepted"
    assert second.active is not None
    assert (second.active.version, second.active.model) == (2, "openai/m4")
    assert (second.active.temperature, second.active.fallbacks) == (1.5, ("a/b",))
    assert (second.active.cause_partition, second.active.cause_offset) == (0, 4)
    assert second.active.tenant == "acme"
    assert second.active == profiles.active(second.row, TOPIC)
    assert not second.tombstone
    assert second.rejected is None


def test_a_record_that_the_row_has_seen_changes_nothing() -> None:
    (first,) = folded(recorded(3))
    for offset in (3, 2):
        again = evolve(first.row, recorded(offset, event_id="other"))
        assert again == Outcome(first.row, "seen")


def test_a_repeated_id_is_ignored_wherever_it_stands() -> None:
    first, second, third = folded(recorded(3), recorded(4), recorded(5, event_id="id-3"))
    assert third.verdict == "repeated"
    assert third.row == replace(second.row, src=((0, 5),))
    assert third.active is None
    assert first.active is not None


def test_an_id_is_remembered_for_64_events() -> None:
    outcomes = folded(*(recorded(n) for n in range(64)))
    assert evolve(outcomes[-1].row, recorded(64, event_id="id-0")).verdict == "repeated"
    outcomes = folded(*(recorded(n) for n in range(65)))
    assert evolve(outcomes[-1].row, recorded(65, event_id="id-0")).verdict == "accepted"


def test_the_first_of_two_who_saw_the_same_version_wins() -> None:
    _, winner, loser = folded(
        recorded(1), recorded(2, expected_version=1), recorded(3, expected_version=1, actor="bob")
    )
    assert winner.row.version == loser.row.version == 2
    assert loser.row.profile == winner.row.profile
    rejected = loser.rejected
    assert rejected is not None
    assert rejected.kind is RejectionKind.CONFLICT
    assert (rejected.field, rejected.value, rejected.allowed) == ("expected_version", "1", "2")
    assert (rejected.expected_version, rejected.actual_version) == (1, 2)
    assert (rejected.rejected_event_id, rejected.actor) == ("id-3", "bob")
    assert (rejected.cause_topic, rejected.cause_partition, rejected.cause_offset) == (TOPIC, 0, 3)
    assert loser.active is None


def test_version_0_is_that_of_a_profile_nobody_has_set() -> None:
    assert evolve(None, recorded(1, expected_version=0)).verdict == "accepted"
    assert evolve(None, recorded(1, expected_version=1)).verdict == "rejected"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", "no-provider"),
        ("fallbacks", ("openai/ok", "bad")),
        ("base_url", "ftp://x"),
        ("temperature", 2.5),
        ("max_tokens", 0),
        ("extra", "[]"),
        ("extra", '{"a":' * 40 + "1" + "}" * 40),
        ("credential_ref", "sk-secret"),
        ("scope", "tenant:"),
        ("scope", "nobody"),
    ],
)
def test_an_ill_formed_field_is_named_with_its_value_and_what_is_allowed(
    field: str, value: Any
) -> None:
    good, bad = folded(recorded(1), recorded(2, **{field: value}))
    assert bad.verdict == "rejected"
    assert bad.rejected is not None
    assert bad.rejected.kind is RejectionKind.INVALID
    assert bad.rejected.field is not None
    assert bad.rejected.field.split(".")[0] == field
    assert bad.rejected.value is not None
    assert bad.rejected.allowed
    assert (bad.row.version, bad.row.profile) == (1, good.row.profile)


def test_a_record_under_a_foreign_key_is_invalid_and_touches_no_version() -> None:
    (bad,) = folded(recorded(1, key="tenant:acme/code/TEST"))
    assert bad.rejected is not None
    assert (bad.rejected.field, bad.rejected.value) == ("key", "tenant:acme/code/TEST")
    assert bad.rejected.allowed == "tenant:acme/code/PRODUCTION"
    assert bad.row.version == 0
    assert profiles.active(bad.row, TOPIC) is None


def test_a_deletion_counts_and_keeps_version_and_ids() -> None:
    first, gone, again = folded(
        recorded(1),
        recorded(2, action=ProfileAction.DELETE, expected_version=1, model=""),
        recorded(3, expected_version=2),
    )
    assert first.row.version == 1
    assert (gone.row.version, gone.row.deleted, gone.row.profile) == (2, True, None)
    assert gone.tombstone
    assert gone.active is None
    assert gone.row.event_ids == ("id-1", "id-2")
    assert (again.row.version, again.row.deleted) == (3, False)
    assert again.active is not None


def test_each_partition_of_the_source_is_guarded_by_itself() -> None:
    outcomes = folded(recorded(9, partition=2), recorded(4, partition=1, event_id="x"))
    assert outcomes[-1].row.src == ((1, 4), (2, 9))
    assert outcomes[-1].row.version == 2


def test_ids_of_what_is_published_follow_from_the_position_of_the_cause() -> None:
    one, other = folded(recorded(1, partition=2), recorded(7, partition=2, model="bad"))
    assert one.active is not None
    assert one.active.event_id == derived_id("model.profile.active", TOPIC, 2, 1)
    assert other.rejected is not None
    assert other.rejected.event_id == derived_id("model.profile.rejected", TOPIC, 2, 7)


changes = st.lists(
    st.fixed_dictionaries(
        {"event_id": st.sampled_from([f"e{n}" for n in range(12)])},
        optional={
            "expected_version": st.integers(0, 6),
            "action": st.sampled_from([ProfileAction.SET, ProfileAction.DELETE]),
            "model": st.sampled_from(["openai/a", "bad", "anthropic/ü"]),
            "max_tokens": st.none() | st.integers(-1, 3),
            "temperature": st.sampled_from([0.0, 0.1, 3.0]),
        },
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(changes, st.data())
def test_history_may_be_cut_anywhere_and_read_again_from_anywhere(
    fields: list[dict[str, Any]], data: st.DataObject
) -> None:
    """The row passes its codec at the cut; what is read again below it moves nothing."""
    records = [recorded(n, **some) for n, some in enumerate(fields)]
    whole = folded(*records)
    cut = data.draw(st.integers(0, len(records)))
    back = data.draw(st.integers(0, cut))
    before = whole[cut - 1].row if cut else None
    kept = None if before is None else decode(encode(before))
    assert kept == before
    repeated = folded(*records[back:], row=kept)
    assert all(o == Outcome(kept or Row(), "seen") for o in repeated[: cut - back])
    assert repeated[cut - back :] == whole[cut:]


@given(changes)
def test_equal_rows_have_equal_bytes(fields: list[dict[str, Any]]) -> None:
    for outcome in folded(*(recorded(n, **some) for n, some in enumerate(fields))):
        assert encode(decode(encode(outcome.row))) == encode(outcome.row)
