"""The workers' reader of rankings on a real broker and registry."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from schemas import ModelProfileScored
from streams import kafka as clients
from streams import rankings_reader, topics
from streams.codec import encode
from streams.ranking_header import header
from streams.rankings_reader import Found, RankingsReader
from streams.registry import Catalogue, Registry
from streams.topics import MODEL_PROFILE_SCORED
from tests.support.events import good

Publish = Callable[..., str]


@pytest.fixture(scope="module")
def publish(kafka: str, registry: str) -> Iterator[Publish]:
    """Appends a ranking (or raw bytes under its key and header) and returns its event_id."""
    topics.create(clients.admin(kafka), 1)
    with Registry(registry) as client:
        catalogue = Catalogue(client, [MODEL_PROFILE_SCORED])
        out = clients.Outbound(clients.producer(kafka))

        def send(
            role: str,
            as_of_ms: int,
            status: str = "FINAL",
            mode: str = "PRODUCTION",
            raw: bytes | None = None,
            headed: bool = True,
            flush: bool = True,
            **given: object,
        ) -> str:
            event = good(
                ModelProfileScored,
                event_id=str(uuid4()),
                role=role,
                deployment_mode=mode,
                as_of_ms=as_of_ms,
                status=status,
                **given,
            )
            value = encode(catalogue, MODEL_PROFILE_SCORED, event) if raw is None else raw
            headers = [header(event)] if headed else []
            out.send(MODEL_PROFILE_SCORED.name, f"{role}/{mode}".encode(), value, headers)
            if flush:
                out.flush()
            return event.event_id

        yield send


@pytest.fixture
def reader(kafka: str, registry: str, publish: Publish) -> Iterator[RankingsReader]:
    with RankingsReader(kafka, registry) as following:
        assert following.wait_ready(20), following.trouble
        yield following


def fresh() -> str:
    return f"role-{uuid4().hex}"


def eventually(check: Callable[[], bool], within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while not check():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def final(found: Found | None) -> str | None:
    return None if found is None or found.final is None else found.final.ranking.event_id


def provisional(found: Found | None) -> str | None:
    if found is None or found.provisional is None:
        return None
    return found.provisional.ranking.event_id


def test_the_newest_of_each_kind_is_known_and_which_of_them_is_newer(
    publish: Publish, reader: RankingsReader
) -> None:
    role = fresh()
    assert reader.get(role, "PRODUCTION") is None
    publish(role, 1_000)
    last = publish(role, 2_000)
    early = publish(role, 1_500, "PROVISIONAL")
    assert eventually(lambda: provisional(reader.get(role, "PRODUCTION")) == early)
    found = reader.get(role, "PRODUCTION")
    assert found is not None
    assert final(found) == last
    assert found.newest.ranking.event_id == last
    assert found.as_of_ms == 2_000
    assert found.staleness_ms is not None

    later = publish(role, 2_500, "PROVISIONAL")
    assert eventually(lambda: provisional(reader.get(role, "PRODUCTION")) == later)
    found = reader.get(role, "PRODUCTION")
    assert found is not None
    assert (final(found), found.newest.ranking.event_id) == (last, later)
    assert (role, "PRODUCTION") in reader.ranked()
    assert reader.get(role, "TEST") is None


def test_a_heartbeat_moves_the_time_and_no_ranking(
    publish: Publish, reader: RankingsReader
) -> None:
    role = fresh()
    only = publish(role, 1_000)
    publish(role, 9_000, "HEARTBEAT")

    def heard() -> bool:
        found = reader.get(role, "PRODUCTION")
        return found is not None and found.as_of_ms == 9_000

    assert eventually(heard)
    assert final(reader.get(role, "PRODUCTION")) == only


def test_corrections_count_and_neither_older_ones_nor_repeats_do(
    publish: Publish, reader: RankingsReader
) -> None:
    role = fresh()
    publish(role, 2_000)
    right = publish(role, 2_000, revision=1)
    publish(role, 1_000, revision=5)
    publish(role, 2_000)
    publish(role, 2_000, revision=1)  # the first of a revision counts
    done = publish(role, 1, "PROVISIONAL")
    assert eventually(lambda: provisional(reader.get(role, "PRODUCTION")) == done)
    assert final(reader.get(role, "PRODUCTION")) == right


def test_a_newer_generation_prevails(publish: Publish, reader: RankingsReader) -> None:
    role = fresh()
    newer = publish(role, 1_000, generation=3)
    publish(role, 2_000, generation=2)
    done = publish(role, 1, "PROVISIONAL")
    assert eventually(lambda: provisional(reader.get(role, "PRODUCTION")) == done)
    assert final(reader.get(role, "PRODUCTION")) == newer


def test_roles_and_modes_have_aliases(publish: Publish, reader: RankingsReader) -> None:
    published = publish("dialogue", 10**12, mode="TRAINING")
    assert eventually(lambda: final(reader.get("Chat", "training")) == published)


def test_a_final_far_behind_the_end_is_found_at_the_start_and_later(
    kafka: str, registry: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rankings_reader, "NEAR", 3)
    monkeypatch.setattr(rankings_reader, "STEP_GROWS", 2)
    silent, unseen, loud = fresh(), fresh(), fresh()
    publish(silent, 500)
    wanted = {role: publish(role, 1_000) for role in (silent, unseen)}
    publish(silent, 900, revision=3)
    for n in range(80):  # over all partitions: the keys of loud ones differ
        publish(f"{loud}{n % 16}", 2_000 + n, "PROVISIONAL", flush=False)
    publish(silent, 5_000, "HEARTBEAT")
    with RankingsReader(kafka, registry) as reader:
        assert reader.wait_ready(20), reader.trouble
        assert final(reader.get(silent, "PRODUCTION")) == wanted[silent]
        publish(unseen, 5_000, "HEARTBEAT")
        assert eventually(lambda: final(reader.get(unseen, "PRODUCTION")) == wanted[unseen])


def test_it_does_not_look_farther_back_than_it_says(
    kafka: str, registry: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rankings_reader, "NEAR", 2)
    monkeypatch.setattr(rankings_reader, "FARTHEST", 10)
    role = fresh()
    publish(role, 1_000)
    for n in range(40):
        publish(role, 2_000 + n, "HEARTBEAT", flush=False)
    last = publish(role, 3_000, "PROVISIONAL")
    with RankingsReader(kafka, registry) as reader:
        assert reader.wait_ready(20), reader.trouble
        found = reader.get(role, "PRODUCTION")
        assert provisional(found) == last
        assert final(found) is None


def test_records_without_our_header_are_taken_too(publish: Publish, reader: RankingsReader) -> None:
    role = fresh()
    published = publish(role, 1_000, headed=False)
    assert eventually(lambda: final(reader.get(role, "PRODUCTION")) == published)


def test_a_bad_record_is_counted_and_the_ranking_before_it_stands(
    publish: Publish, reader: RankingsReader
) -> None:
    role = fresh()
    before = reader.skipped
    published = publish(role, 1_000)
    for raw in (b"\x00\x00", b"\x07garbage", b"\x00\x7f\xff\xff\xffunknown id"):
        publish(role, 2_000, raw=raw)
    assert eventually(lambda: reader.skipped == before + 3)
    assert final(reader.get(role, "PRODUCTION")) == published
    better = publish(role, 3_000)
    assert eventually(lambda: final(reader.get(role, "PRODUCTION")) == better)


def test_staleness_is_small_while_the_broker_answers_and_unknown_where_none_does(
    reader: RankingsReader, registry: str
) -> None:
    assert eventually(lambda: reader.staleness_ms is not None)
    time.sleep(1.5)
    stale = reader.staleness_ms
    assert stale is not None
    assert stale < 2_000
    with RankingsReader("127.0.0.1:1", registry) as nowhere:
        assert not nowhere.wait_ready(0.5)
        assert nowhere.staleness_ms is None
        assert eventually(lambda: nowhere.trouble is not None)


def test_many_threads_read_while_rankings_change(publish: Publish, reader: RankingsReader) -> None:
    role = fresh()
    publish(role, 1)
    assert eventually(lambda: reader.get(role, "PRODUCTION") is not None)
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        last = 0
        while not done.is_set():
            found = reader.get(role, "PRODUCTION")
            if found is None or found.final is None or found.final.ranking.as_of_ms < last:
                wrong.append(found)
                return
            last = found.final.ranking.as_of_ms
            if found.as_of_ms < last:
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for thread in readers:
        thread.start()
    ids = [publish(role, n) for n in range(2, 40)]
    assert eventually(lambda: final(reader.get(role, "PRODUCTION")) == ids[-1])
    done.set()
    for thread in readers:
        thread.join()
    assert wrong == []


def test_close_ends_all_threads_and_what_was_read_stays(
    kafka: str, registry: str, publish: Publish
) -> None:
    role = fresh()
    published = publish(role, 1_000)
    reader = RankingsReader(kafka, registry)
    assert reader.wait_ready(20)
    reader.close()
    reader.close()
    names = {t.name for t in threading.enumerate()}
    assert not names & {"roster-live-reader", "roster-past"}
    assert final(reader.get(role, "PRODUCTION")) == published


def test_close_ends_a_reader_that_waits_for_its_registry(kafka: str, publish: Publish) -> None:
    publish(fresh(), 1_000)
    reader = RankingsReader(kafka, "http://127.0.0.1:1")
    assert not reader.wait_ready(1.0)
    begun = time.monotonic()
    reader.close()
    assert time.monotonic() - begun < 4
    assert "roster-live-reader" not in {t.name for t in threading.enumerate()}


def test_the_reader_brings_neither_faust_nor_duckdb() -> None:
    heavy = "{'faust', 'duckdb', 'pyarrow', 'numpy'} & set(sys.modules)"
    code = f"import sys, streams.rankings_reader; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
