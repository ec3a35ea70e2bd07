"""The workers' client for rankings: who is best at a role, and why, answered from memory.

with RankingsReader("localhost:9092", "http://localhost:8081/apis/ccompat/v7") as rankings:
    rankings.wait_ready(10)
    found = rankings.get("chat", "prod")
    print(found.final.ranking.leader, found.newest.ranking.entries[0].model, found.staleness_ms)

The topic is kept for ever, so it is read from near its end. Any record tells that a key exists: a
silent one has heartbeats. For a key whose final was not there the log is looked through backwards
once, in steps that grow, by headers alone, and no farther than FARTHEST records per partition.
"""

import threading
from types import TracebackType
from typing import Final, NamedTuple, Self

from confluent_kafka import KafkaException, Message

from schemas import ModelProfileScored, Recorded
from schemas.model_profile import RankingStatus
from schemas.values import canonical_mode, canonical_role
from streams import kafka
from streams.errors import LogDamaged, RosterError
from streams.live_reader import CLOSE_WITHIN_S, RETRY_S, LiveReader
from streams.patient_decoder import PatientDecoder
from streams.ranking_header import Summary, summary
from streams.topics import MODEL_PROFILE_SCORED

NEAR: Final = 500
"""Records per partition to begin with: with 28 keys that have news every 10 s, some 12 minutes, in
which every key with traffic has two finals."""
FARTHEST: Final = 20_000
STEP_GROWS: Final = 4
TOPIC: Final = MODEL_PROFILE_SCORED.name
FINAL: Final = RankingStatus.FINAL


class Standing(NamedTuple):
    """A ranking and where it stands in model.profile.scored."""

    ranking: ModelProfileScored
    partition: int
    offset: int


class Found(NamedTuple):
    """What is known of a role and mode; at least one of the first two is there.

    final, provisional: the newest of its kind; None: none was found. as_of_ms: of the newest record
    of any kind, heartbeats too. staleness_ms: since the reader last had all there is and the broker
    said so; None: it has not yet.
    """

    final: Standing | None
    provisional: Standing | None
    as_of_ms: int
    staleness_ms: int | None

    @property
    def newest(self) -> Standing:
        """The one of later event time; the final where they are of the same."""
        if self.provisional is None:
            assert self.final is not None
            return self.final
        if self.final is None:
            return self.provisional
        later = self.provisional.ranking.as_of_ms > self.final.ranking.as_of_ms
        return self.provisional if later else self.final


Rank = tuple[int, int, int, int]  # generation, as_of, revision, -offset: the first of an id counts
Key = tuple[str, str]  # canonical role and mode


class _Held(NamedTuple):
    rank: Rank
    standing: Standing


class RankingsReader:
    """Follows model.profile.scored into dictionaries. Any thread may call any method."""

    def __init__(self, bootstrap: str, registry: str) -> None:
        """bootstrap: the broker, host:port. registry: URL of an API like Confluent's.

        Returns at once; what cannot be reached is tried again until `close`.
        """
        self._bootstrap = bootstrap
        self._held: dict[tuple[RankingStatus, Key], _Held] = {}
        self._as_of: dict[Key, int] = {}
        self._lock = threading.Lock()  # between the two threads that write
        self._first: dict[int, int] = {}  # per partition the first offset taken
        self._lacking: dict[bytes, int] = {}  # key of records without a final -> partition
        self._known: set[bytes] = set()  # keys of records that have one, or were looked for
        self._skipped = 0
        self._looked_back = threading.Event()
        self._wanted = threading.Event()  # something is lacking
        self._closing = threading.Event()
        self._decoder = PatientDecoder(registry)
        self._reader = LiveReader(bootstrap, [TOPIC], self._take, {TOPIC: NEAR})
        self._past = threading.Thread(target=self._look_back, name="roster-past", daemon=True)
        self._past.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether all that has to be known at the start is known within timeout_s."""
        return self._looked_back.wait(timeout_s)

    def get(self, role: str, mode: str) -> Found | None:
        """The newest final and provisional ranking of a role in a mode (canonical or alias); None
        if there is neither. No network."""
        key = (canonical_role(role), canonical_mode(mode))
        final = self._held.get((RankingStatus.FINAL, key))
        provisional = self._held.get((RankingStatus.PROVISIONAL, key))
        if final is None and provisional is None:
            return None
        return Found(
            None if final is None else final.standing,
            None if provisional is None else provisional.standing,
            self._as_of[key],
            self._reader.staleness_ms(),
        )

    def ranked(self) -> list[Key]:
        """(role, mode) of everything that is ranked."""
        return sorted({key for _, key in list(self._held)})

    @property
    def skipped(self) -> int:
        """Records that would have been the newest and could not be taken: those before stand."""
        return self._skipped

    @property
    def staleness_ms(self) -> int | None:
        """As in Found; None until everything has been read once."""
        return self._reader.staleness_ms()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be read just now; None if all is well."""
        return self._reader.trouble

    def close(self) -> None:
        """Ends threads and connections; may be called twice."""
        self._closing.set()
        self._wanted.set()
        self._decoder.stop()
        self._reader.close()
        self._past.join(CLOSE_WITHIN_S)
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, messages: list[Message]) -> None:
        """Notes what is there by headers, and decodes of each key and kind only the newest."""
        with self._lock:
            self._file(messages)

    def _file(self, messages: list[Message]) -> None:
        best: dict[tuple[str, bytes], list[tuple[Rank, Message]]] = {}
        for message in messages:
            partition, offset, key = message.partition() or 0, message.offset() or 0, message.key()
            self._first.setdefault(partition, offset)
            said = self._summary(message)
            if said is None or not isinstance(key, bytes):
                continue
            if said.status == FINAL.value:
                self._known.add(key)
                self._lacking.pop(key, None)
            elif key not in self._known:
                self._lacking[key] = partition
                self._wanted.set()
            rank = (said.generation, said.as_of_ms, said.revision, -offset)
            best.setdefault((said.status, key), []).append((rank, message))
        for (status, _), found in best.items():
            for rank, message in sorted(found, key=lambda pair: pair[0], reverse=True):
                if self._closing.is_set() or self._put(status, rank, message):
                    break  # else it is broken: the one before it stands

    def _summary(self, message: Message) -> Summary | None:
        """What a record is; None: it cannot be taken."""
        said = summary(message)
        if said is not None:
            return said
        event = self._decoded(message)  # a producer that sends no header
        if event is None:
            return None
        return Summary(event.status.value, event.as_of_ms, event.revision, event.generation)

    def _decoded(self, message: Message) -> ModelProfileScored | None:
        found = self._decoder.decode(message)
        if isinstance(found, Recorded) and isinstance(found.event, ModelProfileScored):
            return found.event
        if found is not None:
            self._skipped += 1
        return None

    def _put(self, status: str, rank: Rank, message: Message) -> bool:
        """Whether the record is good: it is held if it is the newest of its key and kind."""
        event = self._decoded(message)
        if event is None:
            return False
        key = (canonical_role(event.role), canonical_mode(event.deployment_mode))
        kind = RankingStatus(event.status)
        known = self._held.get((kind, key))
        # First the time, then the ranking: whoever sees the ranking finds its time.
        self._as_of[key] = max(event.as_of_ms, self._as_of.get(key, event.as_of_ms))
        if known is None or rank > known.rank:
            standing = Standing(event, message.partition() or 0, message.offset() or 0)
            self._held[kind, key] = _Held(rank, standing)
        return True

    def _look_back(self) -> None:
        """Finds the finals that do not stand near the end."""
        while not self._reader.wait_ready(RETRY_S):
            if self._closing.is_set():
                return
        while not self._closing.is_set():
            with self._lock:
                lacking, before = dict(self._lacking), dict(self._first)
                self._known.update(lacking)
                self._lacking.clear()
                self._wanted.clear()
            self._search(lacking, before)
            if not self._closing.is_set():
                self._looked_back.set()
            self._wanted.wait()

    def _search(self, lacking: dict[bytes, int], before: dict[int, int]) -> None:
        """The newest final of each lacking key, from the first offset taken backwards."""
        step, looked = NEAR * STEP_GROWS, 0
        while lacking and looked < FARTHEST and not self._closing.is_set():
            step = min(step, FARTHEST - looked)
            end = {p: before[p] for p in set(lacking.values()) if before[p] > 0}
            start = {p: max(0, offset - step) for p, offset in end.items()}
            try:
                found = self._finals_between(start, end, lacking)
            except LogDamaged:
                return  # somebody has cut the log off: there is nothing farther back
            except (RosterError, KafkaException):
                self._closing.wait(RETRY_S)
                continue
            with self._lock:
                self._file(list(found.values()))
            before.update(start)
            lacking = {k: p for k, p in lacking.items() if k not in found and before[p] > 0}
            looked, step = looked + step, step * STEP_GROWS

    def _finals_between(
        self, start: dict[int, int], end: dict[int, int], lacking: dict[bytes, int]
    ) -> dict[bytes, Message]:
        """The newest final of each lacking key in a stretch of the log."""
        best: dict[bytes, tuple[Rank, Message]] = {}
        for message in kafka.read_to_end(self._bootstrap, TOPIC, start, end):
            if self._closing.is_set():
                break
            key = message.key()
            if not isinstance(key, bytes) or key not in lacking:
                continue
            said = self._summary(message)
            if said is None or said.status != FINAL.value:
                continue
            rank = (said.generation, said.as_of_ms, said.revision, -(message.offset() or 0))
            if key not in best or rank > best[key][0]:
                best[key] = rank, message
        return {key: message for key, (_, message) in best.items()}
