"""An explanation of a ranking as a person reads it, within 100 columns. Pure."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from processors.explain import Explanation, Failed, Model, Term
from processors.flips import Flip
from tools.units import bar, clock, count, lasting, moment, percent, seconds, usd

BLOCKS: Final = {"quality": "█", "cost": "▓", "latency": "▒", "reliability": "░"}
STYLES: Final = {"quality": "green", "cost": "yellow", "latency": "cyan", "reliability": "magenta"}
BAR: Final = 26
SHORT_BAR: Final = 16
USUAL_TOP: Final = 3


def page(found: Explanation, top: int = USUAL_TOP) -> RenderableType:
    """The whole explanation; terms of the first `top` models in full."""
    placed = [m for m in found.models if m.rank is not None]
    excluded = [m for m in found.models if m.failed]
    parts: list[RenderableType] = [*_head(found), Text()]
    if placed:
        parts += [_scores(placed), _legend(), Text()]
    for model in placed[:top]:
        parts += [*_terms(model), Text()]
    if excluded:
        parts += [Text("What others failed, and by how much", style="bold"), _excluded(excluded)]
        parts.append(Text())
    parts += _flips(found)
    return Group(*parts)


def _head(found: Explanation) -> Iterator[Text]:
    kind = {"FINAL": "final", "PROVISIONAL": "provisional"}.get(found.status, "heartbeat")
    again = f", correction {found.revision}" if found.revision else ""
    of = "" if found.tenant is None else f" of tenant {found.tenant}"
    yield Text.assemble(
        (f"{found.role} · {found.mode}{of}", "bold"),
        (f"  {kind} as of {clock(found.as_of_ms, day=True)} UTC{again}", ""),
    )
    window, policy = found.window, found.policy
    yield _line(
        "window",
        f"{moment(window['start_ms'])[:16]} to {moment(window['end_ms'])[:16]}"
        f" ({lasting(window['end_ms'] - window['start_ms'])}, {window['panes']} panes),"
        f" generation {found.generation}",
    )
    yield _line(
        "policy",
        f"version {policy['version']}, by {policy['actor']}, in force since"
        f" {clock(policy['occurred_at_ms'], day=True)}",
    )
    place = f"{policy['topic']}[{policy['partition']}] offset {policy['offset']}"
    yield _line("", f"{place}, event {policy['event_id']}")
    yield from _leads(found)
    yield _line("inputs", _positions(found))
    yield _line("record", f"event {found.event_id}")
    if found.state_hash:
        yield _line("", f"evidence {found.state_hash[:16]}…")
    if found.omitted:
        yield _line("", f"{found.omitted} models more than a record holds are left out")


def _line(name: str, text: str) -> Text:
    return Text.assemble((f"{name:<8}", "dim"), text)


def _leads(found: Explanation) -> Iterator[Text]:
    said = found.leader
    if said is None or said["model"] is None:
        yield _line("leader", "none: no model has qualified yet")
        return
    yield _line("leader", f"{said['model']} since {clock(said['since_ms'], day=True)}")
    if said["challenger"] is not None:
        wait = f", and not for another {lasting(said['wait_ms'])}" if said["wait_ms"] else ""
        yield _line(
            "",
            f"{said['challenger']} challenges it: ahead by the margin of"
            f" {said['least_margin']:g} at {said['closes']} of {said['closes_needed']}"
            f" closes{wait}",
        )


def _positions(found: Explanation) -> str:
    """Topics with the offsets up to which they counted; partitions in order."""
    upto: dict[str, list[str]] = {}
    for mark in found.marks:
        upto.setdefault(mark["source_topic"], []).append(str(mark["up_to_offset"]))
    for position in found.inputs:
        upto.setdefault(position["topic"], []).append(f"<{position['next_offset']}")
    parts = [f"{topic} {' '.join(offsets)}" for topic, offsets in upto.items()]
    return ("\n" + " " * 8).join(parts)


def _scores(models: Sequence[Model]) -> Table:
    table = _grid(
        (2, "right"), (31, "left"), (6, "right"), (6, "right"), (BAR, "left"), (22, "left")
    )
    table.add_row("", "model", "score", "±95%", "made of", "ahead of the next by", style="dim")
    most = max((m.score or 0.0 for m in models), default=1.0) or 1.0
    for m in models:
        if m.score is None or m.high is None:
            continue
        name = Text(m.model, style="bold green" if m.rank == 1 else "")
        if m.status == "provisional":
            name.append(" ~", "dim")
        table.add_row(
            str(m.rank),
            name,
            f"{m.score:.3f}",
            f"{m.high - m.score:.3f}",
            _stacked(m, most),
            _gap(m),
        )
    return table


def _stacked(model: Model, most: float) -> Text:
    """The score as a bar of its terms; cut so that the lengths add up."""
    text, upto, drawn = Text(), 0.0, 0
    for term in model.terms:
        upto += term.contribution
        end = round(upto / most * BAR)
        text.append(BLOCKS[term.name] * (end - drawn), STYLES[term.name])
        drawn = max(drawn, end)
    return text


def _legend() -> Text:
    text = Text("   ")
    for name, block in BLOCKS.items():
        text.append(f"{block} ", STYLES[name]).append(f"{name}   ", "dim")
    return text.append("~ provisional", "dim")


def _gap(model: Model) -> str:
    if model.margin is None:
        return ""
    half = model.margin.high - model.margin.lead
    return f"{model.margin.lead:.3f} ±{half:.3f}{'' if model.margin.certain else '  tie'}"


def _terms(model: Model) -> Iterator[RenderableType]:
    assert model.rank is not None
    measured = model.measured
    yield Text.assemble(
        (f"{model.rank} {model.model}", "bold"),
        (
            f"  {model.status}, {count(measured['invocations'])} calls,"
            f" {count(measured['complete'])} complete",
            "dim",
        ),
        (f"; {', '.join(model.flags)}" if model.flags else "", "dim"),
    )
    table = _grid(
        (11, "left"),
        (12, "right"),
        (12, "right"),
        (11, "right"),
        (6, "right"),
        (7, "right"),
        (7, "right"),
        (6, "right"),
        (SHORT_BAR, "left"),
    )
    table.add_row(
        "", "value", "reference", "ratio", "weight", "adds", "±s.e.", "n", "", style="dim"
    )
    most = max(t.contribution for t in model.terms) or 1.0
    for t in model.terms:
        table.add_row(
            t.name,
            _value(t, t.value),
            "-" if t.reference is None else _value(t, t.reference),
            _ratio(t),
            f"{t.weight / 100:g}%",
            f"{t.contribution:.4f}",
            f"{t.standard_error:.4f}",
            count(t.n),
            Text(bar(t.contribution / most, SHORT_BAR), STYLES[t.name]),
        )
    yield table
    yield Text(f"  quality      {_quality(model)}", style="dim")
    yield Text(f"  reliability  {_reliability(model)}", style="dim")


def _value(term: Term, value: float) -> str:
    if term.name == "cost":
        return usd(value, 6)
    return seconds(value) if term.name == "latency" else f"{value:.4f}"


def _ratio(term: Term) -> str:
    if term.reference is None:
        return "-"
    ratio = "inf" if term.ratio is None else f"{term.ratio:.3f}"
    return f"{ratio} → {term.credited:g}" if term.floored else ratio


def _quality(model: Model) -> str:
    said = model.quality
    prior = f"prior {said['prior']:.4f}" if said["prior"] is not None else "no prior"
    source = ", ".join(
        f"{b['name']} {b['value']:g} (part {b['part']:.3f})" for b in said["benchmarks"]
    )
    return f"{said['hits']} of {said['n']} good; {prior} from {source or 'the policy'}"


def _reliability(model: Model) -> str:
    said = model.reliability
    parts = [
        f"{p['name'].replace('_', ' ')} {p['hits']}/{p['n']} ({p['weight'] / 100:g}%)"
        for p in said["parts"]
    ]
    success = ""
    if said["success_low"] is not None:
        low, high = percent(said["success_low"]), percent(said["success_high"])
        success = f"; success {low} to {high}"
    return "; ".join(parts) + success


def _excluded(models: Sequence[Model]) -> Table:
    table = _grid((31, "left"), (12, "left"), (54, "left"))
    table.add_row("model", "status", "failed", style="dim")
    for m in models:
        # Without a score the reason alone counts: what else it would have failed is in the JSON.
        for i, fault in enumerate(m.failed[:1] if m.status == "unrankable" else m.failed):
            first = i == 0
            table.add_row(m.model if first else "", m.status if first else "", _fault(fault))
    return table


def _fault(fault: Failed) -> str:
    if fault.value is None or fault.limit is None or fault.short_by is None:
        return fault.meaning
    if fault.test.endswith("_gate"):
        return (
            f"{fault.test.partition('_')[0]} {fault.value:.4f} is {fault.short_by:.4f} below"
            f" {fault.limit:.4f}"
        )
    if fault.test in ("few_samples", "few_trials"):
        return f"{fault.meaning}: {fault.value:g} of {fault.limit:g}, {fault.short_by:g} lack"
    return fault.meaning


def _flips(found: Explanation) -> Iterator[RenderableType]:
    if found.between is None:
        yield Text("Nothing to flip: no second model has a place.", style="dim")
        return
    leader, runner_up = found.between
    yield Text.assemble(("What would put ", "bold"), runner_up, (" ahead of ", "bold"), leader)
    if not found.flips:
        yield Text("Their scores differ by no more than rounding: anything does.", style="dim")
        return
    table = _grid((40, "left"), (14, "right"), (14, "right"), (28, "left"))
    table.add_row("one change alone", "is", "must become", "", style="dim")
    for flip in found.flips:
        table.add_row(*_flip(flip), style="dim" if flip.after is None else "")
    yield table
    yield Text(
        "Each is the smallest that does it, and was scored again; the other weights keep their"
        " proportion.",
        style="dim",
    )


def _flip(flip: Flip) -> tuple[str, str, str, str]:
    name = f"weight of {flip.of}" if flip.what == "weight" else f"{flip.what} of {flip.of}"
    if flip.after is None:
        return name, _amount(flip, flip.before), "-", "no change does"
    note = ""
    if flip.weights is not None:
        note = "weights " + ",".join(map(str, flip.weights))
    elif flip.by == "gate":
        note = "it fails the gate"
    elif flip.before:
        note = f"{(flip.after / flip.before - 1) * 100:+.1f}%"
    return name, _amount(flip, flip.before), _amount(flip, flip.after), note


def _amount(flip: Flip, value: float) -> str:
    """To the last digit: a rounded one might not flip."""
    if flip.what == "latency":
        return f"{value / 1000:,.3f} ms"
    return f"{value:.6f}" if flip.what == "quality" else f"{value / 100:g}%"


def _grid(*columns: tuple[int, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for width, justify in columns:
        right = justify == "right"
        table.add_column(
            width=width, justify="right" if right else "left", no_wrap=False, overflow="fold"
        )
    return table
