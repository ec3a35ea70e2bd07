import uuid

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from projections.known_ids import Fingerprints, as_arrow, bounds, follow_time, uuids
from schemas.values import NAMESPACE

IDS = st.one_of(
    st.uuids().map(str),
    st.uuids().map(lambda u: str(u).upper()),
    st.text("0123456789abcdef-", min_size=1, max_size=40),
    st.text(min_size=36, max_size=36),
)


def plainly(text: str) -> uuid.UUID:
    if len(text) == 36 and text.isascii() and text.count("-") == 4:
        groups = text.split("-")
        if [len(g) for g in groups] == [8, 4, 4, 4, 12] and all(
            c.isalnum() for g in groups for c in g
        ):
            try:
                return uuid.UUID(text)
            except ValueError:
                pass
    return uuid.uuid5(NAMESPACE, text)


@given(st.lists(IDS), st.integers(0, 3))
def test_an_id_is_itself_if_it_is_a_uuid_and_else_the_uuid5_of_its_text(
    texts: list[str], skip: int
) -> None:
    column = pa.array(texts, pa.string())[skip:]  # a slice has an offset into its buffers
    assert [uuid.UUID(bytes=row.tobytes()) for row in uuids(column)] == [
        plainly(text) for text in texts[skip:]
    ]
    assert as_arrow(uuids(column)).storage.to_pylist() == [plainly(t).bytes for t in texts[skip:]]


def test_only_version_7_follows_time() -> None:
    texts = ["019a0000-0000-7000-8000-000000000000", str(uuid.UUID(int=5, version=4)), "mine"]
    assert follow_time(uuids(pa.array(texts))).tolist() == [True, False, False]


@given(st.lists(st.uuids(), min_size=1))
def test_the_bounds_of_a_batch_hold_all_its_ids(found: list[uuid.UUID]) -> None:
    low, high = bounds(uuids(pa.array([str(u) for u in found])))
    assert all(uuid.UUID(low) <= u <= uuid.UUID(high) for u in found)


@given(st.lists(st.lists(st.uuids(), max_size=20), max_size=12), st.lists(st.uuids(), max_size=20))
def test_fingerprints_never_forget(batches: list[list[uuid.UUID]], others: list[uuid.UUID]) -> None:
    def rows(found: list[uuid.UUID]) -> NDArray[np.uint8]:
        return uuids(pa.array([str(u) for u in found], pa.string()))

    known = Fingerprints()
    held: set[uuid.UUID] = set()
    for batch in batches:
        known.add(rows(batch))
        held |= set(batch)
        assert known.maybe(rows(batch)).all()
    assert len(known) == sum(map(len, batches))
    assert known.maybe(rows(sorted(held))).all()
    strangers = [u for u in others if u not in held]
    assert not known.maybe(rows(strangers)).any()
