"""The DuckDB projection against the log, at the offsets that the file itself holds."""

import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid5

import duckdb
import httpx
import xxhash

from streams import topics
from streams.errors import BadConfiguration
from streams.settings import Settings, is_near, projector_api
from tools.verify.compare import MISSING, Report
from tools.verify.letters import Letters
from tools.verify.log import Log, Record
from tools.verify.recompute import (
    PANE_MS,
    VERDICTS,
    Cards,
    Meter,
    canonical_mode,
    canonical_role,
    card_cost,
    period_start,
)
from tools.verify.records import NAMESPACE, Decoder, Fields, derived_id

FILE: Final = "roster.duckdb"
SOURCE: Final = topics.LLM_INVOCATION.name
BUDGETS: Final = topics.BUDGET_UPDATED.name
CROSSED: Final = topics.BUDGET_THRESHOLD_CROSSED.name
LAW: Final = "DuckDB: verdicts of every partition (conservation law)"
ROWS: Final = "DuckDB: ledger, row by row"
SUMS: Final = "DuckDB: ledger, tokens and pico-USD per tenant, role, mode and model"
PANES: Final = "DuckDB: sums per pane of 300 s"
HOURS: Final = "DuckDB: sums per hour"
HISTORY: Final = "DuckDB: history, record by record"
ENTRIES: Final = "DuckDB: entries of rankings, column by column"
THRESHOLDS: Final = "budgets: thresholds crossed"
SNAPSHOT_WITHIN_S: Final = 90.0
UUID_TEXT: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

COLUMNS: Final = (
    "src_offset",
    "append_ms",
    "occurred_at_ms",
    "event_id",
    "id::VARCHAR",
    "source",
    "tenant",
    "persona",
    "mode",
    "role",
    "provider",
    "model",
    "outcome",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "latency_us",
    "first_token_us",
    "gpu_ms",
    "reported_cost_picousd",
    "card_cost_picousd",
    "cost_picousd",
    "error_code",
    "attempt",
    "request_id",
    "profile_key",
    "profile_version",
    "trace_id",
    "budget_trace_id",
    "body_hash::VARCHAR",
)
STATEMENTS: Final = {
    "model.profile.updated": "profile_changes",
    "mode.changed": "mode_changes",
    "model.registered": "model_registrations",
    "scoring.policy.updated": "policies",
    "rate.card.updated": "rate_cards",
    "budget.updated": "budget_updates",
    "slm.benchmark.results": "benchmark_results",
}
"""Topic -> table; filed whenever they can be read, because folds take them by offset."""
FOREIGN: Final = {
    "model.fallback.used": "fallbacks",
    "model.quality.observed": "quality_observations",
}
CONCLUSIONS: Final = {
    "model.profile.rejected": "profile_rejections",
    "budget.threshold.crossed": "budget_thresholds",
    "model.profile.scored": "rankings",
    "model.profile.recommended": "recommendations",
    "late.events": "late_events",
    "dead.letters": "dead_letters",
}
"""Topic -> table; ids are derived, so another body of an id is the same thing concluded again."""
TABLES: Final = {**CONCLUSIONS, **FOREIGN, **STATEMENTS}
"""In the order of reading: what follows from statements before the statements."""

PaneSum = tuple[str, int, str, str, str, str]  # tenant, pane, role, mode, provider, model
N_UNPRICED_TOKENS_COST: Final = 6
Due = tuple[int, Callable[[], None]]


def locate(settings: Settings, given: Path | None) -> tuple[Path | None, str]:
    """(file that may be opened, or None; why not): the one given, a snapshot made by the running
    projector, or the projector's own where none runs. Raises BadConfiguration for a given one that
    is not there."""
    if given is not None:
        if not given.is_file():
            raise BadConfiguration(f"--duckdb is {given}; allowed: a DuckDB file that exists")
        return given, ""
    address = settings.api or projector_api(settings.data)
    said = ""
    if address is not None:
        try:
            answer = httpx.post(
                f"{address.rstrip('/')}/v1/snapshot",
                timeout=SNAPSHOT_WITHIN_S,
                trust_env=not is_near(address),
            )
            if answer.status_code != 200:
                said = f"the projector at {address} made no snapshot: {answer.text[:200]}"
            else:
                made = Path(answer.json()["path"]).resolve()
                if made.is_relative_to(settings.data.resolve()):
                    return made, ""
                said = f"the projector at {address} is not that of {settings.data}"
        except (httpx.HTTPError, KeyError, ValueError) as error:
            said = f"the projector at {address} does not answer ({error})"
    path = settings.data / FILE
    if path.is_file():
        return path, ""
    return None, said or f"there is no {path}"


class Place(NamedTuple):
    """How far a partition has been filed."""

    first_offset: int
    next_offset: int


@dataclass(slots=True)
class Database:
    """An open file. places: per topic and partition."""

    db: duckdb.DuckDBPyConnection
    path: Path
    places: dict[tuple[str, int], Place]
    laws: dict[tuple[str, int], Fields]
    outbox: dict[str, tuple[str, bytes]]  # event_id -> topic, value

    def next_offset(self, topic: str, partition: int) -> int:
        """First offset that is not filed; 0 for a partition the file does not know."""
        place = self.places.get((topic, partition))
        return 0 if place is None else place.next_offset

    def rows(self, sql: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """Rows of a query, streamed, over a cursor of its own."""
        cursor = self.db.cursor()
        try:
            found = cursor.execute(sql, list(values))
            while chunk := found.fetchmany(10_000):
                yield from chunk
        finally:
            cursor.close()


def open_file(path: Path) -> Database | str:
    """The file opened for reading, or why it cannot be."""
    try:
        db = duckdb.connect(str(path), read_only=True)
    except duckdb.Error as error:
        return f"{path} cannot be opened: {str(error).splitlines()[0]}"
    try:
        names = ("next_offset", "first_offset", "newest_ms", "consumed", *VERDICTS)
        found = db.execute(
            f"SELECT topic, partition, {', '.join(names)} FROM projection_offsets"
        ).fetchall()
        laws = {(row[0], row[1]): dict(zip(names, row[2:], strict=True)) for row in found}
        outbox = db.execute("SELECT event_id, topic, value FROM outbox").fetchall()
    except duckdb.Error as error:
        db.close()
        return f"{path} is not a projection: {str(error).splitlines()[0]}"
    return Database(
        db,
        path,
        {key: Place(law["first_offset"], law["next_offset"]) for key, law in laws.items()},
        laws,
        {row[0]: (row[1], bytes(row[2])) for row in outbox},
    )


def body_hash(value: bytes) -> str:
    """Hash of a record's value as the file has it."""
    return str(UUID(bytes=xxhash.xxh3_128_digest(value)))


def _row(record: Record, f: Fields, card: int | None, cost: int | None) -> tuple[Any, ...]:
    event_id = f["event_id"]
    made = event_id.lower() if UUID_TEXT.fullmatch(event_id) else str(uuid5(NAMESPACE, event_id))
    return (
        record.offset,
        record.append_ms,
        f["occurred_at_ms"],
        event_id,
        made,
        f["source"],
        f["tenant"],
        f["persona"],
        canonical_mode(f["mode"]),
        canonical_role(f["role"]),
        f["provider"],
        f["model"],
        f["outcome"],
        f["input_tokens"],
        f["cached_tokens"],
        f["output_tokens"],
        f["latency_us"],
        f["first_token_us"],
        f["gpu_ms"],
        f["reported_cost_picousd"],
        card,
        cost,
        f["error_code"],
        f["attempt"],
        f["request_id"],
        f["profile_key"],
        f["profile_version"],
        f["trace_id"],
        f["budget_trace_id"],
        body_hash(record.value or b""),
    )


@dataclass(slots=True)
class LedgerCheck:
    """Compares the ledger while the log is folded, one partition after the other."""

    database: Database
    cards: Cards
    report: Report
    sums: dict[PaneSum, list[int]] = field(default_factory=dict)
    partition: int = -1
    below: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    records: int = 0
    spend: dict[str, dict[int, int]] = field(default_factory=dict)  # tenant -> pane -> pUSD
    stored: Iterator[tuple[Any, ...]] = field(default_factory=lambda: iter(()))
    pending: tuple[Any, ...] | None = None

    def begin(self, partition: int, end: int) -> None:
        """Next partition of llm.invocation; end: of its log."""
        self.partition, self.below = partition, self.database.next_offset(SOURCE, partition)
        self.verdicts, self.records = Counter(), 0
        _check_end(self.report, (SOURCE, partition), self.below, end)
        self.stored = self.database.rows(
            f"SELECT {', '.join(COLUMNS)} FROM invocations WHERE src_partition = ?"
            " ORDER BY src_offset",
            partition,
        )
        self.pending = next(self.stored, None)

    def take(self, record: Record, verdict: str, decoded: tuple[str, Fields] | str) -> None:
        """The next record of the partition with the ledger's verdict."""
        if record.offset >= self.below:
            return
        self.records += 1
        self.verdicts[verdict] += 1
        if verdict != "applied" or isinstance(decoded, str):
            return
        f = decoded[1]
        card = card_cost(self.cards, f, record.append_ms)
        reported = f["reported_cost_picousd"]
        cost = card if reported is None else reported
        row = _row(record, f, card, cost)
        key = (f["tenant"], row[2] - row[2] % PANE_MS, row[9], row[8], row[10], row[11])
        sums = self.sums.get(key)
        if sums is None:
            sums = self.sums[key] = [0] * N_UNPRICED_TOKENS_COST
        sums[0] += 1
        sums[1] += cost is None
        sums[2] += row[13]
        sums[3] += row[14]
        sums[4] += row[15]
        if cost:
            sums[5] += cost
            panes = self.spend.setdefault(key[0], {})
            panes[key[1]] = panes.get(key[1], 0) + cost
        if row == self.pending:
            self.report.count(ROWS, 1)
            self.pending = next(self.stored, None)
        else:
            self._differs(row)

    def _where(self, offset: int) -> str:
        return f"invocations, {SOURCE}[{self.partition}]@{offset}"

    def _differs(self, row: tuple[Any, ...]) -> None:
        while self.pending is not None and self.pending[0] < row[0]:
            self.report.differs(ROWS, self._where(self.pending[0]), "no row", self.pending)
            self.pending = next(self.stored, None)
        if self.pending is None or self.pending[0] > row[0]:
            self.report.differs(ROWS, self._where(row[0]), row, MISSING)
            return
        if self.pending == row:
            self.report.count(ROWS, 1)
        for name, ours, theirs in zip(COLUMNS, row, self.pending, strict=True):
            if ours != theirs:
                where = f"{self._where(row[0])} {name.partition(':')[0]}"
                self.report.differs(ROWS, where, ours, theirs)
        self.pending = next(self.stored, None)

    def end(self) -> None:
        """The partition has been folded as far as the file, at least."""
        while self.pending is not None:
            self.report.differs(ROWS, self._where(self.pending[0]), "no row", self.pending)
            self.pending = next(self.stored, None)
        compare_law(
            self.database, (SOURCE, self.partition), self.verdicts, self.records, self.report
        )

    def spent(self, tenant: str, period: str, start: int) -> int:
        """Spend of a tenant in a period, of what has been folded so far."""
        panes = self.spend.get(tenant, {})
        return sum(cost for pane, cost in panes.items() if period_start(period, pane) == start)


def compare_law(
    database: Database,
    place: tuple[str, int],
    verdicts: Counter[str],
    records: int,
    report: Report,
) -> None:
    """Counters of one partition; offsets without a record are control."""
    law = database.laws.get(place)
    if law is None:
        return
    consumed = law["next_offset"] - law["first_offset"]
    wanted = {verdict: verdicts[verdict] for verdict in VERDICTS}
    wanted["control"] += consumed - records
    wanted["consumed"] = consumed
    report.fields(LAW, f"projection_offsets {place[0]}[{place[1]}]", wanted, law)
    report.equal(
        LAW,
        f"projection_offsets {place[0]}[{place[1]}] sum of the verdicts",
        law["consumed"],
        sum(law[verdict] for verdict in VERDICTS),
    )


def compare_sums(check: LedgerCheck) -> None:
    """Sums of the ledger and of its roll-ups, in the file's own arithmetic, against plain ones."""
    report, database = check.report, check.database
    named = (
        "count(*), count(*) - count(cost_picousd), sum(input_tokens), sum(cached_tokens),"
        " sum(output_tokens), coalesce(sum(cost_picousd::HUGEINT), 0)"
    )
    partial = (
        "sum(n), sum(unpriced_n), sum(input_tokens), sum(cached_tokens), sum(output_tokens),"
        " sum(cost_picousd)"
    )
    for subject, keys, values, table, of in (
        (SUMS, "tenant, role, mode, provider, model", named, "invocations", _by_model),
        (PANES, "tenant, pane_start_ms, role, mode, provider, model", partial, "cost_panes", _same),
        (HOURS, "tenant, hour_ms, role, mode, provider, model", partial, "cost_hourly", _by_hour),
    ):
        report.subject(subject)
        wanted: dict[tuple[Any, ...], list[int]] = {}
        for key, sums in check.sums.items():
            mine = wanted.setdefault(of(key), [0] * N_UNPRICED_TOKENS_COST)
            for i, value in enumerate(sums):
                mine[i] += value
        n = keys.count(",") + 1
        try:
            for row in database.rows(f"SELECT {keys}, {values} FROM {table} GROUP BY ALL"):
                mine = wanted.pop(row[:n], [0] * N_UNPRICED_TOKENS_COST)
                found = [int(value) for value in row[n:]]
                if found == mine:
                    report.count(subject, len(found))
                else:
                    names = ("n", "unpriced_n", "input", "cached", "output", "cost_picousd")
                    report.fields(
                        subject,
                        f"{table} {'/'.join(map(str, row[:n]))}",
                        dict(zip(names, mine, strict=True)),
                        dict(zip(names, found, strict=True)),
                    )
        except duckdb.CatalogException as error:
            report.remark(f"{subject}: not compared: {str(error).splitlines()[0]}")
            continue
        for key, mine in wanted.items():
            report.differs(subject, f"{table} {'/'.join(map(str, key))}", mine, MISSING)


def _same(key: PaneSum) -> tuple[Any, ...]:
    return key


def _by_model(key: PaneSum) -> tuple[Any, ...]:
    return key[:1] + key[2:]


def _by_hour(key: PaneSum) -> tuple[Any, ...]:
    return (key[0], key[1] - key[1] % 3_600_000, *key[2:])


def compare_history(
    database: Database | None,
    log: Log,
    decode: Decoder,
    topic: str,
    letters: Letters,
    report: Report,
    each: Callable[[Record, Fields], None] | None = None,
) -> None:
    """One topic, record by record: verdicts, filed rows, dead letters.

    each: also takes every good record but ticks, filed or not.
    """
    table = TABLES[topic]
    statement, ours = topic in STATEMENTS, topic in CONCLUSIONS
    ends = log.ends(topic)
    if ends is None:
        report.remark(f"{topic} was not compared: there is no such topic")
        return
    for partition, end in ends.items():
        place = (topic, partition)
        letters.ends[place] = end
        below = 0 if database is None else database.next_offset(*place)
        if database is not None and below:
            letters.projected[place] = below
            _check_end(report, place, below, end)
        stored = _History(database, table, partition, statement, report)
        entries = None
        if database is not None and table == "rankings":
            entries = _Entries(database, partition, report)
        verdicts: Counter[str] = Counter()
        first: dict[tuple[Any, ...], bytes] = {}
        records = 0
        for record in log.read(topic, partition, end):
            decoded = decode(record)
            if isinstance(decoded, str):
                verdict = "dead_lettered"
                if topic != topics.DEAD_LETTERS.name:
                    letters.refuse(record, decoded)
            elif decoded[0] == "ClockTick":
                verdict = "control"
            else:
                verdict = _judge(record, decoded[1], topic, ours, first)
                if verdict == "conflict":
                    letters.refuse(record, "id_conflict")
                if each is not None:
                    each(record, decoded[1])
            if record.offset < below:
                records += 1
                verdicts[verdict] += 1
                filed = verdict == "applied" or (statement and verdict in ("duplicate", "conflict"))
                if filed and not isinstance(decoded, str):
                    stored.take(record, decoded[1], verdict)
                    if entries is not None:
                        entries.take(record, decoded[1])
        stored.end()
        if entries is not None:
            entries.end()
        if database is not None:
            compare_law(database, place, verdicts, records, report)


def _check_end(report: Report, place: tuple[str, int], below: int, end: int) -> None:
    if below > end:
        report.differs(LAW, f"projection_offsets {place[0]}[{place[1]}]", f"at most {end}", below)


def _judge(
    record: Record, f: Fields, topic: str, ours: bool, first: dict[tuple[Any, ...], bytes]
) -> str:
    key = ""
    if topic == "model.profile.updated":  # its fold looks for repeats within a key
        key = f"{f['scope']}/{f['role']}/{f['deployment_mode']}"
    body = xxhash.xxh3_128_digest(record.value or b"")
    known = first.setdefault((f["source"], f["tenant"], f["event_id"], key), body)
    if known is body:
        return "applied"
    return "duplicate" if known == body or ours else "conflict"


CANONICAL_ROLE: Final = frozenset(
    {"fallbacks", "policies", "quality_observations", "benchmark_results"}
)
"""Tables that hold roles by their canonical names; the others hold what was sent."""
AS_JSON: Final = frozenset(
    {"marks", "inputs", "benchmarks", "at_offsets", "headers", "leader_before"}
)
LEADER: Final = {
    "leader_provider": "provider",
    "leader_model": "model",
    "leader_since_ms": "since_ms",
    "challenger_provider": "challenger_provider",
    "challenger_model": "challenger_model",
    "challenger_closes": "closes",
}


def said(table: str, f: Fields) -> Fields:
    """What the columns of a history table must hold, apart from the place of the record."""
    row = dict(f)
    if f["mode"] is not None:
        row["mode"] = canonical_mode(f["mode"])
    if table in CANONICAL_ROLE and f["role"] is not None:
        row["role"] = canonical_role(f["role"])
    if table == "policies":
        row["deployment_mode"] = canonical_mode(f["deployment_mode"])
    elif table == "mode_changes":
        row["to_mode"] = canonical_mode(f["to_mode"])
    elif table == "profile_changes":
        row["profile_key"] = f"{f['scope']}/{f['role']}/{f['deployment_mode']}"
    elif table == "dead_letters":
        row["record_key"] = row.pop("key")
        row["headers"] = {k: b64encode(v).decode() for k, v in f["headers"].items()}
    elif table == "rankings":
        leader = f["leader"] or {}
        row |= {column: leader.get(name) for column, name in LEADER.items()}
        del row["leader"], row["entries"]
    return row


AS_LISTS: Final = ("terms", "benchmarks", "parts")
"""Columns of ranking_entries that hold JSON."""


def said_entries(record: Record, f: Fields) -> list[Fields]:
    """What the rows of ranking_entries must hold of a ranking."""
    shared = {
        "src_partition": record.partition,
        "src_offset": record.offset,
        "ranking_status": f["status"],
        **{name: f[name] for name in ("event_id", "role", "deployment_mode", "as_of_ms")},
    }
    return [{**entry, **shared, "position": i} for i, entry in enumerate(f["entries"])]


class _Entries:
    """The filed entries of the rankings of one partition, in order."""

    def __init__(self, database: Database, partition: int, report: Report) -> None:
        self._partition, self._report = partition, report
        report.subject(ENTRIES)
        self._columns = [row[0] for row in database.rows("DESCRIBE ranking_entries")]
        self._json = [self._columns.index(name) for name in AS_LISTS]
        self._rows = database.rows(
            f"SELECT src_offset, position, {', '.join(self._columns)} FROM ranking_entries"
            " WHERE src_partition = ? ORDER BY src_offset, position",
            partition,
        )
        self._pending = next(self._rows, None)

    def take(self, record: Record, f: Fields) -> None:
        """The next ranking that must have its rows."""
        for row in said_entries(record, f):
            place = (row["src_offset"], row["position"])
            while self._pending is not None and self._pending[:2] < place:
                self._extra()
            ours = [row[name] for name in self._columns]
            if self._pending is None or self._pending[:2] > place:
                self._report.differs(ENTRIES, self._where(*place), ours, MISSING)
                continue
            theirs = list(self._pending[2:])
            for i in self._json:
                theirs[i] = json.loads(theirs[i])
            if ours == theirs:
                self._report.count(ENTRIES, len(ours))
            else:
                found = dict(zip(self._columns, theirs, strict=True))
                self._report.fields(ENTRIES, self._where(*place), row, found)
            self._pending = next(self._rows, None)

    def end(self) -> None:
        """No more rankings below the file's offset."""
        while self._pending is not None:
            self._extra()

    def _extra(self) -> None:
        assert self._pending is not None
        where = self._where(self._pending[0], self._pending[1])
        self._report.differs(ENTRIES, where, "no row", self._pending[2:])
        self._pending = next(self._rows, None)

    def _where(self, offset: int, position: int) -> str:
        return f"ranking_entries, partition {self._partition} offset {offset}, position {position}"


class _History:
    """The filed rows of one partition, in order."""

    def __init__(
        self,
        database: Database | None,
        table: str,
        partition: int,
        statement: bool,
        report: Report,
    ) -> None:
        self._table, self._partition, self._report = table, partition, report
        self._statement = statement
        self._rows: Iterator[tuple[Any, ...]] = iter(())
        self._columns: list[str] = []
        if database is not None:
            report.subject(HISTORY)
            declared = (row[0] for row in database.rows(f"DESCRIBE {table}"))
            self._columns = ["src_offset", *(c for c in declared if not c.startswith("src_"))]
            named = (f"{c}::VARCHAR" if c == "body_hash" else c for c in self._columns)
            self._rows = database.rows(
                f"SELECT {', '.join(named)} FROM {table}"
                " WHERE src_partition = ? ORDER BY src_offset",
                partition,
            )
        self._pending = next(self._rows, None)

    def take(self, record: Record, f: Fields, verdict: str) -> None:
        """The next record that must have a row."""
        row = {
            **said(self._table, f),
            "src_offset": record.offset,
            "append_ms": record.append_ms,
            "body_hash": body_hash(record.value or b""),
        }
        if self._statement:
            row["verdict"] = verdict
        while self._pending is not None and self._pending[0] < record.offset:
            self._extra()
        if self._pending is not None and self._pending[0] == record.offset:
            found = dict(zip(self._columns, self._pending, strict=True))
            for name in AS_JSON & found.keys():
                found[name] = found[name] and json.loads(found[name])
            self._report.fields(HISTORY, self._where(record.offset), row, found)
            self._pending = next(self._rows, None)
        else:
            self._report.differs(HISTORY, self._where(record.offset), row, MISSING)

    def end(self) -> None:
        """No more records below the file's offset."""
        while self._pending is not None:
            self._extra()

    def _extra(self) -> None:
        assert self._pending is not None
        self._report.differs(HISTORY, self._where(self._pending[0]), "no row", self._pending)
        self._pending = next(self._rows, None)

    def _where(self, offset: int) -> str:
        return f"{self._table}, partition {self._partition} offset {offset}"


# Budgets


@dataclass(slots=True)
class Crossing:
    """A threshold crossed as the log or the outbox says. spent: recomputed at its offsets."""

    where: str
    fields: Fields
    spent: int = 0
    reached: set[int] = field(default_factory=set)  # partitions folded that far


@dataclass(slots=True)
class Thresholds:
    """Budgets in log order, and the crossings that were concluded from them."""

    budgets: list[tuple[int, Fields]] = field(default_factory=list)
    crossings: dict[str, Crossing] = field(default_factory=dict)

    def budget(self, record: Record, f: Fields) -> None:
        """Takes the next budget.updated of the log."""
        self.budgets.append((record.offset, f))

    def crossing(self, record: Record, f: Fields) -> None:
        """Takes the next budget.threshold.crossed of the log; the first of an id counts."""
        where = f"{CROSSED}[{record.partition}]@{record.offset}"
        self.crossings.setdefault(f["event_id"], Crossing(where, f))

    def period_of(self, f: Fields) -> str | None:
        """Period of the budget event that a crossing names."""
        for _, budget in self.budgets:
            if (budget["tenant"], budget["budget"], budget["event_id"]) == (
                f["tenant"],
                f["budget"],
                f["budget_event_id"],
            ):
                return str(budget["period"])
        return None


def take_outbox(database: Database, decode: Decoder, made: Thresholds, report: Report) -> None:
    """Crossings that wait in the outbox."""
    for event_id, (topic, value) in database.outbox.items():
        if topic == CROSSED and event_id not in made.crossings:
            decoded = decode(Record(CROSSED, 0, -1, 0, b"outbox", value))
            if isinstance(decoded, str):
                report.differs(THRESHOLDS, f"outbox {event_id}", "a crossing", decoded)
            else:
                made.crossings[event_id] = Crossing(f"outbox {event_id}", decoded[1])


def due_spend(made: Thresholds, partition: int, check: LedgerCheck) -> "list[tuple[int, Any]]":
    """What one partition adds to the spend of each crossing, at the offset that it names."""
    wanted: list[tuple[int, Callable[[Meter], None]]] = []
    for crossing in made.crossings.values():
        period = made.period_of(crossing.fields)
        for at in crossing.fields["at_offsets"]:
            if period is None or (at["topic"], at["partition"]) != (SOURCE, partition):
                continue
            if at["next_offset"] > check.database.next_offset(SOURCE, partition):
                continue  # newer than the file: its spend is not folded that far
            wanted.append((at["next_offset"], _spend(crossing, period, partition, check)))
    return wanted


def _spend(
    crossing: Crossing, period: str, partition: int, check: LedgerCheck
) -> Callable[[Meter], None]:
    f = crossing.fields
    before = check.spent(f["tenant"], period, f["period_start_ms"])

    def add(_: Meter) -> None:
        crossing.spent += check.spent(f["tenant"], period, f["period_start_ms"]) - before
        crossing.reached.add(partition)

    return add


def compare_thresholds(made: Thresholds, check: LedgerCheck) -> None:
    """Each crossing is right at the offsets it names; none is missing at the file's."""
    report, newer = check.report, 0
    for event_id, crossing in made.crossings.items():
        f = crossing.fields
        if made.period_of(f) is None:
            report.differs(THRESHOLDS, crossing.where, "no such budget", f)
            continue
        wanted = derived_id(
            CROSSED,
            f["tenant"],
            f["budget"],
            f["period_start_ms"],
            f["threshold_percent"],
            f["budget_event_id"],
        )
        report.equal(THRESHOLDS, f"{crossing.where} event_id", wanted, event_id)
        named = {at["partition"] for at in f["at_offsets"] if at["topic"] == SOURCE}
        if crossing.reached != named:
            newer += 1
            continue
        spent = min(crossing.spent, 2**63 - 1)
        report.equal(THRESHOLDS, f"{crossing.where} spent_picousd", spent, f["spent_picousd"])
        if crossing.spent * 100 < f["threshold_percent"] * f["cap_picousd"]:
            report.differs(THRESHOLDS, crossing.where, "below the threshold", f)
    if newer:
        report.remark(f"{newer} crossings are newer than the DuckDB file")
    below = check.database.next_offset(BUDGETS, 0)
    in_force = {(f["tenant"], f["budget"]): f for offset, f in made.budgets if offset < below}
    for budget in in_force.values():
        spend: Counter[int] = Counter()
        for pane, cost in check.spend.get(budget["tenant"], {}).items():
            spend[period_start(budget["period"], pane)] += cost
        for start, spent in sorted(spend.items()):
            for threshold in budget["thresholds"]:
                if spent * 100 < threshold * budget["cap_picousd"]:
                    continue
                parts = (budget["tenant"], budget["budget"], start, threshold, budget["event_id"])
                where = f"{CROSSED}: {'/'.join(map(str, parts))}"
                if derived_id(CROSSED, *parts) in made.crossings:
                    report.count(THRESHOLDS, 1)
                else:
                    report.differs(THRESHOLDS, where, f"crossed with {spent}", MISSING)
