"""What a meter says of itself."""

from processors.meter import LAW, law_of
from processors.meter_protocol import Meter
from schemas.slm_metrics import MeterMark
from streams.topics import LLM_INVOCATION


def mark(partition: int, consumed: int) -> MeterMark:
    counters = {**dict.fromkeys(LAW, 0), "consumed": consumed, "applied": consumed}
    return MeterMark(
        source_topic=LLM_INVOCATION.name,
        source_partition=partition,
        generation=1,
        up_to_offset=consumed - 1,
        replay_from=0,
        watermark_ms=None,
        newest_event_ms=None,
        newest_append_ms=None,
        kept_from_ms=None,
        owner="x",
        **counters,
    )


def test_of_several_meters_each_tells_the_law_of_its_own_partitions() -> None:
    """All of them know all marks; the sum over the meters counts each partition once."""
    marks = {p: mark(p, 10**p) for p in range(4)}
    laws = []
    for ours in ((0, 1), (2, 3), ()):
        meter = Meter({LLM_INVOCATION.name: 4}, 4, 1, "x")
        for m in marks.values():
            meter.observe(0, m.key(), m)
        for partition in ours:
            assert (
                meter.assign((LLM_INVOCATION.name, partition), marks[partition].up_to_offset + 1)
                is not None
            )
        laws.append(law_of(meter))
    assert [law.get("consumed") for law in laws] == [11, 1100, None]
    assert laws[0] == {**dict.fromkeys(LAW, 0), "consumed": 11, "applied": 11}
