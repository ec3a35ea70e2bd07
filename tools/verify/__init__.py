"""roster verify: everything that was concluded from the log, computed again from the log, plainly.

    log.py        records and schemas        records.py    bytes -> fields or a reason
    recompute.py  verdicts, facts, prices    ranking.py    scores, in exact fractions
    facts.py, profiles.py, rankings.py, recommended.py, database.py, panes.py, letters.py
                  what is compared with what
    compare.py    the report

It shares the Avro schemas and the names of topics with the other processes, and nothing else.
Everything is compared at the position that it names itself, so it holds on a running system: what
was published is read first, then the log from which it followed.
"""

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from streams import topics
from streams.settings import Settings
from tools.verify import database as duck
from tools.verify import facts, letters, panes, profiles, rankings, recommended
from tools.verify.compare import Report
from tools.verify.log import Log, Record, SchemaTexts
from tools.verify.rankings import Stretch
from tools.verify.recompute import Cards, Ledger, Meter, Rules, Seen, first_of_id, seen
from tools.verify.records import Decoder, Fields

SOURCE = topics.LLM_INVOCATION.name
QUALITY = topics.MODEL_QUALITY_OBSERVED.name

Step = Callable[[str, int | None], Callable[[int], None]]
"""(what is read now, how many records) -> what is told as they come."""
Take = Callable[[Record, tuple[str, Fields] | str, Seen | None], None]
"""What else sees every record of a partition, decoded."""
Due = tuple[int, Callable[[Meter], None]]


@dataclass(frozen=True, slots=True)
class Work:
    """What every comparison needs."""

    log: Log
    decode: Decoder
    report: Report
    rules: Rules
    step: Step


def run(
    settings: Settings,
    *,
    duckdb: Path | None = None,
    rankings_only: bool = False,
    stretch: Stretch = Stretch(),  # noqa: B008  # frozen
    json_output: bool = False,
) -> int:
    """Compares and prints. 0: no difference; 1: at least one.

    settings: addresses of a broker and a registry that answer, and the generation to compare.
    duckdb: a file to compare instead of the projector's. stretch: of the final rankings.
    rankings_only: them and nothing else. Raises Unreachable, LogDamaged, BadConfiguration.
    """
    report = Report()
    log = Log(settings.need_kafka())
    texts = SchemaTexts(settings.need_registry())
    gc.disable()  # millions of small objects and no cycles: looking for some costs a sixth
    try:
        with _progress(silent=json_output) as step:
            work = Work(log, Decoder(texts), report, rules(settings), step)
            if rankings_only:
                verify_rankings(work, stretch)
            else:
                verify(work, settings, duckdb, stretch)
    finally:
        gc.enable()
        log.close()
        texts.close()
    if json_output:
        print(report.as_json())
    else:
        report.show(Console())
    return 1 if report.total else 0


def rules(settings: Settings) -> Rules:
    """How the generation of the settings cuts event time."""
    return Rules(settings.generation, settings.pane_ms, settings.bound_ms, settings.grace_ms)


@contextmanager
def _progress(*, silent: bool) -> Iterator[Step]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=silent or not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("reading", total=None)

        def step(what: str, total: int | None) -> Callable[[int], None]:
            bar.reset(task, description=what, total=total)
            return lambda n: bar.advance(task, n)

        yield step


def verify(work: Work, settings: Settings, file: Path | None, stretch: Stretch) -> None:
    """Fills the report with everything."""
    path, why = duck.locate(settings, file)
    opened = why if path is None else duck.open_file(path)
    if isinstance(opened, str):
        work.report.remark(f"DuckDB was not compared: {opened}")
    database = None if isinstance(opened, str) else opened
    try:
        _compare(work, database, stretch)
    finally:
        if database is not None:
            database.db.close()


def verify_rankings(work: Work, stretch: Stretch) -> None:
    """Fills the report with the final rankings of a stretch, and nothing else."""
    log, decode, report = work.log, work.decode, work.report
    work.step("what was published", None)
    metered = facts.read(log, decode, work.rules, Report())
    cards = Cards()
    inputs = rankings.Inputs(work.rules, cards)
    finals = rankings.Finals(stretch, work.rules, report)
    ends: dict[rankings.Place, int] = {}
    for topic, take in (
        (rankings.TOPIC, finals.take),
        (rankings.BENCHMARKS, first_of_id(inputs.benchmark)),
        (rankings.CARDS, first_of_id(cards.add)),
        (rankings.POLICIES, first_of_id(inputs.policy)),
    ):
        found = log.ends(topic) or {}
        told = work.step(topic, sum(found.values()))
        for partition, end in found.items():
            ends[topic, partition] = end
            for record in log.read(topic, partition, end, told):
                decoded = decode(record)
                if not isinstance(decoded, str):
                    take(record, decoded[1])
    finals.close()
    for source in facts.SOURCES:
        for place, end, told in _partitions(work, source, inputs):
            _fold(work, place, end, rankings.due(finals, place, report), None, inputs, None, told)
    _rankings(work, metered, finals, inputs, ends)


def _compare(work: Work, database: "duck.Database | None", stretch: Stretch) -> None:
    log, decode, report = work.log, work.decode, work.report
    work.step("what was published", None)
    metered = facts.read(log, decode, work.rules, report)
    facts.read_rows(log, decode, report, metered)
    rows = profiles.read_rows(log, report)
    recommendations = recommended.read(log, decode)

    work.step("statements and conclusions", None)
    wanted = letters.Letters(
        rules=work.rules, outbox=set() if database is None else set(database.outbox)
    )
    wanted.optional = {
        (r.topic, r.partition, r.offset): letters.dead(r, why) for r, why in metered.unreadable
    }
    cards = Cards()
    inputs = rankings.Inputs(work.rules, cards)
    history = profiles.Fold()
    finals = rankings.Finals(stretch, work.rules, report)
    finals.asked = {f["ranking_event_id"] for _, f in recommendations}
    thresholds = duck.Thresholds()
    takers: dict[str, Callable[[Record, Fields], None]] = {
        topics.MODEL_PROFILE_SCORED.name: finals.take,
        topics.BUDGET_THRESHOLD_CROSSED.name: thresholds.crossing,
        topics.RATE_CARD_UPDATED.name: first_of_id(cards.add),
        topics.SCORING_POLICY_UPDATED.name: first_of_id(inputs.policy),
        topics.SLM_BENCHMARK_RESULTS.name: first_of_id(inputs.benchmark),
        topics.BUDGET_UPDATED.name: first_of_id(thresholds.budget),
        topics.MODEL_PROFILE_UPDATED.name: history.step,
    }
    for topic in duck.TABLES:
        duck.compare_history(database, log, decode, topic, wanted, report, takers.get(topic))
    finals.close()
    if database is not None:
        duck.take_outbox(database, decode, thresholds, report)
    profiles.compare_rows(rows, history.history, report)
    recommended.compare(recommendations, finals.found, history.history, report)

    check = None if database is None else duck.LedgerCheck(database, cards, report)
    counted = None if database is None else panes.PanesCheck(database, work.rules, report)
    for source in facts.SOURCES:
        for place, end, told in _partitions(work, source, inputs):
            wanted.ends.setdefault(place, end)
            up_to = metered.up_to(place)
            wanted.metered[place] = 0 if up_to is None else up_to + 1
            due: list[Due] = [
                *facts.due(metered, place, report),
                *rankings.due(finals, place, report),
            ]
            if counted is not None:
                due += counted.begin(place, end)
            take = None
            if source == SOURCE:
                if check is not None:
                    check.begin(place[1], end)
                    wanted.projected[place] = check.below
                    due += duck.due_spend(thresholds, place[1], check)
                take = _ledger(wanted, check)
            _fold(work, place, end, due, take, inputs, wanted, told, counted)
            if source == SOURCE and check is not None:
                check.end()
    if check is not None:
        work.step("sums", None)
        duck.compare_sums(check)
        duck.compare_thresholds(thresholds, check)
    if counted is not None:
        panes.compare(counted)
    _rankings(work, metered, finals, inputs, wanted.ends)
    work.step("dead letters, late events, profiles", None)
    letters.compare(log, decode, wanted, report)
    profiles.compare_published(log, decode, report)


def _partitions(
    work: Work, source: str, inputs: rankings.Inputs
) -> Iterator[tuple[rankings.Place, int, Callable[[int], None]]]:
    """(place, end, what is told of progress) of each partition of a source, in order."""
    ends = work.log.ends(source)
    if ends is None:
        work.report.remark(f"facts of {source} were not compared: there is no such topic")
        return
    inputs.sources += [(source, partition) for partition in ends]
    told = work.step(source, sum(ends.values()))
    for partition, end in ends.items():
        yield (source, partition), end, told


def _ledger(wanted: letters.Letters, check: "duck.LedgerCheck | None") -> Take:
    """Verdicts of the ledger over one partition of llm.invocation."""
    ledger = Ledger()

    def take(record: Record, decoded: tuple[str, Fields] | str, known: Seen | None) -> None:
        verdict = ledger.step(decoded, known)
        if isinstance(decoded, str):
            wanted.refuse(record, decoded)
        elif verdict == "conflict":
            wanted.refuse(record, "id_conflict")
        if check is not None:
            check.take(record, verdict, decoded)

    return take


def _fold(
    work: Work,
    place: rankings.Place,
    end: int,
    due: Sequence[Due],
    take: Take | None,
    inputs: rankings.Inputs,
    wanted: letters.Letters | None,
    told: Callable[[int], None],
    counted: panes.PanesCheck | None = None,
) -> None:
    """Folds one partition of a source once, comparing whatever names a place on the way."""
    log, decode = work.log, work.decode
    begin = log.begins(*place)
    name = f"{place[0]}[{place[1]}]"
    if begin > 0:
        work.report.remark(
            f"{name} begins at offset {begin}: what stood before is gone, and what"
            " followed from it shows as differences"
        )
    for position, _ in [item for item in due if item[0] > end]:
        work.report.differs(facts.MARKS, name, f"ends at {end}", f"seen up to {position}")
    waiting = sorted((d for d in due if d[0] <= end), key=lambda item: item[0], reverse=True)

    meter = Meter(work.rules)
    for record in log.read(*place, end, told):
        while waiting and waiting[-1][0] <= record.offset:
            waiting.pop()[1](meter)
        decoded = decode(record)
        before = meter.watermark_ms
        known = None
        if not isinstance(decoded, str) and decoded[0] != "ClockTick":
            known = seen(record, decoded[1])
        verdict = meter.step(record, decoded, known)
        if verdict == "late" and wanted is not None and not isinstance(decoded, str):
            f = decoded[1]
            at = (*place, record.offset)
            wanted.late[at] = letters.Late(
                letters.late_id(at, work.rules.generation),
                f["event_id"],
                record.append_ms,
                work.rules.pane_of(f["occurred_at_ms"]),
                before or 0,
            )
        if verdict == "applied" and counted is not None and not isinstance(decoded, str):
            counted.take(record, decoded[1])
        if take is not None:
            take(record, decoded, known)
    while waiting:
        waiting.pop()[1](meter)
    inputs.panes(meter.panes)


def _rankings(
    work: Work,
    metered: facts.Facts,
    finals: rankings.Finals,
    inputs: rankings.Inputs,
    ends: dict[rankings.Place, int],
) -> None:
    report, stretch = work.report, finals.stretch
    subject = rankings.EVERY if stretch.every else rankings.LAST
    report.subject(subject)
    statements = (rankings.POLICIES, rankings.CARDS, rankings.BENCHMARKS)
    inputs.ends = {place: end for place, end in ends.items() if place[0] in statements}
    inputs.sources.sort()
    chosen: Iterable[rankings.Final] = sorted(
        finals.last.values(), key=lambda final: (final.fields["as_of_ms"], final.fields["role"])
    )
    if stretch.every:
        mine = {p: end for (name, p), end in ends.items() if name == rankings.TOPIC}
        chosen = rankings.every_final(
            work.log.bootstrap, work.decode, mine, work.rules.generation, stretch
        )
    told = work.step("rankings", finals.count)
    for final in chosen:
        rankings.compare(final, inputs, report, subject)
        report.finals += 1
        told(1)
    watermark = metered.watermark(inputs.sources)
    rankings.compare_gaps(finals, inputs, metered.homes, metered.kept_from_ms, watermark, report)


__all__ = ["Stretch", "Work", "rules", "run", "verify", "verify_rankings"]
