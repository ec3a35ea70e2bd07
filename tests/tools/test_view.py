"""The view drawn to consoles of given sizes."""

import io
import json
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from schemas import ModelProfileScored
from schemas.model_profile import LeaderState, MarkPosition, RankingEntry, RankingStatus
from tools import view
from tools.poller import Budget, Law, Notable, Process, State
from tools.workload import JOINED

AS_OF = 1_700_000_000_000
PRICED = [
    f"{provider}/llama-2-{size}-chat"
    for provider in ("perplexity", "anyscale", "fireworks", "together")
    for size in ("70b", "13b", "7b")
]


def entry(name: str, rank: int | None, reason: str | None = "prior_only") -> RankingEntry:
    provider, model = name.split("/")
    ranked = rank is not None
    return RankingEntry(
        provider=provider,
        model=model,
        status="provisional" if ranked else "unrankable",
        reason=reason,
        rank=rank,
        score=1.5 - 0.05 * rank if rank is not None else None,
        score_se=0.028 if ranked else None,
        score_raw=None,
        invocations=12_345,
        complete=12_000,
        trials=12_100,
        hits=12_000,
        rate_limited=3,
        latency_us=18_080_000.0,
        latency_low_us=1.0,
        latency_high_us=2.0,
        cost_picousd_per_request=None,
        cost_picousd_per_1k_tokens=200_000_000.0 if ranked else None,
        reliability=1.0,
        quality=0.75,
        quality_n=306,
        prior_only=True,
    )


def ranking(role: str, mode: str = "PRODUCTION") -> ModelProfileScored:
    ranks = [1, 1, *range(3, len(PRICED) + 1)]  # the first two are tied
    entries = [entry(name, rank) for name, rank in zip(PRICED, ranks, strict=True)]
    return ModelProfileScored(
        event_id=f"{role}-{mode}",
        occurred_at_ms=AS_OF,
        source="test",
        role=role,
        deployment_mode=mode,
        status=RankingStatus.FINAL,
        as_of_ms=AS_OF,
        window_start_ms=0,
        window_end_ms=1,
        revision=0,
        generation=1,
        policy_event_id="p",
        policy_version=7,
        marks=(
            MarkPosition(
                source_topic="llm.invocation",
                source_partition=0,
                up_to_offset=1,
                watermark_ms=AS_OF,
            ),
        ),
        inputs=(),
        entries=(*entries, entry("lepton/llama-2-7b-chat", None, "unpriced")),
        leader=LeaderState(
            provider="perplexity",
            model="llama-2-13b-chat",
            since_ms=AS_OF - 3_600_000,
            challenger_provider="perplexity",
            challenger_model="llama-2-70b-chat",
            closes=2,
        ),
    )


LAW = {
    "consumed": 1_234_567,
    "applied": 1_234_000,
    "duplicate": 12,
    "late": 30,
    "dead_lettered": 4,
    "conflict": 1,
    "control": 520,
}
FULL = State(
    deployment="main",
    mode="PRODUCTION",
    now_ms=AS_OF + 5_000,
    event_ms=AS_OF,
    watermark_ms=AS_OF - 60_001,
    joined=JOINED,
    rankings=(ranking("code"), ranking("dialogue"), ranking("summary"), ranking("code", "TEST")),
    processes=tuple(
        Process(
            name=name,
            state="down" if name == "meter" else "ready",
            in_per_s=None if name in ("kafka", "registry") else 12_345.6,
            out_per_s=None if name in ("kafka", "registry") else 234.5,
            lag=None if name in ("kafka", "registry") else 123_456,
            restarts=2 if name == "meter" else 0,
            rss_bytes=345_678_901,
        )
        for name in ("kafka", "registry", "agents", "meter", "projector", "workload")
    ),
    budgets=tuple(
        Budget(
            tenant=tenant,
            budget="daily",
            period="DAY",
            spent_picousd=spent * 10**12,
            cap_picousd=200 * 10**12,
        )
        for tenant, spent in (("acme", 64), ("globex", 165), ("initech", 230), ("umbrella", 0))
    ),
    laws=tuple(Law(name=name, counters=LAW) for name in ("agents", "meter-0", "projector")),
    notable=(
        Notable(number=1, at_ms=AS_OF, kind="profile", text="system/code/PRODUCTION: p/m by ann"),
        Notable(number=2, at_ms=AS_OF, kind="mode", text="main switched to TEST by ann"),
        *(
            Notable(number=n, at_ms=AS_OF + n, kind="fallback", text="9 from groq (timeout)")
            for n in range(3, 40)
        ),
    ),
)


def drawn(state: State, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(view.render(state, width, height))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().split("\n")[:-1]


@pytest.mark.parametrize(("width", "height"), [(100, 30), (80, 24)])
def test_each_part_is_there_and_nothing_is_cut(width: int, height: int) -> None:
    lines = drawn(FULL, width, height)
    text = "\n".join(lines)
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width
    assert "…" not in text
    assert lines[1].strip() in JOINED
    for part in (
        "main PRODUCTION",
        "22:13:20",
        "watermark 22:12:19",
        "now 22:13:25 UTC",
        lines[1].strip(),
        "PRODUCTION  final as of 22:13:20, policy v7",
        "★ since 21:13  ▲ 2 closes",  # the leader, and how far its challenger has come
        "▲ 1= perplexity/llama-2-70b-chat",
        "★ 1= perplexity/llama-2-13b-chat",
        "  3  perplexity/llama-2-7b-chat",
        "1.450",  # score of the first
        ".055",  # its 95 % interval: 1.96 * 0.028
        "18.08 s",
        ".000200",
        "100",
        "12.3k",
        ".75   306",  # quality, and by how many observations
        "prior",
        "unpriced",
        "projector",
        "workload",
        "123k",  # lag
        "globex",
        "82%",
        "115%",
        "✓ 1,234,567 = ",
        "4 dead",
        "main switched to TEST by ann",
        "9 from groq (timeout)",
    ):
        assert part in text, part


def test_no_size_makes_it_larger_than_the_console() -> None:
    for width in range(60, 181, 17):
        for height in range(10, 71, 9):
            for state in (FULL, replace(FULL, rankings=FULL.rankings[:1]), State(deployment="d")):
                lines = drawn(state, width, height)
                assert len(lines) <= height, (width, height)
                assert max(map(cell_len, lines)) <= width, (width, height)


def test_roles_of_the_deployments_mode_take_turns_and_a_tall_console_shows_all() -> None:
    seen = {
        role
        for turn in range(3)
        for role in ("code", "dialogue", "summary")
        if f"{role} · PRODUCTION"
        in "\n".join(drawn(replace(FULL, now_ms=FULL.now_ms + turn * view.PAGE_S * 1000), 100, 30))
    }
    assert seen == {"code", "dialogue", "summary"}
    tall = "\n".join(drawn(FULL, 100, 75))
    assert all(f"{role} · PRODUCTION" in tall for role in seen)
    assert "code · TEST" in tall


def test_the_whole_notice_is_shown_in_turn() -> None:
    words = set()
    for turn in range(4):
        later = replace(FULL, now_ms=FULL.now_ms + turn * view.PAGE_S * 1000)
        words |= set(" ".join(drawn(later, 100, 30)[1 : 1 + view.NOTICE_LINES]).split())
    assert set(JOINED.split()) <= words
    for width in (80, 100):
        longer = replace(FULL, joined=" ".join([JOINED] * 5))
        assert len(drawn(longer, width, 24 if width == 80 else 30)) == (24 if width == 80 else 30)


def test_an_unpriced_model_is_shown_as_such() -> None:
    few = ranking("code").model_copy(
        update={"entries": (entry("a/b", 1), entry("lepton/c", None, "unpriced"))}
    )
    lines = drawn(replace(FULL, rankings=(few,)), 100, 30)
    (line,) = [line for line in lines if "lepton/c" in line]
    assert "✗ unpriced" in line
    assert any("1 of them unpriced" in line for line in drawn(FULL, 80, 24)) or any(
        "unpriced: lepton" in line for line in drawn(FULL, 80, 24)
    )


def test_a_broken_law_has_no_tick() -> None:
    broken = Law(name="meter-0", counters={**LAW, "applied": LAW["applied"] - 1})
    lines = drawn(replace(FULL, laws=(broken,)), 100, 30)
    assert any("meter-0   ✗ 1,234,567" in line for line in lines)
    assert "LAW BROKEN: meter-0" in view.plain(replace(FULL, laws=(broken,)))
    assert "LAW BROKEN" not in view.plain(FULL)


def test_trouble_with_the_log_is_said() -> None:
    lines = drawn(replace(FULL, trouble="broker gone"), 100, 30)
    assert any("broker gone" in line for line in lines)
    assert len(lines) == 30


def test_the_plain_line_and_the_json_line_say_the_same() -> None:
    line = view.plain(FULL)
    assert "\n" not in line
    assert "code: perplexity/llama-2-70b-chat 1.450" in line
    assert "initech 115%" in line
    assert "meter down" in line
    state = json.loads(view.as_json(FULL))
    assert state["mode"] == "PRODUCTION"
    assert state["rankings"][0]["entries"][0]["score"] == 1.45
    assert state["laws"][0]["holds"] is True
    assert state["budgets"][2]["spent_picousd"] == 230 * 10**12
