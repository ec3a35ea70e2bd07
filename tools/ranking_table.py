"""A ranking as a table: the same columns in the live view, `roster rankings` and --watch. Pure."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from schemas import ModelProfileScored
from schemas.model_profile import RankingEntry, RankingStatus
from tools.units import clock, count, percent, seconds, usd

Z = 1.959964  # two-sided 95 % (math.md M0)
MARKS = {"ranked": "", "provisional": "~", "unrankable": "✗", "ineligible": "✗"}
STYLES = {"ranked": "", "provisional": "", "unrankable": "dim", "ineligible": "yellow"}
REASONS = {  # short enough for a column of the live view
    "few_samples": "few samples",
    "prior_only": "quality: prior",
    "no_complete_response": "no response",
    "reliability_below_gate": "unreliable",
    "quality_below_gate": "poor quality",
    "no_tokens": "no tokens",
}
SHORT = {
    "few_samples": "few n",
    "prior_only": "prior",
    "unpriced": "price",
    "no_complete_response": "none",
    "reliability_below_gate": "gate",
    "quality_below_gate": "gate",
    "no_tokens": "tokens",
}
COLUMNS = ("", "model", "score", "±95%", "p95", "$/1K tok", "rel.", "n", "status")
WIDTHS = (2, 32, 6, 6, 7, 9, 6, 6, 16)  # 90, and 8 gaps: 98
NARROW = (2, 27, 5, 5, 7, 8, 6, 5, 7)  # 72, and 8 gaps: 80
WIDE = 98


def heading(ranking: ModelProfileScored) -> Text:
    """role · mode, what kind of ranking it is, and of when."""
    kind = {RankingStatus.FINAL: "final", RankingStatus.PROVISIONAL: "provisional"}.get(
        ranking.status, "heartbeat"
    )
    return Text.assemble(
        (f"{ranking.role} · {ranking.deployment_mode}", "bold"),
        (f"  {kind} as of {clock(ranking.as_of_ms)}, policy v{ranking.policy_version}", "dim"),
    )


def cells(entry: RankingEntry, wide: bool = True) -> tuple[str, ...]:
    """One row, in the order of COLUMNS. The 95 % interval is that of the score."""
    cost = entry.cost_picousd_per_1k_tokens
    interval = "-" if entry.score_se is None else f"{Z * entry.score_se:.3f}"
    reasons = REASONS if wide else SHORT
    status = reasons.get(entry.reason, entry.reason) if entry.reason else entry.status
    return (
        "-" if entry.rank is None else str(entry.rank),
        f"{entry.provider}/{entry.model}",
        "-" if entry.score is None else f"{entry.score:.3f}",
        interval,
        seconds(entry.latency_us),
        "unpriced" if entry.reason == "unpriced" else usd(cost, 6).lstrip("$"),
        percent(entry.reliability),
        count(entry.invocations),
        f"{MARKS.get(entry.status, '')} {status}".strip(),
    )


def grid(width: int) -> Table:
    """An empty table of fixed columns for that many characters: it does not jump with its rows."""
    widths = WIDTHS if width >= WIDE else NARROW
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for index, columns in enumerate(widths):
        left = index in (1, 8)
        table.add_column(
            width=columns,
            justify="left" if left else "right",
            no_wrap=True,
            overflow="ellipsis",
        )
    return table


def header_row(table: Table) -> None:
    """Adds the headings."""
    table.add_row(*COLUMNS, style="dim")


def entry_row(table: Table, entry: RankingEntry, wide: bool = True) -> None:
    """Adds one model."""
    texts = [Text(text) for text in cells(entry, wide)]
    if entry.rank == 1:
        texts[1].stylize("bold green")
    table.add_row(*texts, style=STYLES.get(entry.status, ""))


def tables(rankings: Sequence[ModelProfileScored], width: int = 120) -> RenderableType:
    """Whole rankings, one below the other."""
    parts: list[RenderableType] = []
    for ranking in rankings:
        table = grid(width)
        header_row(table)
        for entry in ranking.entries:
            entry_row(table, entry, width >= WIDE)
        parts += [heading(ranking), table, Text()]
    return Group(*parts[:-1])
