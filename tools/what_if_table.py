"""What would have been, as a person reads it, within 100 columns. Pure."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from processors.what_if import Outcome, Totals
from tools.units import bar, clock, usd

SHOWN = 40
"""Spans that are shown; JSON and chart have all."""


def page(found: Outcome, title: str) -> RenderableType:
    """Totals, then the spans in which the leaders differ or stay."""
    share = found.differing / found.closes if found.closes else 0.0
    head = Text.assemble(
        (title, "bold"),
        f"\n{found.closes} closes, from {found.method}: another leader at {found.differing}",
        f" ({share * 100:.1f}%) {bar(share, 20)}",
    )
    return Group(head, Text(), _totals(found), Text(), *_spans(found))


def _totals(found: Outcome) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "as it was", "as it would have been", "difference"):
        table.add_column(name, justify="left" if name == "" else "right", header_style="dim")
    was, would = found.was, found.would
    table.add_row(
        "changes of the leader",
        str(was.changes),
        str(would.changes),
        f"{would.changes - was.changes:+}",
    )
    table.add_row("leader's cost per 1,000 tokens", *_costs(was, would))
    if was.breaches is None or would.breaches is None:
        table.add_row("closes with a limit missed", "no limits", "no limits", "-")
    else:
        table.add_row(
            "closes with a limit missed",
            str(was.breaches),
            str(would.breaches),
            f"{would.breaches - was.breaches:+}",
        )
    return table


def _costs(was: Totals, would: Totals) -> tuple[str, str, str]:
    a, b = was.cost_picousd_per_1k_tokens, would.cost_picousd_per_1k_tokens
    change = "-" if not a or b is None else f"{(b / a - 1) * 100:+.1f}%"
    return usd(a, 6), usd(b, 6), change


def _spans(found: Outcome) -> Iterator[RenderableType]:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, width in (("from (UTC)", 19), ("closes", 6), ("led", 31), ("would have led", 31)):
        table.add_column(name, width=width, header_style="dim", overflow="fold")
    for span in found.spans[-SHOWN:]:
        same = span.was == span.would
        table.add_row(
            clock(span.from_ms, day=True),
            str(span.closes),
            span.was or "nobody",
            Text("the same" if same else span.would or "nobody", style="dim" if same else "bold"),
        )
    yield table
    if len(found.spans) > SHOWN:
        yield Text(f"{len(found.spans) - SHOWN} earlier spans: --json has all", style="dim")
