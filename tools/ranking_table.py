"""A ranking as a table: the same columns in the live view, `roster rankings` and --watch. Pure.

★ leads, and the heading says since when; ▲ is about to, and the heading says for how many closes.
1= is a rank that others share. Quality is followed by the count of observations behind it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from schemas import ModelProfileScored
from schemas.model_profile import RankingEntry, RankingStatus
from tools.units import clock, count, percent, seconds, usd

Z = 1.959964  # two-sided 95 % (math.md M0)
LEADS, COMES = "★", "▲"
MARKS = {"ranked": "", "provisional": "~ ", "unrankable": "✗ ", "ineligible": "✗ "}
STYLES = {"ranked": "", "provisional": "", "unrankable": "dim", "ineligible": "yellow"}
REASONS = {  # short enough for a column of the live view
    "few_samples": "few samples",
    "prior_only": "prior only",
    "latency_interval": "latency?",
    "no_complete_response": "no response",
    "reliability_below_gate": "unreliable",
    "quality_below_gate": "low quality",
    "no_tokens": "no tokens",
    "no_reliability": "no parts",
}
SHORT = {  # five characters
    "few_samples": "few n",
    "prior_only": "prior",
    "latency_interval": "lat.?",
    "unpriced": "price",
    "no_complete_response": "none",
    "reliability_below_gate": "rel.",
    "quality_below_gate": "qual.",
    "no_tokens": "0 tok",
    "no_reliability": "parts",
}
COLUMNS = ("", "model", "score", "±95%", "p95", "$/1K tok", "rel.", "n", "quality  n", "status")
WIDTHS = (4, 28, 5, 5, 7, 8, 6, 5, 10, 13)  # 91, and 9 gaps: 100
NARROW_COLUMNS = ("", "model", "score", "±95%", "p95", "$/1Ktok", "rel%", "qual.   n", "")
NARROW = (4, 27, 5, 4, 7, 7, 4, 9, 5)  # 72, and 8 gaps: 80
LEFT = frozenset({"model", "status", ""})
WIDE = 100


def heading(ranking: ModelProfileScored, width: int) -> Text:
    """role · mode, what kind of ranking it is, of when, and who leads: as much as fits into that
    many characters."""
    kind = {RankingStatus.FINAL: "final", RankingStatus.PROVISIONAL: "provisional"}.get(
        ranking.status, "heartbeat"
    )
    for leader in _leads(ranking):
        line = Text.assemble(
            (f"{ranking.role} · {ranking.deployment_mode}", "bold"),
            (f"  {kind} as of {clock(ranking.as_of_ms)}, policy v{ranking.policy_version}", "dim"),
            (leader, "green"),
        )
        if line.cell_len <= width:
            break
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line


def _leads(ranking: ModelProfileScored) -> Iterator[str]:
    """Who leads since when and who is about to, told shorter and shorter."""
    state = ranking.leader
    if state is not None and state.provider is not None:
        since = _since(state.since_ms, ranking.as_of_ms)
        told = f"  {LEADS} {state.provider}/{state.model} since {since}"
        if state.challenger_provider is None:
            yield told
            yield f"  {LEADS} since {since}"
        else:
            closes = f"{state.closes} close{'' if state.closes == 1 else 's'}"
            name = f"{state.challenger_provider}/{state.challenger_model}"
            yield f"{told}  {COMES} {name}, {closes}"
            yield f"{told}  {COMES} {closes}"
            yield f"  {LEADS} since {since}  {COMES} {closes}"
            yield f"  {LEADS} {since} {COMES} {state.closes}"
    elif state is not None:
        yield "  no model qualifies"
    yield ""


def _since(ms: int | None, at_ms: int) -> str:
    """A time of day; with month and day if it is another day's than at_ms."""
    text = clock(ms, day=True)
    return text[11:16] if text[:10] == clock(at_ms, day=True)[:10] else text[5:16]


def cells(ranking: ModelProfileScored, wide: bool = True) -> Iterator[tuple[str, ...]]:
    """Rows in the order of COLUMNS, or of NARROW_COLUMNS. The 95 % interval is that of the
    score."""
    shared = Counter(entry.rank for entry in ranking.entries)
    for entry in ranking.entries:
        tied = entry.rank is not None and shared[entry.rank] > 1
        rank = f"{'-' if entry.rank is None else entry.rank:>2}{'=' if tied else ' '}"
        named = f"{entry.provider}/{entry.model}"
        score = "-" if entry.score is None else f"{entry.score:.3f}"
        interval = "-" if entry.score_se is None else f"{Z * entry.score_se:.3f}"
        cost = "unpriced" if entry.reason == "unpriced" else _cost(entry, 8 if wide else 7)
        quality = "-" if entry.quality is None else f"{entry.quality:.2f}"
        quality = f"{quality} {count(entry.quality_n):>5}"
        place = f"{_mark(ranking, entry)}{rank}"
        if len(place) > WIDTHS[0]:  # beyond 99 the mark or the sign of a tie has to go
            place = place.strip() if place[0] == " " else place.removesuffix("=")
        first = (place, named, score)
        if wide:
            reason = "" if entry.reason is None else REASONS.get(entry.reason, entry.reason)
            yield (
                *first,
                interval,
                seconds(entry.latency_us),
                cost,
                percent(entry.reliability),
                count(entry.invocations),
                quality,
                f"{MARKS.get(entry.status, '')}{reason or entry.status}",
            )
        else:
            share = percent(entry.reliability).rstrip("%")
            yield (
                *first,
                _tight(interval),
                seconds(entry.latency_us),
                "-" if cost == "unpriced" else cost,
                "100" if share == "100.0" else share,
                "1.0" + quality[4:] if quality.startswith("1.00") else _tight(quality),
                "" if entry.reason is None else SHORT.get(entry.reason, entry.reason),
            )


def _mark(ranking: ModelProfileScored, entry: RankingEntry) -> str:
    state, who = ranking.leader, (entry.provider, entry.model)
    if state is None:
        return " "
    if who == (state.provider, state.model):
        return LEADS
    return COMES if who == (state.challenger_provider, state.challenger_model) else " "


def _cost(entry: RankingEntry, width: int) -> str:
    """USD per 1,000 tokens, at most six decimals: as many as there is room for."""
    for digits in range(6, -1, -1):
        text = usd(entry.cost_picousd_per_1k_tokens, digits).lstrip("$")
        text = _tight(text) if width < 8 else text
        if len(text) <= width:
            break
    return text


def _tight(number: str) -> str:
    """.5 for 0.5."""
    return number.removeprefix("0") if number.startswith("0.") else number


def grid(width: int) -> Table:
    """An empty table of fixed columns for that many characters: it does not jump with its rows."""
    wide = width >= WIDE
    columns = zip(*((COLUMNS, WIDTHS) if wide else (NARROW_COLUMNS, NARROW)), strict=True)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for name, size in columns:
        left = name in LEFT
        table.add_column(
            width=size,
            justify="left" if left else "right",
            no_wrap=True,
            overflow="ellipsis",
        )
    return table


def header_row(table: Table) -> None:
    """Adds the headings."""
    wide = len(table.columns) == len(COLUMNS)
    table.add_row(*(COLUMNS if wide else NARROW_COLUMNS), style="dim")


def entry_rows(table: Table, ranking: ModelProfileScored, most: int | None = None) -> None:
    """Adds the models, the first `most` of them; None: all."""
    wide = len(table.columns) == len(COLUMNS)
    for entry, texts in zip(ranking.entries[:most], cells(ranking, wide), strict=False):
        row = [Text(text) for text in texts]
        if entry.rank == 1:
            row[1].stylize("bold green")
        if row[0].plain.startswith(LEADS):
            row[0].stylize("bold green")
        table.add_row(*row, style=STYLES.get(entry.status, ""))


def tables(rankings: Sequence[ModelProfileScored], width: int = 120) -> RenderableType:
    """Whole rankings, one below the other."""
    parts: list[RenderableType] = []
    for ranking in rankings:
        table = grid(width)
        header_row(table)
        entry_rows(table, ranking)
        parts += [heading(ranking, width), table, Text()]
    return Group(*parts[:-1])
