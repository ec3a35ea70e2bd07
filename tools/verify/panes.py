"""Evidence per pane and tenant in DuckDB against the fold of the log, at the file's own offsets.

A fact bounds how many models and metrics of a pane are counted by their names; a table need not, so
these sums are of every name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import duckdb

from streams import topics
from tools.verify.compare import MISSING, Report
from tools.verify.database import Database
from tools.verify.log import Record
from tools.verify.recompute import Meter, Rules, Totals, canonical_mode, canonical_role
from tools.verify.records import Fields

QUALITY_TOPIC: Final = topics.MODEL_QUALITY_OBSERVED.name
TOTALS: Final = "DuckDB: evidence per pane and tenant"
LATENCIES: Final = "DuckDB: latencies per pane and tenant"
QUALITY: Final = "DuckDB: observed quality per pane and tenant"
NEWEST: Final = "DuckDB: newest time of every partition that panes are cut from"
KEY: Final = "tenant, pane_start_ms, role, mode, provider, model"
SUMS: Final = (
    *("unknown", "success", "refusal", "failure", "timeout"),
    *("rate_limited", "caller_error", "config_error", "cancelled"),
    *("input_tokens", "cached_tokens", "output_tokens"),
    *("priced_n", "priced_input", "priced_cached", "priced_output"),
    *("priced_input_input", "priced_input_cached", "priced_input_output"),
    *("priced_cached_cached", "priced_cached_output", "priced_output_output"),
    *("reported_n", "reported_cost", "reported_tokens"),
    *("reported_cost_cost", "reported_cost_tokens", "reported_tokens_tokens"),
)
"""In the order of sums(); these and the key are all columns of metrics_totals."""
COLUMNS: Final = ", ".join(SUMS).replace("reported_cost_cost", "reported_cost_cost::VARCHAR")
"""One column is wider than what the client has integers for."""

HISTOGRAM: Final = ("buckets", "counts")
Key = tuple[str, int, str, str, str, str]
Place = tuple[str, int]
Due = tuple[int, Callable[[Meter], None]]


def sums(totals: Totals) -> list[int]:
    """Values of the columns of SUMS."""
    return [
        *totals.outcomes,
        *totals.tokens,
        totals.priced_n,
        *totals.unit_sums,
        *totals.unit_products,
        totals.reported_n,
        *totals.reported_sums,
        *totals.reported_products,
    ]


def histogram(totals: Totals) -> list[list[int]]:
    """Buckets of complete responses, ascending, and their counts."""
    buckets = sorted(totals.latency)
    return [buckets, [totals.latency[i] for i in buckets]]


@dataclass(slots=True)
class PanesCheck:
    """Counts what the meter's fold applies, below the offsets of a file."""

    database: Database
    rules: Rules
    report: Report
    invocations: dict[Key, Totals] = field(default_factory=dict)
    quality: dict[tuple[str | int, ...], list[int]] = field(default_factory=dict)
    below: int = 0

    def begin(self, place: Place, end: int) -> list[Due]:
        """Next partition of a source; end: of its log. What to compare when the file's offset is
        reached."""
        self.below = self.database.next_offset(*place)
        if place not in self.database.laws or self.below > end:
            return []
        return [(self.below, self._newest(place))]

    def _newest(self, place: Place) -> Callable[[Meter], None]:
        def compare(meter: Meter) -> None:
            w = meter.watermark_ms
            self.report.equal(
                NEWEST,
                f"projection_offsets {place[0]}[{place[1]}] newest_ms",
                None if w is None else w + self.rules.bound_ms + 1,
                self.database.laws[place]["newest_ms"],
            )

        return compare

    def take(self, record: Record, f: Fields) -> None:
        """The next event of the partition that the meter applies."""
        if record.offset >= self.below:
            return
        key = (
            f["tenant"],
            self.rules.pane_of(f["occurred_at_ms"]),
            canonical_role(f["role"]),
            canonical_mode(f["mode"]),
            f["provider"],
            f["model"],
        )
        if record.topic == QUALITY_TOPIC:
            counts = self.quality.setdefault((*key, f["metric"]), [0, 0])
            counts[0] += f["n"]
            counts[1] += f["hits"]
            return
        totals = self.invocations.get(key)
        if totals is None:
            totals = self.invocations[key] = Totals()
        totals.count(f)


def compare(check: PanesCheck) -> None:
    """All rows, when every partition has been folded."""
    rules = check.rules
    cut = (rules.pane_ms, rules.bound_ms, rules.grace_ms)
    lists = "list(bucket ORDER BY bucket), list(n ORDER BY bucket)"
    of_metrics = f"{KEY}, metric"
    totals, quality = check.invocations, check.quality
    for subject, columns, wanted, made, sql in (
        (TOTALS, SUMS, totals, sums, f"SELECT {KEY}, {COLUMNS} FROM metrics_totals"),
        (LATENCIES, HISTOGRAM, totals, histogram,
         f"SELECT {KEY}, {lists} FROM latency_totals GROUP BY {KEY}"),
        (QUALITY, ("n", "hits"), quality, list,
         f"SELECT {of_metrics}, sum(n), sum(hits) FROM quality_panes GROUP BY {of_metrics}"),
    ):  # fmt: skip
        check.report.subject(subject)
        try:
            found = list(check.database.rows("SELECT pane_ms, bound_ms, grace_ms FROM pane_rule"))
            if found == [cut]:
                _compare(check, subject, columns, wanted, made, sql)
            else:
                check.report.remark(f"{subject}: not compared: the file was cut by {found}")
        except duckdb.CatalogException as error:
            check.report.remark(f"{subject}: not compared: {str(error).splitlines()[0]}")


def _compare(
    check: PanesCheck,
    subject: str,
    columns: Sequence[str],
    wanted: Mapping[tuple[Any, ...], Any],
    made: Callable[[Any], list[Any]],
    sql: str,
) -> None:
    """Rows of a query against values by key. made: a value as the row's columns behind the key."""
    report, left = check.report, dict(wanted)
    for row in check.database.rows(sql):
        key, theirs = row[: -len(columns)], [*map(_integer, row[-len(columns) :])]
        where = f"{subject.partition(': ')[2]}: {'/'.join(map(str, key))}"
        if key not in left:
            report.differs(subject, where, "no row", theirs)
            continue
        ours = made(left.pop(key))
        if ours == theirs:
            report.count(subject, sum(len(v) if isinstance(v, list) else 1 for v in ours))
        else:
            named = dict(zip(columns, theirs, strict=True))
            report.fields(subject, where, dict(zip(columns, ours, strict=True)), named)
    for key, value in left.items():
        ours = made(value)
        if any(ours):  # no latency: no row
            where = f"{subject.partition(': ')[2]}: {'/'.join(map(str, key))}"
            report.differs(subject, where, ours, MISSING)


def _integer(value: object) -> object:
    return int(value) if isinstance(value, str) else value
