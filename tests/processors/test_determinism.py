"""Finals follow from what happened alone: not from order, batches, partitions or repetition."""

import hashlib
import json
import os
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.columns import columns_of, observed_columns
from processors.pane_fold import PartitionFold, Stretch
from processors.scorer import Scorer
from schemas import ModelProfileScored, Position, RateCardUpdated, Recorded
from schemas.model_profile import RankingStatus
from schemas.rate_card import PriceUnit
from schemas.values import Outcome
from tests.processors.test_pane_fold import T0, event
from tests.processors.test_scoring import policy

PANE = 300_000
BEGIN = T0 // PANE * PANE
END = BEGIN + 400 * PANE
RULES = {
    "min_samples": 2,
    "min_trials": 2,
    "window_panes": 6,
    "hysteresis_closes": 2,
    "hysteresis_min_ms": 2 * PANE,
    "latency_percentile": 50,
}


def happened(rng: random.Random, size: int) -> list[dict[str, Any]]:
    """Invocations and observations over two hours, in order of time."""
    rows = []
    for number in range(size):
        second = rng.randrange(7200)
        common = {
            "event_id": f"e{number}",
            "body": b"%d" % number,
            "tenant": rng.choice("tu"),
            "mode": rng.choice(("PRODUCTION", "TEST")),
            "model": rng.choice("abc"),
            "at": second,
        }
        if rng.random() < 0.3:
            rows.append({**common, "metric": "quality", "n": 1, "hits": rng.randrange(2)})
        else:
            rows.append(
                {
                    **common,
                    "outcome": rng.choice((Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE)),
                    "latency_us": rng.choice((1_000, 50_000, 2_000_000)),
                    "output_tokens": rng.randrange(1, 100),
                }
            )
    return sorted(rows, key=lambda row: row["at"])


def finals(
    rows: list[dict[str, Any]],
    partitions: int = 1,
    most: int = 10**6,
    rng: random.Random | None = None,
) -> list[dict[str, Any]]:
    """Finals of rows that arrive in this order, dealt over partitions by id, folded in batches of
    at most so many with a mark behind each."""
    scorer = Scorer({"i": partitions, "q": partitions}, 2)
    for mode in ("PRODUCTION", "TEST"):
        rules = policy(role="code", deployment_mode=mode, event_id=mode, **RULES)
        scorer.policy(Recorded(rules, Position("scoring.policy.updated", 0, 0, 0), b"k"))
    for offset, (model, unit) in enumerate(
        (m, u) for m in "abc" for u in (PriceUnit.INPUT_TOKEN, PriceUnit.OUTPUT_TOKEN)
    ):
        fields: dict[str, Any] = {
            "event_id": f"card{offset}",
            "occurred_at_ms": 0,
            "source": "test",
            "provider": "p",
            "model": model,
            "unit": unit,
            "price_picousd_per_million": 10**11 * (ord(model) - 96),
            "valid_from_ms": 0,
        }
        card = RateCardUpdated(**fields)
        scorer.card(Recorded(card, Position("rate.card.updated", 0, offset, 0), b"k"))
    folds = {(t, p): PartitionFold(t, p, 2, None) for t in "iq" for p in range(partitions)}
    queues: dict[tuple[str, int], list[dict[str, Any]]] = {at: [] for at in folds}
    for row in rows:
        topic = "q" if "metric" in row else "i"
        at = (topic, int(hashlib.sha256(row["event_id"].encode()).hexdigest(), 16) % partitions)
        made = event(len(queues[at]), row["at"], **{k: v for k, v in row.items() if k != "at"})
        made["cached_tokens"] = 0
        queues[at].append(made)
    said: list[ModelProfileScored] = []

    def mark(at: tuple[str, int], stretch: Stretch) -> None:
        fold = folds[at]
        fold.fold(stretch)
        for fact in fold.facts():
            scorer.fact(fact)
        said.extend(scorer.mark(fold.mark(None, "test"), catching_up=False))
        fold.committed()

    waiting = {at: list(queue) for at, queue in queues.items()}
    while any(waiting.values()):
        at = (rng or random).choice([at for at, queue in waiting.items() if queue])
        some, waiting[at] = waiting[at][:most], waiting[at][most:]
        make = observed_columns if at[0] == "q" else columns_of
        mark(at, Stretch(make(some), [], [], some[-1]["offset"]))
    for at, queue in queues.items():
        mark(at, Stretch(columns_of([]), [(len(queue), END)], [], len(queue)))
    return [canonical(s) for s in said if s.status is RankingStatus.FINAL]


def canonical(scored: ModelProfileScored) -> dict[str, Any]:
    """A final without the positions it was decided at."""
    return scored.model_dump(mode="json", exclude={"marks", "inputs"})


def sha(found: list[dict[str, Any]]) -> str:
    ordered = sorted(found, key=lambda f: (f["role"], f["deployment_mode"], f["as_of_ms"]))
    return hashlib.sha256(json.dumps(ordered, sort_keys=True).encode()).hexdigest()


def shuffled(rows: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """The same, out of order by up to nine minutes: within bound and grace, so none is late."""
    return sorted(rows, key=lambda row: row["at"] + rng.randrange(540))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 3), st.sampled_from((1, 3, 50)))
def test_order_batches_partitions_and_repetition_change_no_final(
    seed: int, size: int, partitions: int, most: int
) -> None:
    rng = random.Random(seed)
    rows = happened(rng, size)
    plain = sha(finals(rows))
    twice = [row for row in rows for _ in range(rng.randrange(1, 3))]
    assert sha(finals(shuffled(twice, rng), partitions, most, rng)) == plain


def test_a_final_names_a_leader_and_there_are_some() -> None:
    """What the laws above compare is not empty."""
    found = finals(happened(random.Random(7), 400))
    assert len(found) > 40
    assert {f["leader"]["model"] for f in found} >= {"b", "c"}
    assert any(e["quality_n"] for f in found for e in f["entries"])
    assert {e["rank"] for f in found for e in f["entries"]} >= {1, 2}


@pytest.mark.parametrize("hash_seed", ["0", "1", "2", "3", "4"])
def test_the_order_of_hashing_changes_no_final(hash_seed: str) -> None:
    code = (
        "import random;from tests.processors.test_determinism import *;"
        "rng=random.Random(11);print(sha(finals(shuffled(happened(rng,300),rng),3,7,rng)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == sha(finals(happened(random.Random(11), 300)))
