"""roster verify: everything that was concluded from the log, computed again from the log, plainly.

    log.py        records and schemas        records.py    bytes -> fields or a reason
    recompute.py  verdicts, facts, prices    ranking.py    scores, in exact fractions
    facts.py, profiles.py, rankings.py, database.py, letters.py    what is compared with what
    compare.py    the report

It shares the Avro schemas and the names of topics with the other processes, and nothing else.
Everything is compared at the position that it names itself, so it holds on a running system: what
was published is read first, then the log from which it followed.
"""

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from streams import topics
from streams.settings import Settings
from tools.verify import database as duck
from tools.verify import facts, letters, profiles, rankings
from tools.verify.compare import Report
from tools.verify.log import Log, Record, SchemaTexts
from tools.verify.recompute import GENERATION, Cards, Ledger, Meter, seen
from tools.verify.records import Decoder, Fields

SOURCE = topics.LLM_INVOCATION.name


def run(
    settings: Settings,
    *,
    duckdb: Path | None = None,
    all_rankings: bool = False,
    json_output: bool = False,
) -> int:
    """Compares and prints. 0: no difference; 1: at least one.

    settings: addresses of a broker and a registry that answer. duckdb: a file to compare instead
    of the projector's. Raises Unreachable, LogDamaged, BadConfiguration.
    """
    report = Report()
    log = Log(settings.need_kafka())
    texts = SchemaTexts(settings.need_registry())
    gc.disable()  # millions of small objects and no cycles: looking for some costs a sixth
    try:
        with _progress(silent=json_output) as step:
            verify(settings, log, Decoder(texts), report, duckdb, all_rankings, step)
    finally:
        gc.enable()
        log.close()
        texts.close()
    if json_output:
        print(report.as_json())
    else:
        report.show(Console())
    return 1 if report.total else 0


Step = Callable[[str, int | None], Callable[[int], None]]
"""(what is read now, how many records) -> what is told as they come."""


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


def verify(
    settings: Settings,
    log: Log,
    decode: Decoder,
    report: Report,
    file: Path | None,
    all_rankings: bool,
    step: Step,
) -> None:
    """Fills the report."""
    path, why = duck.locate(settings, file)
    opened = why if path is None else duck.open_file(path)
    if isinstance(opened, str):
        report.remark(f"DuckDB was not compared: {opened}")
    database = None if isinstance(opened, str) else opened
    try:
        _compare(log, decode, report, database, all_rankings, step)
    finally:
        if database is not None:
            database.db.close()


def _compare(
    log: Log,
    decode: Decoder,
    report: Report,
    database: "duck.Database | None",
    all_rankings: bool,
    step: Step,
) -> None:
    step("what was published", None)
    metered = facts.read(log, decode, report)
    rows = profiles.read_rows(log, report)

    step("statements and conclusions", None)
    wanted = letters.Letters(outbox=set() if database is None else set(database.outbox))
    wanted.optional = {
        (r.topic, r.partition, r.offset): letters.dead(r, why) for r, why in metered.unreadable
    }
    cards = Cards()
    inputs = rankings.Inputs(0, cards)
    history = profiles.Fold()
    finals = rankings.Finals(all_rankings, report)
    thresholds = duck.Thresholds()
    takers: dict[str, Callable[[Record, Fields], None]] = {
        topics.MODEL_PROFILE_SCORED.name: finals.take,
        topics.BUDGET_THRESHOLD_CROSSED.name: thresholds.crossing,
        topics.RATE_CARD_UPDATED.name: cards.add,
        topics.SCORING_POLICY_UPDATED.name: inputs.policy,
        topics.BUDGET_UPDATED.name: thresholds.budget,
        topics.MODEL_PROFILE_UPDATED.name: history.step,
    }
    for topic in duck.TABLES:
        duck.compare_history(database, log, decode, topic, wanted, report, takers.get(topic))
    finals.close()
    if database is not None:
        duck.take_outbox(database, decode, thresholds, report)
    profiles.compare_rows(rows, history.history, report)

    ends = log.ends(SOURCE)
    if ends is None:
        report.remark(f"invocations were not compared: there is no topic {SOURCE}")
    else:
        check = None if database is None else duck.LedgerCheck(database, cards, report)
        inputs.partitions = len(ends)
        told = step(SOURCE, sum(ends.values()))
        for partition, end in ends.items():
            _partition(
                log,
                decode,
                report,
                metered,
                finals,
                inputs,
                thresholds,
                check,
                wanted,
                partition,
                end,
                told,
            )
        if check is not None:
            step("sums", None)
            duck.compare_sums(check)
            duck.compare_thresholds(thresholds, check)
    _rankings(log, decode, report, metered, finals, inputs, wanted, step)
    step("dead letters, late events, profiles", None)
    letters.compare(log, decode, wanted, report)
    profiles.compare_published(log, decode, report)


def _partition(
    log: Log,
    decode: Decoder,
    report: Report,
    metered: facts.Facts,
    finals: rankings.Finals,
    inputs: rankings.Inputs,
    thresholds: "duck.Thresholds",
    check: "duck.LedgerCheck | None",
    wanted: letters.Letters,
    partition: int,
    end: int,
    told: Callable[[int], None],
) -> None:
    """Folds one partition of llm.invocation once, comparing whatever names a place on the way."""
    begin = log.begins(SOURCE, partition)
    if begin > 0:
        report.remark(
            f"{SOURCE}[{partition}] begins at offset {begin}: what stood before is gone, and what"
            " followed from it shows as differences"
        )
    wanted.ends[SOURCE, partition] = end
    up_to = metered.up_to(partition)
    wanted.metered[partition] = 0 if up_to is None else up_to + 1
    due = [
        *facts.due(metered, partition, report),
        *rankings.due(finals, partition, report),
    ]
    if check is not None:
        check.begin(partition, end)
        wanted.projected[SOURCE, partition] = check.below
        due += duck.due_spend(thresholds, partition, check)
    due.sort(key=lambda item: item[0], reverse=True)
    for place, _ in [item for item in due if item[0] > end]:
        report.differs(
            facts.MARKS, f"{SOURCE}[{partition}]", f"ends at {end}", f"seen up to {place}"
        )
    due = [item for item in due if item[0] <= end]

    meter, ledger = Meter(), Ledger()
    for record in log.read(SOURCE, partition, end, told):
        while due and due[-1][0] <= record.offset:
            due.pop()[1](meter)
        decoded = decode(record)
        before = meter.watermark_ms
        known = None
        if not isinstance(decoded, str) and decoded[0] == "LlmInvocation":
            known = seen(record, decoded[1])
        if meter.step(record, decoded, known) == "late" and not isinstance(decoded, str):
            f = decoded[1]
            pane = f["occurred_at_ms"] - f["occurred_at_ms"] % 300_000
            wanted.late[partition, record.offset] = letters.Late(
                letters.late_id(partition, record.offset),
                f["event_id"],
                record.append_ms,
                pane,
                before or 0,
            )
        verdict = ledger.step(decoded, known)
        if isinstance(decoded, str):
            wanted.refuse(record, decoded)
        elif verdict == "conflict":
            wanted.refuse(record, "id_conflict")
        if check is not None:
            check.take(record, verdict, decoded)
    while due:
        due.pop()[1](meter)
    if check is not None:
        check.end()
    inputs.panes(meter.panes)


def _rankings(
    log: Log,
    decode: Decoder,
    report: Report,
    metered: facts.Facts,
    finals: rankings.Finals,
    inputs: rankings.Inputs,
    wanted: letters.Letters,
    step: Step,
) -> None:
    all_rankings = finals.every
    subject = rankings.ALL if all_rankings else rankings.LAST
    report.subject(subject)
    topic = topics.MODEL_PROFILE_SCORED.name
    ends = {p: end for (name, p), end in wanted.ends.items() if name == topic}
    chosen: Iterable[rankings.Final] = finals.last.values()
    if all_rankings:
        chosen = rankings.every_final(log.bootstrap, decode, ends)
    told = step("rankings", None if all_rankings else len(finals.last))
    for final in chosen:
        if final.fields["generation"] == GENERATION:
            rankings.compare(final, inputs, report, subject)
        told(1)
    watermark = metered.watermark(inputs.partitions)
    rankings.compare_gaps(finals, inputs, metered.kept_from_ms, watermark, report)


__all__ = ["run", "verify"]
