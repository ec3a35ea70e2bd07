"""A decision of the router as a person reads it, within 100 columns. Pure."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from processors.router import Candidate, Decision, Test
from tools.units import clock, count, percent, seconds, usd

COLUMNS = ("", "model", "score", "success ≥", "latency ≤", "$/1K tok ≤", "n ≥", "violation")
WIDTHS = (1, 31, 6, 9, 10, 11, 7, 17)


def page(found: Decision) -> RenderableType:
    """The pick, the limits, and each candidate with the values that were tested; failed ones are
    marked with ✗."""
    pick = "nobody" if found.pick is None else found.pick
    style = "bold red" if found.pick is None else "bold yellow" if found.sla_unmet else "bold green"
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for i, width in enumerate(WIDTHS):
        table.add_column(
            width=width, justify="left" if i in (0, 1, 7) else "right", overflow="fold"
        )
    table.add_row(*COLUMNS, style="dim")
    limits = found.limits
    table.add_row(
        "",
        "limit",
        "",
        "-" if limits.success is None else percent(limits.success / 10_000),
        seconds(limits.latency_us),
        usd(limits.cost_picousd_per_1k, 6),
        str(limits.min_samples),
        "",
        style="dim",
    )
    for candidate in found.candidates:
        mark = "→" if candidate.model == found.pick else ""
        table.add_row(mark, *_cells(candidate), style="" if candidate.eligible else "dim")
    return Group(
        Text.assemble(
            (f"{found.role} · {found.mode}", "bold"), f" for {found.persona}: ", (pick, style)
        ),
        Text(found.reason, style="dim"),
        Text(
            f"by the final as of {clock(found.ranking_as_of_ms, day=True)} UTC, policy"
            f" v{found.policy_version}; success: lower end of 95 %, latency: upper end for p"
            f"{found.percentile}",
            style="dim",
        ),
        Text(),
        table,
    )


def _cells(candidate: Candidate) -> tuple[str, ...]:
    tests = {test.name: test for test in candidate.tests}
    barred = [
        str(test.value).replace("_", " ") if test.name == "placed" else f"{test.name}: {test.value}"
        for test in candidate.tests
        if test.verdict != "passed" and test.name in ("placed", "breaker", "reservation", "persona")
    ]
    violation = f"{candidate.violation:.4f}" if candidate.violation else ""
    return (
        candidate.model,
        "-" if candidate.score is None else f"{candidate.score:.3f}",
        _cell(tests.get("success")),
        _cell(tests.get("latency")),
        _cell(tests.get("cost")),
        _cell(tests.get("samples")),
        ", ".join(barred) or violation,
    )


def _cell(test: Test | None) -> str:
    if test is None:
        return "-"
    if test.value is None:
        return "✗ missing"
    assert not isinstance(test.value, str)
    shown = {
        "success": percent,
        "latency": seconds,
        "cost": lambda value: usd(value, 6),
        "samples": count,
    }[test.name](test.value)
    return shown if test.verdict == "passed" else f"✗ {shown}"
