"""Digest of the evidence behind a ranking (R56): whoever recomputes the evidence gets the same."""

import hashlib
import json

import numpy as np

from processors.evidence import Evidence, Panel, Who


def state_hash(panel: Panel) -> str:
    """SHA-256 in hex of all candidates with their sums, as JSON: models by UTF-8 bytes, outcomes
    in the order of OUTCOMES, cost sums (null where unpriced), latency buckets, quality metrics."""
    rows = [
        _row(who, panel[who])
        for who in sorted(panel, key=lambda who: (who[0].encode(), who[1].encode()))
        if panel[who].invocations
    ]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _row(who: Who, e: Evidence) -> list[object]:
    sums = (e.cost, e.tokens, e.cost_cost, e.cost_tokens, e.tokens_tokens)
    latency = e.latency
    buckets = np.flatnonzero(latency)
    return [
        *who,
        e.outcomes,
        *((None,) * len(sums) if e.unpriced else sums),
        bool(e.unpriced),
        np.stack((buckets, latency[buckets]), axis=1).tolist(),
        [[metric, *e.quality[metric]] for metric in sorted(e.quality, key=str.encode)],
    ]
