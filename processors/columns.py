"""Good events of one partition as columns, and what is summed of them: invocations, observations.

The fold (pane_fold.py) sees Columns alone; what a kind of event adds to Totals its Amounts know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from processors.sketch import BUCKETS, bucket_of
from processors.totals import UNIT_PAIRS, Totals
from schemas.values import COMPLETE, OUTCOMES

Ints = NDArray[np.int64]
COMPLETE_CODES = np.array([o in COMPLETE for o in OUTCOMES])


class Amounts(Protocol):
    """What there is to sum, a row per event."""

    def take(self, rows: Ints) -> Self:
        """These rows, in this order."""
        ...

    def sums(self, rows: Ints, starts: Ints) -> list[Totals]:
        """Totals of each run of the rows; starts: where in rows the runs begin."""
        ...


@dataclass(frozen=True, slots=True)
class Columns:
    """Good events of one partition in offset order; all arrays have shape (rows,).

    who: index into groups, the (role, mode, provider, model), roles and modes canonical.
    identity: (tenant, source, event_id) as one string. body: the record's value. append_ms: as the
    broker stamped it, never a header: it is the base of ticks.
    """

    offset: Ints
    occurred_at_ms: Ints
    append_ms: Ints
    identity: Sequence[str]
    event_id: Sequence[str]
    body: Sequence[bytes]
    who: Ints
    groups: Sequence[tuple[str, str, str, str]]
    amounts: Amounts

    def take(self, rows: Ints) -> "Columns":
        """These rows, in this order."""
        chosen = rows.tolist()
        return Columns(
            offset=self.offset[rows],
            occurred_at_ms=self.occurred_at_ms[rows],
            append_ms=self.append_ms[rows],
            identity=[self.identity[i] for i in chosen],
            event_id=[self.event_id[i] for i in chosen],
            body=[self.body[i] for i in chosen],
            who=self.who[rows],
            groups=self.groups,
            amounts=self.amounts.take(rows),
        )


@dataclass(frozen=True, slots=True)
class Invocations:
    """Of llm.invocation. outcome: index into schemas.values.OUTCOMES. units: shape (rows, 3):
    input, cached, output tokens. reported: cost in pico-USD per row index, only where reported."""

    outcome: Ints
    units: Ints
    latency_us: Ints
    reported: dict[int, int]

    def take(self, rows: Ints) -> "Invocations":
        """These rows, in this order."""
        reported = self.reported
        return Invocations(
            outcome=self.outcome[rows],
            units=self.units[rows],
            latency_us=self.latency_us[rows],
            reported={
                new: reported[old] for new, old in enumerate(rows.tolist()) if old in reported
            }
            if reported
            else {},
        )

    def sums(self, rows: Ints, starts: Ints) -> list[Totals]:
        """Outcomes and tokens of all; unit sums, products and latencies of complete ones."""
        outcome = self.outcome[rows]
        complete = COMPLETE_CODES[outcome]
        reported = np.zeros(len(rows), bool)
        if self.reported:
            reported = np.isin(rows, np.fromiter(self.reported, np.int64))
        priced = complete & ~reported
        units = self.units[rows]
        token_sums = np.add.reduceat(units, starts, axis=0).tolist()
        masked = np.where(priced[:, None], units, 0)
        unit_sums = np.add.reduceat(masked, starts, axis=0).tolist()
        products = [_product_sums(masked[:, a], masked[:, b], starts) for a, b in UNIT_PAIRS]
        priced_n = np.add.reduceat(priced.astype(np.int64), starts).tolist()
        buckets = bucket_of(self.latency_us[rows])
        stops = np.append(starts[1:], len(rows)).tolist()
        found = []
        for i, (start, stop) in enumerate(zip(starts.tolist(), stops, strict=True)):
            done = complete[start:stop]
            histogram = np.bincount(buckets[start:stop][done], minlength=BUCKETS)
            filled = np.flatnonzero(histogram)
            totals = Totals(
                outcomes=np.bincount(outcome[start:stop], minlength=len(OUTCOMES)).tolist(),
                tokens=token_sums[i],
                priced_n=priced_n[i],
                unit_sums=unit_sums[i],
                unit_products=[product[i] for product in products],
                latency=dict(zip(filled.tolist(), histogram[filled].tolist(), strict=True)),
            )
            for index in np.flatnonzero(reported[start:stop] & done).tolist():
                cost = self.reported[int(rows[start + index])]
                tokens = int(units[start + index].sum())
                totals.reported_n += 1
                totals.reported_sums[0] += cost
                totals.reported_sums[1] += tokens
                totals.reported_products[0] += cost * cost
                totals.reported_products[1] += cost * tokens
                totals.reported_products[2] += tokens * tokens
            found.append(totals)
        return found


@dataclass(frozen=True, slots=True)
class Observations:
    """Of model.quality.observed, a row per event: of so many, so many were good."""

    metric: Sequence[str]
    n: Sequence[int]
    hits: Sequence[int]

    def take(self, rows: Ints) -> "Observations":
        """These rows, in this order."""
        chosen = rows.tolist()
        return Observations(
            metric=[self.metric[i] for i in chosen],
            n=[self.n[i] for i in chosen],
            hits=[self.hits[i] for i in chosen],
        )

    def sums(self, rows: Ints, starts: Ints) -> list[Totals]:
        """Observations and good ones per metric, in the order of the rows."""
        found = []
        for run in np.split(rows, starts[1:]):
            totals = Totals()
            for row in run.tolist():
                counts = totals.quality.setdefault(self.metric[row], [0, 0])
                counts[0] += self.n[row]
                counts[1] += self.hits[row]
            found.append(totals)
        return found


def _product_sums(a: Ints, b: Ints, starts: Ints) -> list[int]:
    """Exact sums of a*b (each factor at most 1e9) per group: halves are summed apart, since the
    sum of a few products already exceeds 64 bits."""
    product = a * b
    high = np.add.reduceat(product >> 32, starts).tolist()
    low = np.add.reduceat(product & 0xFFFFFFFF, starts).tolist()
    return [(h << 32) + rest for h, rest in zip(high, low, strict=True)]


def columns_of(rows: Sequence[dict[str, Any]]) -> Columns:
    """Columns of invocations from plain rows: for tests and simulations.

    Keys: offset, occurred_at_ms, append_ms, tenant, source, event_id, body, role, mode, provider,
    model, outcome, input_tokens, cached_tokens, output_tokens, latency_us, reported (or None).
    """
    return _columns(
        rows,
        Invocations(
            outcome=np.array([OUTCOMES.index(r["outcome"]) for r in rows], np.int64),
            units=np.array(
                [[r["input_tokens"], r["cached_tokens"], r["output_tokens"]] for r in rows],
                np.int64,
            ).reshape(len(rows), 3),
            latency_us=np.array([r["latency_us"] for r in rows], np.int64),
            reported={i: r["reported"] for i, r in enumerate(rows) if r["reported"] is not None},
        ),
    )


def observed_columns(rows: Sequence[dict[str, Any]]) -> Columns:
    """Columns of observations from plain rows: their rate is low.

    Keys: offset to model as in columns_of, then metric, n, hits.
    """
    return _columns(
        rows,
        Observations(
            metric=[r["metric"] for r in rows],
            n=[r["n"] for r in rows],
            hits=[r["hits"] for r in rows],
        ),
    )


def _columns(rows: Sequence[dict[str, Any]], amounts: Amounts) -> Columns:
    groups = sorted({(r["role"], r["mode"], r["provider"], r["model"]) for r in rows})
    index = {group: i for i, group in enumerate(groups)}

    def ints(name: str) -> Ints:
        return np.array([r[name] for r in rows], np.int64)

    return Columns(
        offset=ints("offset"),
        occurred_at_ms=ints("occurred_at_ms"),
        append_ms=ints("append_ms"),
        identity=[f"{r['tenant']}\x00{r['source']}\x00{r['event_id']}" for r in rows],
        event_id=[r["event_id"] for r in rows],
        body=[r["body"] for r in rows],
        who=np.array(
            [index[r["role"], r["mode"], r["provider"], r["model"]] for r in rows], np.int64
        ),
        groups=groups,
        amounts=amounts,
    )
