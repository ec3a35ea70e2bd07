"""The live view: a state as what is drawn on a console of a given size. Pure, and never larger
than the console, so that nothing flickers or scrolls."""

import json
from collections.abc import Sequence
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from schemas import ModelProfileScored
from schemas.values import canonical_mode
from tools.poller import LAW, Budget, Law, Notable, Process, State
from tools.ranking_table import WIDE, entry_rows, grid, header_row, heading
from tools.units import bar, clock, count, usd

MIN_WIDTH: Final = 80
MIN_HEIGHT: Final = 24
PAGE_S: Final = 5  # how long a part is shown where not all fit
NOTICE_LINES: Final = 2
STATE_STYLES: Final = {"ready": "green", "down": "bold red", "starting": "yellow"}
KIND_STYLES: Final = {
    "mode": "bold magenta",
    "profile": "cyan",
    "rejected": "red",
    "budget": "yellow",
    "fallback": "blue",
    "dead": "red",
    "process": "bold red",
}
BURSTS: Final = frozenset({"fallback", "dead"})
SHORT: Final = {"dead_lettered": "dead", "duplicate": "dup"}
SHORTER: Final = {**SHORT, "applied": "app", "conflict": "conf", "control": "ctl"}


def render(state: State, width: int, height: int) -> RenderableType:
    """The whole view. Below 80 x 24 it says so."""
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return _cut(f"at least {MIN_WIDTH} x {MIN_HEIGHT} characters are needed", width)
    top = [_title(state, width), *_notice(state, width)]
    laws = [_law(law, width) for law in state.laws] or [Text("no reports yet", style="dim")]
    processes = [p for p in state.processes if height >= 30 or not _quiet(p)]
    rows = max(5, min(8, 1 + len(processes)), min(6, len(state.budgets)))
    fixed = len(top) + 1 + (1 + rows) + 1 + len(laws) + 1
    # What is left goes to rankings and events; a tall console shows more of both.
    left = height - fixed
    events = max(2, min(left - 7, left // 4, 12))
    parts: list[RenderableType] = [
        *top,
        _rule("rankings", width),
        *_rankings(state, width, left - events),
        _lower(processes, state.budgets, width, rows),
        _rule("conservation: consumed = sum of the verdicts", width),
        *laws,
        _rule("events", width),
        *_events(state, width, events),
    ]
    return Group(*parts)


def _title(state: State, width: int) -> Text:
    left = Text.assemble(
        (" roster ", "bold reverse"),
        f" {state.deployment} ",
        (state.mode or "no mode", "bold magenta"),
    )
    times = (
        (" event time " if width >= WIDE else " event ", clock(state.event_ms)),
        ("  watermark ", clock(state.watermark_ms)),
        ("  now ", f"{clock(state.now_ms)} UTC"),
    )
    right = Text.assemble(*(part for name, at in times for part in ((name, "dim"), at)))
    left = _fit(left, width - right.cell_len)
    return Text.assemble(left, " " * (width - left.cell_len - right.cell_len), right)


def _notice(state: State, width: int) -> list[Text]:
    words = _wrapped(state.joined, width)
    turn = state.now_ms // 1000 // PAGE_S % max(1, -(-len(words) // NOTICE_LINES))
    lines = words[turn * NOTICE_LINES : (turn + 1) * NOTICE_LINES]
    lines += _blank(min(len(words), NOTICE_LINES) - len(lines))
    if state.trouble is not None:
        lines.append(_cut(f"the log cannot be read just now: {state.trouble}", width, "red"))
    return lines


def _wrapped(text: str, width: int) -> list[Text]:
    """Whole words, as many lines as it takes."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [Text(line, style="dim") for line in lines]


def _rule(title: str, width: int) -> Rule:
    return Rule(Text(title, style="bold"), align="left", style="dim", characters="─")


def shown_first(state: State) -> list[ModelProfileScored]:
    """Rankings in the deployment's mode by role, then all others."""
    mode = None if state.mode is None else canonical_mode(state.mode)
    return sorted(
        state.rankings, key=lambda r: (r.deployment_mode != mode, r.deployment_mode, r.role)
    )


def _rankings(state: State, width: int, lines: int) -> list[RenderableType]:
    """Exactly that many lines: headings, then as many rankings as fit with at least four models
    each; if not all of the deployment's mode fit, they take turns."""
    rankings = shown_first(state)
    if not rankings:
        return [Text("waiting for the first ranking ...", style="dim"), *_blank(lines - 1)]
    mine = [r for r in rankings if r.deployment_mode == state.mode] or rankings
    room = lines - 1
    fit = max(1, room // 6)
    if fit < len(mine):
        turn = (state.now_ms // 1000 // PAGE_S) % len(mine)
        chosen = [mine[(turn + i) % len(mine)] for i in range(fit)]
    else:
        chosen = rankings[:fit]
    head = grid(width)
    header_row(head)
    parts: list[RenderableType] = [head]
    for index, ranking in enumerate(chosen):
        share = room // (len(chosen) - index)
        block = _ranking(ranking, width, share)
        parts += block
        room -= sum(1 if isinstance(part, Text) else part.row_count for part in block)
    return [*parts, *_blank(room)]


def _ranking(ranking: ModelProfileScored, width: int, lines: int) -> list[Text | Table]:
    """One ranking in at most that many lines; what does not fit is counted, and unpriced models
    are named."""
    entries = ranking.entries
    whole = len(entries) <= lines - 1
    shown = entries if whole else entries[: lines - 2]
    table = grid(width)
    entry_rows(table, ranking, len(shown))
    parts: list[Text | Table] = [heading(ranking, width)]
    if shown:
        parts.append(table)
    if not whole:
        rest = entries[len(shown) :]
        unpriced = [f"{e.provider}/{e.model}" for e in rest if e.reason == "unpriced"]
        text = f"   and {len(rest)} more"
        if unpriced:
            named = f"{text}; unpriced: {', '.join(unpriced)}"
            text += f", {len(unpriced)} of them unpriced"
            text = named if cell_len(named) <= width else text
        parts.append(_cut(text, width, "dim"))
    return parts


def _quiet(process: Process) -> bool:
    """Nothing to tell of it that a small console has room for."""
    return process.state == "ready" and process.in_per_s is None and not process.restarts


def _lower(processes: Sequence[Process], budgets: Sequence[Budget], width: int, rows: int) -> Table:
    """Processes to the left, budgets to the right."""
    left = 55 if width >= WIDE else 42
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(width=left, no_wrap=True)
    table.add_column(width=width - left - 1, no_wrap=True)
    table.add_row(
        Group(
            Rule(Text("processes", style="bold"), align="left", style="dim"),
            _processes(processes, left, rows),
        ),
        Group(
            Rule(Text("budgets", style="bold"), align="left", style="dim"),
            *_budgets(_nearest(budgets, rows), width - left - 1, rows),
        ),
    )
    return table


def _processes(processes: Sequence[Process], width: int, rows: int) -> Table:
    wide = width >= 55
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    widths = (9, 8, 6, 6, 6, 4, 9) if wide else (9, 8, 5, 5, 5, 3, 0)
    for index, columns in enumerate(widths if wide else widths[:-1]):
        right = index > 1
        table.add_column(
            width=columns, justify="right" if right else "left", no_wrap=True, overflow="ellipsis"
        )
    names = ("", "", "in/s", "out/s", "lag", "rst", "memory")
    table.add_row(*(names if wide else names[:6]), style="dim")
    for process in processes[: rows - 1]:
        cells = [
            Text(process.name),
            Text(process.state, style=STATE_STYLES.get(process.state, "")),
            Text(count(process.in_per_s)),
            Text(count(process.out_per_s)),
            Text(count(process.lag), style="yellow" if (process.lag or 0) > 50_000 else ""),
            Text(str(process.restarts), style="bold red" if process.restarts else "dim"),
        ]
        if wide:
            cells.append(Text(f"{process.rss_bytes / 2**20:.0f} MiB" if process.rss_bytes else "-"))
        table.add_row(*cells)
    for _ in range(rows - 1 - len(processes)):
        table.add_row()
    return table


def _budgets(budgets: Sequence[Budget], width: int, rows: int) -> list[Text]:
    if not budgets:
        return [Text(" none reported yet", style="dim"), *_blank(rows - 1)]
    name = min(17 if width >= 42 else 10, max(len(budget.tenant) for budget in budgets))
    digits = 2 if width >= 42 else 0
    amounts = [
        f"{usd(b.spent_picousd, digits)}/{usd(b.cap_picousd, 0)} {b.period[0].lower()}"
        for b in budgets
    ]
    columns = width - name - len(" 100% ") - 1 - max(map(len, amounts))
    lines = []
    for budget, amount in zip(budgets, amounts, strict=True):
        share = budget.spent_picousd / budget.cap_picousd
        style = "red" if share >= 1 else "yellow" if share >= 0.8 else "green"
        tenant = Text(budget.tenant)
        tenant.truncate(name, overflow="ellipsis", pad=True)
        burn = (bar(share, max(3, columns)), style)
        lines.append(_fit(Text.assemble(tenant, " ", burn, f"{share * 100:4.0f}% ", amount), width))
    return [*lines, *_blank(rows - len(lines))]


def _nearest(budgets: Sequence[Budget], rows: int) -> list[Budget]:
    """Those that are spent furthest, where not all fit."""
    furthest = sorted(budgets, key=lambda b: -b.spent_picousd / b.cap_picousd)[:rows]
    return [budget for budget in budgets if budget in furthest]


def _law(law: Law, width: int) -> Text:
    tick = ("✓", "bold green") if law.holds else ("✗", "bold red")
    counters = {name: law.counters.get(name, 0) for name in LAW}
    consumed = law.counters.get("consumed", 0)
    some = [name for name in LAW if counters[name]]
    for plus, names, words in ((" + ", LAW, SHORT), (" + ", some, SHORT), ("+", some, SHORTER)):
        sums = plus.join(f"{counters[name]:,} {words.get(name, name)}" for name in names)
        line = Text.assemble(f"{law.name:<9} ", tick, f" {consumed:,} = ", (sums, "dim"))
        if line.cell_len <= width:
            break
    return _fit(line, width)


def _events(state: State, width: int, lines: int) -> list[Text]:
    newest = _worth_showing(state.notable, lines)
    shown = [
        _fit(
            Text.assemble(
                (clock(notable.at_ms), "dim"),
                " ",
                (f"{notable.kind:<9}", KIND_STYLES.get(notable.kind, "")),
                notable.text,
            ),
            width,
        )
        for notable in newest
    ]
    return [*shown, *_blank(lines - len(shown))]


def _worth_showing(notable: Sequence[Notable], lines: int) -> list[Notable]:
    """The newest ones; those that come in bursts leave half of the lines to the others."""
    rare = [n for n in notable if n.kind not in BURSTS]
    many = [n for n in notable if n.kind in BURSTS]
    few = max(lines // 2, lines - len(rare))
    chosen = [*rare[max(0, len(rare) - lines + min(few, len(many))) :], *many[-few:]]
    return sorted(chosen, key=lambda n: (n.at_ms, n.number))


def _blank(lines: int) -> list[Text]:
    return [Text("") for _ in range(lines)]


def _cut(text: str, width: int, style: str = "") -> Text:
    return _fit(Text(text, style=style), width)


def _fit(text: Text, width: int) -> Text:
    """One line, never wrapped; what is too long ends in an ellipsis."""
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text


def plain(state: State) -> str:
    """The state on one line, for a log file."""
    rates = {p.name: p for p in state.processes}
    into = sum(p.in_per_s or 0 for p in rates.values() if p.name.startswith("meter"))
    lag = sum(p.lag or 0 for p in rates.values())
    best = [
        f"{r.role}: {r.entries[0].provider}/{r.entries[0].model} {r.entries[0].score:.3f}"
        for r in shown_first(state)
        if r.deployment_mode == state.mode and r.entries and r.entries[0].score is not None
    ]
    spent = [f"{b.tenant} {b.spent_picousd * 100 // b.cap_picousd}%" for b in state.budgets]
    broken = [law.name for law in state.laws if not law.holds]
    dead = [f"{p.name} {p.state}" for p in state.processes if p.state not in ("ready", "waiting")]
    parts = [
        f"{clock(state.now_ms)} {state.mode or 'no mode'}",
        f"event time {clock(state.event_ms)}",
        f"{count(into)}/s in, lag {count(lag)}",
        f"rankings {state.rankings_published}",
        *best,
        *([f"budgets {', '.join(spent)}"] if spent else []),
        *([f"LAW BROKEN: {', '.join(broken)}"] if broken else []),
        *dead,
    ]
    return " | ".join(parts)


def as_json(state: State) -> str:
    """The state as one line of JSON; of rankings what the view shows."""
    return json.dumps(
        {
            "deployment": state.deployment,
            "mode": state.mode,
            "now_ms": state.now_ms,
            "event_ms": state.event_ms,
            "watermark_ms": state.watermark_ms,
            "joined": state.joined,
            "rankings_published": state.rankings_published,
            "rankings": [_ranking_json(r) for r in shown_first(state)],
            "processes": [
                {name: getattr(p, name) for name in Process.__dataclass_fields__}
                for p in state.processes
            ],
            "budgets": [
                {name: getattr(b, name) for name in Budget.__dataclass_fields__}
                for b in state.budgets
            ],
            "laws": [{"name": law.name, "holds": law.holds, **law.counters} for law in state.laws],
            "notable": [{"at_ms": n.at_ms, "kind": n.kind, "text": n.text} for n in state.notable],
            "trouble": state.trouble,
        },
        ensure_ascii=False,
    )


def _ranking_json(ranking: ModelProfileScored) -> dict[str, Any]:
    return {
        "role": ranking.role,
        "mode": ranking.deployment_mode,
        "status": ranking.status.value,
        "as_of_ms": ranking.as_of_ms,
        "event_id": ranking.event_id,
        "leader": None if ranking.leader is None else ranking.leader.model_dump(mode="json"),
        "entries": [
            entry.model_dump(mode="json", exclude={"terms", "flags"}) for entry in ranking.entries
        ],
    }
