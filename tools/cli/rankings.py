"""roster rankings, rankings explain, route, what-if"""

from typing import Annotated, Any

import typer

from tools.cli.output import Json, console, not_found, say_json

app = typer.Typer(help="Rankings of models: now, at any past moment, why, and what if.")

Role = Annotated[str | None, typer.Option(help="name or alias of a role")]
Mode = Annotated[str | None, typer.Option(help="name or alias; default: the mode in force then")]
At = Annotated[
    str | None, typer.Option(help="what was published by then, for example 2025-01-31T12:00Z")
]


def add(root: typer.Typer) -> None:
    """Registers the commands."""
    root.add_typer(app, name="rankings")


@app.callback(invoke_without_command=True)
def rankings(
    context: typer.Context,
    role: Annotated[str | None, typer.Option(help="only this role, name or alias")] = None,
    mode: Annotated[str | None, typer.Option(help="only this mode, name or alias")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="of one tenant alone, from the projector's closed panes")
    ] = None,
    at: At = None,
    watch: Annotated[bool, typer.Option("--watch", help="go on until Ctrl-C")] = False,
    as_json: Json = False,
) -> None:
    """The newest ranking of every role and mode; with --at the newest final and provisional one of
    that moment."""
    from streams import settings
    from streams.errors import BadConfiguration
    from tools.cli.control import time_ms
    from tools.log_reader import newest_rankings
    from tools.published import answered, chosen
    from tools.ranking_table import tables
    from tools.session import cluster

    if context.invoked_subcommand is not None:
        _nothing_given(context)
        return
    at_ms = time_ms(at, "--at")
    if watch and at is not None:
        raise BadConfiguration("--watch and --at exclude each other")
    if tenant is not None:
        if watch:
            raise BadConfiguration("--watch and --tenant exclude each other")
        _of_tenant(tenant, role, mode, at_ms, as_json)
        return
    wanted = chosen(role, mode, at_ms=at_ms)
    with cluster(settings.load()) as session:
        loaded = session.settings
        if watch:
            from tools.watch import watch_rankings

            watch_rankings(session.settings, wanted.role, wanted.mode, as_json)
            return
        if at_ms is not None:
            found = answered(session.settings, lambda source: source.standing(wanted))
        else:
            found = [
                ranking
                for ranking in newest_rankings(session.settings)
                if wanted.role in (None, ranking.role)
                if wanted.mode in (None, ranking.deployment_mode)
            ]
    if as_json:
        say_json([ranking.model_dump(mode="json") for ranking in found])
    elif found:
        out = console()
        out.print(tables(_current(found), out.width))
    if not found:
        by = None if at is None else f"no ranking had been published by {at}"
        not_found(by or _none_yet(loaded, wanted.role, wanted.mode))


def _none_yet(settings: Any, role: str | None, mode: str | None) -> str:
    """Why nothing is found, and what there is."""
    from tools.log_reader import newest_rankings

    known = newest_rankings(settings)
    if not known:
        return "no ranking yet: one appears when invocations have been measured"
    if any(role in (None, r.role) and mode in (None, r.deployment_mode) for r in known):
        return f"no final ranking of role {role}, mode {mode} yet: only a provisional one"
    roles, modes = {r.role for r in known}, {r.deployment_mode for r in known}
    asked = [f"role {role}"] if role is not None else []
    asked += [f"mode {mode}"] if mode is not None else []
    return (
        f"no ranking of {', '.join(asked)}; there are roles {', '.join(sorted(roles))}"
        f" and modes {', '.join(sorted(modes))}"
    )


def _made(
    settings: Any, tenant: str, role: str | None, mode: str | None, at_ms: int | None
) -> list[Any]:
    """Rankings of a tenant's own traffic, from the projector's panes."""
    from tools import sql
    from tools.published import rows
    from tools.rankings import rankings as made

    return made(
        lambda text, most: rows(sql.answer(settings, text, most)), tenant, role, mode, at_ms
    )


def _of_tenant(
    tenant: str, role: str | None, mode: str | None, at_ms: int | None, as_json: bool
) -> None:
    from streams import settings
    from tools.ranking_table import tables

    found = _made(settings.load(), tenant, role, mode, at_ms)
    if as_json:
        say_json([ranking.model_dump(mode="json") for ranking in found])
    elif found:
        out = console()
        out.print(tables(found, out.width))
    if not found:
        not_found(f"tenant {tenant} has no invocation in the window of a policy")


def _current(found: Any) -> Any:
    """Without provisional rankings that a final has overtaken."""
    finals = {(r.role, r.deployment_mode): r.as_of_ms for r in found if r.status == "FINAL"}
    return [
        r
        for r in found
        if r.status == "FINAL" or r.as_of_ms > finals.get((r.role, r.deployment_mode), -1)
    ]


def _nothing_given(context: typer.Context) -> None:
    """Options of the list do not silently vanish before a command that has its own."""
    from streams.errors import BadConfiguration

    given = [name for name, value in context.params.items() if value not in (None, False)]
    if given:
        command = context.invoked_subcommand
        option = f"--{given[0].removeprefix('as_')}"
        raise BadConfiguration(
            f"{option} stands before {command}; give it after: {command} {option}"
        )


@app.command()
def explain(
    event_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="event_id of a ranking")
    ] = None,
    role: Role = None,
    mode: Mode = None,
    at: At = None,
    tenant: Annotated[
        str | None, typer.Option(help="by this tenant's traffic alone, from closed panes")
    ] = None,
    top: Annotated[int, typer.Option(help="so many models term by term", min=0)] = 3,
    as_json: Json = False,
) -> None:
    """Why a ranking is as it is: every term, margins, what others failed, what would flip it.

    Without an ID: the newest final of the role, in the mode in force.
    """
    from processors.explain import explain as explained
    from streams import settings
    from streams.errors import BadConfiguration
    from tools.explain_table import page
    from tools.published import answered
    from tools.session import cluster

    if event_id is not None and (role, mode, at, tenant) != (None, None, None, None):
        raise BadConfiguration(
            "an ID names one ranking: leave --role, --mode, --at and --tenant out"
        )
    with cluster(settings.load()) as session:
        if event_id is None and tenant is not None:
            record = _final_of_tenant(session.settings, tenant, role, mode, at)
        elif event_id is None:
            record = _final(session.settings, role, mode, at)
        else:
            record = answered(session.settings, lambda source: source.by_id(event_id))
        if record is None:
            not_found(f"no ranking has the id {event_id}", as_json)
        policy = answered(session.settings, lambda s: s.policy(record.policy_event_id))
    if policy is None:
        not_found(f"the log no longer has the policy {record.policy_event_id}", as_json)
    found = explained(record, policy)
    if as_json:
        say_json(found.plain())
    else:
        console().print(page(found, top))


def _final(settings: Any, role: str | None, mode: str | None, at: str | None) -> Any:
    """The newest final of a role and mode. Exit status 1 if there is none."""
    from tools.cli.control import time_ms
    from tools.published import answered, chosen, mode_in_force

    at_ms = time_ms(at, "--at")
    if role is None:
        raise _role_missing(settings)
    within = mode_in_force(settings, at_ms) if mode is None else mode
    wanted = chosen(role, within, status=("FINAL",), at_ms=at_ms)
    found = answered(settings, lambda source: source.standing(wanted))
    if not found:
        none = f"no final ranking of role {wanted.role}, mode {wanted.mode} was published by {at}"
        not_found(_none_yet(settings, wanted.role, wanted.mode) if at is None else none)
    return found[0]


def _final_of_tenant(
    settings: Any, tenant: str, role: str | None, mode: str | None, at: str | None
) -> Any:
    """The ranking of a tenant's own traffic. Exit status 1 if there is none."""
    from tools.cli.control import time_ms
    from tools.published import mode_in_force

    at_ms = time_ms(at, "--at")
    if role is None:
        raise _role_missing(settings)
    within = mode_in_force(settings, at_ms) if mode is None else mode
    found = _made(settings, tenant, role, within, at_ms)
    if not found:
        not_found(f"tenant {tenant} has no invocation of role {role} in the window")
    return found[0]


def _role_missing(settings: Any) -> Exception:
    from streams.errors import BadConfiguration
    from tools.log_reader import newest_rankings

    roles = sorted({r.role for r in newest_rankings(settings)})
    return BadConfiguration(f"--role is missing; allowed: {', '.join(roles) or 'none yet'}")


@app.command()
def route(
    persona: Annotated[str, typer.Option(help="who asks, for example analyst")],
    role: Role = None,
    mode: Mode = None,
    at: At = None,
    success: Annotated[
        str | None, typer.Option(help="least share of complete responses, as .95 or 95%")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="longest duration at the policy's percentile, as 2s")
    ] = None,
    cost: Annotated[str | None, typer.Option(help="USD per 1,000 tokens at most")] = None,
    min_samples: Annotated[
        int | None, typer.Option(help="complete responses at least", min=0)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="provider/model=persona,persona: who alone may use a model; repeat"),
    ] = None,
    avoid: Annotated[
        list[str] | None, typer.Option(help="provider/model whose breaker is open; repeat")
    ] = None,
    as_json: Json = False,
) -> None:
    """Which model would serve a persona within its limits, and how each candidate was judged.

    Limits that are not given are those of the policy; one that has none there is not tested.
    Exit status 1 if no model may be used at all.
    """
    from streams.errors import BadConfiguration

    if not persona.strip():
        raise BadConfiguration(f"--persona is {persona!r}; allowed: a name, for example analyst")
    from processors.router import Circumstances, limits_of
    from processors.router import route as decide
    from streams import settings
    from tools.cli import arguments
    from tools.cli.known import hint
    from tools.published import answered
    from tools.session import cluster
    from tools.units import picousd

    given = {
        "success": None if success is None else arguments.share(success, "--success"),
        "latency_us": None if latency is None else arguments.duration_us(latency, "--latency"),
        "cost_picousd_per_1k": None if cost is None else picousd(cost, "--cost"),
        "min_samples": min_samples,
    }
    who = dict(arguments.of_model(text, "--only", "persona,persona") for text in only or ())
    around = Circumstances(
        personas={m: frozenset(p.strip() for p in text.split(",")) for m, text in who.items()},
        broken=frozenset(arguments.model(text, "--avoid") for text in avoid or ()),
    )
    with cluster(settings.load()) as session:
        record = _final(session.settings, role, mode, at)
        policy = answered(session.settings, lambda s: s.policy(record.policy_event_id))
    if policy is None:
        not_found(f"the log no longer has the policy {record.policy_event_id}", as_json)
    hint([record], None, [*around.personas, *around.broken])
    found = decide(record, policy.event, persona, limits_of(policy.event, **given), around)
    if as_json:
        say_json(found.plain())
    else:
        from tools.route_table import page

        console().print(page(found))
    if found.pick is None:
        raise typer.Exit(1)


@app.command("what-if")
def what_if(
    role: Role = None,
    mode: Mode = None,
    weights: Annotated[
        str | None, typer.Option(help="quality,cost,latency,reliability, as 4000,1500,1500,3000")
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="provider/model=FACTOR of what it cost; repeat")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="provider/model that would not be there; repeat")
    ] = None,
    window: Annotated[str | None, typer.Option(help="length of the window, as 6h")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="first final; default: 24 h before --to")
    ] = None,
    to: Annotated[str | None, typer.Option(help="finals before this time; default: now")] = None,
    chart: Annotated[str | None, typer.Option(help="FILE.svg: who led, and would have")] = None,
    as_json: Json = False,
) -> None:
    """Score history again: who would have led under other weights, prices, models or windows.

    From the projector's panes with the code of the published rankings; where there are none, from
    the published finals (not --window).
    """
    from pathlib import Path

    from processors.what_if import Assumptions
    from streams import settings
    from streams.errors import BadConfiguration
    from tools import what_if as verb
    from tools.cli import arguments
    from tools.cli.control import time_ms
    from tools.cli.known import hint
    from tools.log_reader import newest_rankings
    from tools.published import chosen, mode_in_force
    from tools.session import cluster
    from tools.what_if_table import page

    last = time_ms(to, "--to", now=True)
    first = time_ms(from_, "--from")
    assert last is not None
    if first is None:
        first = last - DAY_MS
    if first >= last:
        raise BadConfiguration(f"--to is {to or 'now'}; allowed: a time after --from, {from_}")
    if chart is not None and not chart.lower().endswith(".svg"):
        raise BadConfiguration(
            f"--chart is {chart!r}; allowed: a file ending with .svg (others can be made of it)"
        )
    loaded = settings.load()
    prices = [arguments.of_model(text, "--price", "FACTOR") for text in price or ()]
    assumed = Assumptions(
        weights=None if weights is None else arguments.weights(weights, "--weights"),
        prices={name: arguments.factor(factor, "--price") for name, factor in prices},
        drop=frozenset(arguments.model(text, "--drop") for text in drop or ()),
        window_panes=None if window is None else _panes(window, loaded.pane_ms),
    )
    if assumed == Assumptions():
        raise BadConfiguration("nothing is assumed: give --weights, --price, --drop or --window")
    with cluster(loaded) as session:
        if role is None:
            raise _role_missing(session.settings)
        within = mode_in_force(session.settings, last) if mode is None else mode
        wanted = chosen(role, within)
        assert wanted.role is not None and wanted.mode is not None
        stretch = verb.Stretch(wanted.role, wanted.mode, first, last)
        found = verb.what_if(session.settings, stretch, assumed)
        if assumed.prices or assumed.drop:
            ranked = [r for r in newest_rankings(session.settings) if r.role == wanted.role]
            hint(ranked, None, [*assumed.prices, *sorted(assumed.drop)])
    title = f"{wanted.role} · {wanted.mode}: what if {_told(assumed, loaded.pane_ms)}"
    if chart is not None:
        from tools.step_chart import chart as drawn

        try:
            Path(chart).write_text(drawn(found, title), encoding="utf-8")
        except OSError as error:
            raise BadConfiguration(f"--chart is {chart!r}: {error.strerror}") from None
    if as_json:
        say_json(found.plain())
    else:
        console().print(page(found, title))


DAY_MS = 86_400_000


def _panes(text: str, pane_ms: int) -> int:
    """A window's length in panes. Raises BadConfiguration."""
    from streams.errors import BadConfiguration
    from tools.cli import arguments

    most = 10_000
    us = arguments.duration_us(text, "--window", max(DAY_MS, most * pane_ms) * 1000)
    panes, rest = divmod(us, pane_ms * 1000)
    if rest or not 1 <= panes <= most:
        raise BadConfiguration(
            f"--window is {text!r}; allowed: whole panes of {pane_ms / 1000:g} s, at most {most:,}"
        )
    return panes


def _told(assumed: Any, pane_ms: int) -> str:
    """Assumptions in a line."""
    from tools.units import lasting

    said = []
    if assumed.weights is not None:
        said.append("weights " + ",".join(map(str, assumed.weights)))
    said += [f"{name} at {factor / 100:g}% of its price" for name, factor in assumed.prices.items()]
    said += [f"without {name}" for name in sorted(assumed.drop)]
    if assumed.window_panes is not None:
        said.append(f"window {lasting(assumed.window_panes * pane_ms)}")
    return "; ".join(said)
