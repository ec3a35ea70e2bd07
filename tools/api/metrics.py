"""What the projector's tables say at the moment of a scrape, for Prometheus (R45).

    GET  /metrics    the text format, or OpenMetrics where the scraper asks for it

Latency, success and cost per 1,000 tokens are the view `slis`: 24 h up to the newest pane. Scores
are those of the newest ranking of each role and mode. Counters are sums over everything filed: a
file that is made again from the log counts from 0 for a moment, as counters may.

No series is of a tenant. Of models there are as many as are called: of what has more than MOST rows
the first ones are told, and roster_rows_omitted says so.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Response
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from projections.reader import Asking, Telling
from streams.topics import FOLDED
from tools.publish import now_ms
from tools.published import NEWEST_GENERATION, Row, quoted

MOST: Final = 10_000
VERDICTS: Final = ("applied", "duplicate", "late", "dead_lettered", "conflict", "control")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. columns: of the answer, with the labels that each adds; null is no sample."""

    kind: str  # gauge, counter, summary
    name: str
    told: str
    columns: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Question:
    """A statement and what is made of each row of its answer. labels: columns of the answer."""

    sql: str
    labels: tuple[str, ...]
    families: tuple[Family, ...]


OF_MODEL: Final = ("role", "mode", "provider", "model")
NEWEST: Final = f"""
    SELECT role, deployment_mode AS mode, as_of_ms, leader_provider, leader_model,
           src_partition, src_offset
    FROM rankings WHERE tenant IS NULL
    QUALIFY row_number() OVER (
        PARTITION BY role, deployment_mode ORDER BY {NEWEST_GENERATION}
    ) = 1
"""

LEVELS: Final = Question(
    "SELECT role, mode, provider, model, p50_us / 1e6 AS p50, p95_us / 1e6 AS p95,"
    " p99_us / 1e6 AS p99, complete / nullif(trials, 0) AS success,"
    " cost_picousd_per_1k_tokens / 1e12 AS cost FROM slis ORDER BY ALL",
    OF_MODEL,
    (
        Family(
            "summary",
            "roster_latency_seconds",
            "Duration of complete responses of the last 24 hours, at quantiles.",
            {
                "p50": {"quantile": "0.5"},
                "p95": {"quantile": "0.95"},
                "p99": {"quantile": "0.99"},
            },
        ),
        Family(
            "gauge",
            "roster_success_ratio",
            "Share of complete responses among the trials of the last 24 hours.",
            {"success": {}},
        ),
        Family(
            "gauge",
            "roster_cost_usd_per_1k_tokens",
            "Mean cost of 1,000 tokens of complete responses of the last 24 hours, by rate cards.",
            {"cost": {}},
        ),
    ),
)
SCORES: Final = Question(
    "SELECT n.role, n.mode, e.provider, e.model, e.score, e.score_se, e.rank, e.quality,"
    " coalesce(e.provider = leader_provider AND e.model = leader_model, false)::INTEGER AS leader"
    f" FROM ({NEWEST}) n JOIN ranking_entries e USING (src_partition, src_offset) ORDER BY ALL",
    OF_MODEL,
    (
        Family("gauge", "roster_score", "Score in the newest ranking.", {"score": {}}),
        Family(
            "gauge",
            "roster_score_standard_error",
            "Standard error of the score.",
            {"score_se": {}},
        ),
        Family(
            "gauge",
            "roster_rank",
            "One more than the models that are significantly better; ties share a rank.",
            {"rank": {}},
        ),
        Family("gauge", "roster_leader", "1 for the leader of the ranking.", {"leader": {}}),
        Family(
            "gauge",
            "roster_quality_ratio",
            "Quality as ranked: what was observed, blended with its prior.",
            {"quality": {}},
        ),
    ),
)
AGES: Final = Question(
    f"SELECT role, mode, ({{now_ms}} - as_of_ms) / 1e3 AS age FROM ({NEWEST}) ORDER BY ALL",
    ("role", "mode"),
    (
        Family(
            "gauge",
            "roster_ranking_age_seconds",
            "How far the newest ranking, a heartbeat too, lies behind now in event time.",
            {"age": {}},
        ),
    ),
)
CHARGED: Final = Question(
    "SELECT role, mode, provider, model, sum(n)::BIGINT AS n, sum(unpriced_n)::BIGINT AS unpriced,"
    " sum(input_tokens)::BIGINT AS input, sum(cached_tokens)::BIGINT AS cached,"
    " sum(output_tokens)::BIGINT AS output, usd(sum(cost_picousd)::HUGEINT) AS cost"
    " FROM cost_panes GROUP BY ALL ORDER BY role, mode, provider, model",
    OF_MODEL,
    (
        Family("counter", "roster_invocations", "Invocations in the ledger.", {"n": {}}),
        Family(
            "counter",
            "roster_unpriced_invocations",
            "Those of them that no rate card prices; they are in no cost.",
            {"unpriced": {}},
        ),
        Family(
            "counter",
            "roster_tokens",
            "Tokens of the invocations in the ledger.",
            {kind: {"kind": kind} for kind in ("input", "cached", "output")},
        ),
        Family("counter", "roster_cost_usd", "What they cost.", {"cost": {}}),
    ),
)
CONSERVED: Final = Question(
    "SELECT topic, sum(consumed)::BIGINT AS consumed,"
    f" {', '.join(f'sum({name})::BIGINT AS {name}' for name in VERDICTS)}"
    " FROM projection_offsets GROUP BY topic ORDER BY topic",
    ("topic",),
    (
        Family(
            "counter",
            "roster_consumed_offsets",
            "Offsets of the topic that were read: the sum of the verdicts.",
            {"consumed": {}},
        ),
        Family(
            "counter",
            "roster_events",
            "What became of each of them.",
            {name: {"verdict": name} for name in VERDICTS},
        ),
    ),
)
MARKED: Final = Question(
    "SELECT topic, partition, (newest_ms - bound_ms - 1) / 1e3 AS watermark"
    " FROM projection_offsets, pane_rule"
    f" WHERE topic IN ({', '.join(quoted(topic.name) for topic in FOLDED)}) ORDER BY ALL",
    ("topic", "partition"),
    (
        Family(
            "gauge",
            "roster_watermark_timestamp_seconds",
            "Event time up to which the partition is taken to be complete.",
            {"watermark": {}},
        ),
    ),
)
QUESTIONS: Final = (LEVELS, SCORES, AGES, CHARGED, CONSERVED, MARKED)


def mounted(ask: Asking, tell: Telling) -> APIRouter:
    """What the projector mounts."""
    return router(ask, tell, now_ms)


def router(ask: Asking, tell: Telling, clock: Callable[[], int]) -> APIRouter:
    """The route over a query function, the projector's report and a clock (milliseconds)."""
    routes = APIRouter()

    @routes.get("/metrics")
    def metrics(accept: Annotated[str, Header()] = "") -> Response:
        encode, kind = choose_encoder(accept)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Fixed([*measured(ask, clock()), lags(tell())]))
        return Response(encode(registry), headers={"Content-Type": kind})

    return routes


class Fixed(Collector):
    """Metrics that have been gathered."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        """All of them."""
        return self._metrics


def measured(ask: Asking, at_ms: int) -> Iterator[Metric]:
    """What the tables say. Raises Refused, Unavailable."""
    omitted = Metric("roster_rows_omitted", "1 if there were more rows than are told.", "gauge")
    for question in QUESTIONS:
        rows = ask(question.sql.format(now_ms=at_ms), MOST + 1)
        for family in question.families:
            yield metric(family, question.labels, rows[:MOST])
            omitted.add_sample(omitted.name, {"of": family.name}, 1.0 if len(rows) > MOST else 0.0)
    yield omitted


def metric(family: Family, labels: tuple[str, ...], rows: list[Row]) -> Metric:
    """One family of samples."""
    found = Metric(family.name, family.told, family.kind)
    sample = f"{family.name}_total" if family.kind == "counter" else family.name
    for row in rows:
        named = {label: str(row[label]) for label in labels}
        for column, more in family.columns.items():
            if row[column] is not None:
                found.add_sample(sample, {**named, **more}, float(row[column]))
    return found


def lags(report: Mapping[str, Any]) -> Metric:
    """Records that wait for the projector."""
    found = Metric("roster_lag_records", "Records of the log that are not filed yet.", "gauge")
    for topic, partitions in sorted(report.get("lags", {}).items()):
        for partition, lag in partitions.items():
            found.add_sample(found.name, {"topic": topic, "partition": partition}, float(lag))
    return found
