"""Two histories of leaders, and what they cost, as an SVG. Pure."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from processors.what_if import Led, Outcome, Step
from tools.units import clock, usd

WIDTH: Final = 960
LEFT: Final = 250
RIGHT: Final = 30
LANE: Final = 26
COST: Final = 120
TOP: Final = 64
TICKS: Final = 6
WAS, WOULD = "#4c78a8", "#e4572e"
NOBODY: Final = "nobody"


def chart(found: Outcome, title: str) -> str:
    """An SVG document. Leaders in lanes, one line each for what was and what would have been; below
    it the leader's cost per 1,000 tokens."""
    steps = found.steps
    lanes = _lanes(steps)
    bottom = TOP + LANE * len(lanes)
    floor = bottom + 40 + COST
    first = steps[0].as_of_ms if steps else 0
    last = steps[-1].as_of_ms if steps else 1
    span = max(1, last - first)

    def x(ms: int) -> float:
        return LEFT + (ms - first) / span * (WIDTH - LEFT - RIGHT)

    def lane(led: Led) -> float:
        return TOP + LANE * (lanes.index(led.model or NOBODY) + 0.5)

    costs = [
        cost
        for step in steps
        for cost in (step.was.cost_picousd_per_1k_tokens, step.would.cost_picousd_per_1k_tokens)
        if cost is not None
    ]
    most = max(costs, default=0.0) or 1.0

    def height(led: Led) -> float | None:
        cost = led.cost_picousd_per_1k_tokens
        return None if cost is None else floor - cost / most * COST

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{floor + 40}"'
        f' viewBox="0 0 {WIDTH} {floor + 40}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{floor + 40}" fill="white"/>',
        _text(16, 22, title, weight="bold"),
        _legend(),
    ]
    for i, name in enumerate(lanes):
        y = TOP + LANE * (i + 0.5)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "#dddddd"))
        parts.append(_text(LEFT - 8, y + 4, name, anchor="end"))
    parts.append(_text(LEFT - 8, bottom + 44, usd(most, 6), anchor="end"))
    parts.append(_text(LEFT - 8, floor + 4, "$0 per 1,000 tokens", anchor="end"))
    parts.append(_line(LEFT, floor, WIDTH - RIGHT, floor, "#999999"))
    for i in range(TICKS + 1):
        at = first + span * i // TICKS
        parts.append(_line(x(at), TOP, x(at), floor, "#eeeeee"))
        parts.append(_text(x(at), floor + 18, clock(at)[:5], anchor="middle"))
    parts.append(
        _text(LEFT, floor + 34, f"{clock(first, day=True)} to {clock(last, day=True)} UTC")
    )
    sides: tuple[tuple[str, float, Callable[[Step], Led]], ...] = (
        (WAS, -3.0, lambda step: step.was),
        (WOULD, 3.0, lambda step: step.would),
    )
    for colour, shift, side in sides:
        leads = [(x(s.as_of_ms), lane(side(s)) + shift) for s in steps]
        parts.append(_path(leads, colour, 3))
        priced = [(x(s.as_of_ms), height(side(s))) for s in steps]
        parts += [_path(run, colour, 2) for run in _runs(priced)]
    return "\n".join([*parts, "</svg>", ""])


def _lanes(steps: Sequence[Step]) -> list[str]:
    """Models by how long they lead, in either history."""
    closes: dict[str, int] = {}
    for step in steps:
        for led in (step.was, step.would):
            name = led.model or NOBODY
            closes[name] = closes.get(name, 0) + 1
    return sorted(closes, key=lambda name: (-closes[name], name))


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Points cut where there is no value."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _path(points: Sequence[tuple[float, float]], colour: str, width: int) -> str:
    """Steps: a value holds until the next one."""
    if not points:
        return ""
    words = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for x, y in points[1:]:
        words += [f"H{x:.1f}", f"V{y:.1f}"]
    words.append("h4")
    return f'<path d="{"".join(words)}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _legend() -> str:
    return "\n".join(
        (
            _line(16, 40, 40, 40, WAS, 3),
            _text(46, 44, "as it was"),
            _line(126, 40, 150, 40, WOULD, 3),
            _text(156, 44, "as it would have been"),
        )
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
        f' stroke-width="{width}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
