"""roster cards, policies, budgets, mode"""

import json
from typing import Annotated, Any

import typer

from tools.cli.output import Json, not_found, say_json, show
from tools.cli.statement import Actor, Reason, publish_one

cards = typer.Typer(no_args_is_help=True, help="Rate cards: what a unit of a model costs.")
policies = typer.Typer(no_args_is_help=True, help="Scoring policies of roles and modes.")
budgets = typer.Typer(no_args_is_help=True, help="What a tenant may spend.")
mode = typer.Typer(no_args_is_help=True, help="The mode a deployment is in.")

Deployment = Annotated[
    str | None, typer.Option(help="default: ROSTER_DEPLOYMENT, that is main if unset")
]


def add(root: typer.Typer) -> None:
    """Registers the commands."""
    root.add_typer(cards, name="cards")
    root.add_typer(policies, name="policies")
    root.add_typer(budgets, name="budgets")
    root.add_typer(mode, name="mode")


@cards.command("list")
def cards_list(
    provider: Annotated[str | None, typer.Option(help="only this provider")] = None,
    model: Annotated[str | None, typer.Option(help="only this model")] = None,
    as_json: Json = False,
) -> None:
    """All rate cards, in the order of the log."""
    from schemas import RateCardUpdated
    from streams import settings
    from streams.topics import RATE_CARD_UPDATED
    from tools.log_reader import events
    from tools.session import cluster
    from tools.units import moment, usd

    with cluster(settings.load()) as session:
        found = events(session.settings, RATE_CARD_UPDATED, RateCardUpdated)
    rows = [
        {
            **recorded.event.model_dump(mode="json"),
            "offset": recorded.at.offset,
            "usd_per_million": usd(recorded.event.price_picousd_per_million),
            "valid_from": moment(recorded.event.valid_from_ms),
            "valid_to": moment(recorded.event.valid_to_ms),
        }
        for recorded in found
        if provider is None or recorded.event.provider == provider
        if model is None or recorded.event.model == model
    ]
    names = ("provider", "model", "unit", "usd_per_million", "valid_from", "valid_to", "version")
    show(rows, as_json, {name: name for name in names})


@cards.command("set")
def cards_set(
    provider: Annotated[str, typer.Argument()],
    model: Annotated[str, typer.Argument()],
    unit: Annotated[str, typer.Argument(help="INPUT_TOKEN, CACHED_TOKEN or OUTPUT_TOKEN")],
    usd_per_million: Annotated[
        str, typer.Argument(help="price of 1,000,000 units, for example 0.6")
    ],
    valid_from: Annotated[str | None, typer.Option(help="ISO 8601 time; default: now")] = None,
    valid_to: Annotated[str | None, typer.Option(help="ISO 8601 time; default: open")] = None,
    version: Annotated[
        int | None, typer.Option(help="the highest wins; default: one above the newest")
    ] = None,
    origin: Annotated[str | None, typer.Option(help="where the price comes from")] = None,
    as_json: Json = False,
) -> None:
    """Set the price of a unit of a model from a time on."""
    from schemas import RateCardUpdated
    from streams.topics import RATE_CARD_UPDATED
    from tools.units import picousd

    def fields(recorded: list[Any]) -> dict[str, object]:
        same = [
            r.event.version
            for r in recorded
            if (r.event.provider, r.event.model, r.event.unit.value) == (provider, model, unit)
        ]
        return {
            "provider": provider,
            "model": model,
            "unit": unit,
            "price_picousd_per_million": picousd(usd_per_million, "price"),
            "valid_from_ms": time_ms(valid_from, "--valid-from", now=True),
            "valid_to_ms": time_ms(valid_to, "--valid-to"),
            "version": version or max(same, default=0) + 1,
            "origin": origin,
        }

    publish_one(RATE_CARD_UPDATED, RateCardUpdated, fields, as_json)


@policies.command("list")
def policies_list(
    role: Annotated[str | None, typer.Option(help="only this role")] = None,
    mode: Annotated[str | None, typer.Option(help="only this mode")] = None,
    as_json: Json = False,
) -> None:
    """The newest policy of every role and mode; weights in ten-thousandths."""
    from schemas import ScoringPolicyUpdated
    from schemas.values import canonical_mode, canonical_role
    from streams import settings
    from streams.topics import SCORING_POLICY_UPDATED
    from tools.log_reader import newest
    from tools.session import cluster
    from tools.units import seconds, usd

    with cluster(settings.load()) as session:
        found = newest(session.settings, SCORING_POLICY_UPDATED, ScoringPolicyUpdated)
    rows = [
        {
            **recorded.event.model_dump(mode="json"),
            "offset": recorded.at.offset,
            "reference_cost": usd(recorded.event.reference_cost_picousd, 4),
            "reference_latency": seconds(recorded.event.reference_latency_us),
        }
        for recorded in found.values()
        if role is None or canonical_role(recorded.event.role) == canonical_role(role)
        if mode is None or canonical_mode(recorded.event.deployment_mode) == canonical_mode(mode)
    ]
    columns = {
        "role": "role",
        "deployment_mode": "mode",
        "weight_quality": "quality",
        "weight_cost": "cost",
        "weight_latency": "latency",
        "weight_reliability": "reliability",
        "cost_unit": "cost unit",
        "reference_cost": "reference",
        "reference_latency": "reference",
        "latency_percentile": "percentile",
        "actor": "actor",
    }
    show(rows, as_json, columns)


@policies.command("set")
def policies_set(
    role: Annotated[str, typer.Argument()],
    mode: Annotated[str, typer.Argument()],
    changes: Annotated[list[str], typer.Argument(help="FIELD=VALUE ..., as policies list --json")],
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Change fields of a policy; the others stay as they are in the newest one."""
    from schemas import ScoringPolicyUpdated
    from schemas.values import canonical_mode, canonical_role
    from streams.topics import SCORING_POLICY_UPDATED
    from tools.session import actor as account

    chosen, within = canonical_role(role), canonical_mode(mode)

    def fields(recorded: list[Any]) -> dict[str, object]:
        same = [
            r.event
            for r in recorded
            if canonical_role(r.event.role) == chosen
            and canonical_mode(r.event.deployment_mode) == within
        ]
        header = {"event_id", "occurred_at_ms", "source", "trace_id", "budget_trace_id", "persona"}
        before = same[-1].model_dump(mode="json", exclude=header) if same else {}
        return {
            **before,
            **_assignments(changes),
            "role": chosen,
            "deployment_mode": within,
            "actor": actor or account(),
        }

    publish_one(SCORING_POLICY_UPDATED, ScoringPolicyUpdated, fields, as_json, _kept)


@budgets.command("list")
def budgets_list(
    tenant: Annotated[str | None, typer.Option(help="only this tenant")] = None,
    as_json: Json = False,
) -> None:
    """The budgets in force. What is spent of them: `roster sql 'FROM budget_spend'`."""
    from schemas import BudgetUpdated
    from streams import settings
    from streams.topics import BUDGET_UPDATED
    from tools.log_reader import newest
    from tools.session import cluster
    from tools.units import usd

    with cluster(settings.load()) as session:
        found = newest(session.settings, BUDGET_UPDATED, BudgetUpdated)
    rows = [
        {
            **recorded.event.model_dump(mode="json"),
            "offset": recorded.at.offset,
            "cap": usd(recorded.event.cap_picousd),
        }
        for recorded in found.values()
        if tenant is None or recorded.event.tenant == tenant
    ]
    names = ("tenant", "budget", "cap", "period", "thresholds", "at_cap", "actor")
    show(rows, as_json, {name: name for name in names})


@budgets.command("set")
def budgets_set(
    tenant: Annotated[str, typer.Argument()],
    budget: Annotated[str, typer.Argument(help="its name within the tenant")],
    cap_usd: Annotated[str, typer.Option(help="what may be spent in a period")],
    period: Annotated[str, typer.Option(help="HOUR, DAY or MONTH, in UTC")] = "DAY",
    thresholds: Annotated[str, typer.Option(help="percent of the cap, ascending")] = "80,100",
    at_cap: Annotated[str, typer.Option(help="DENY, DOWNGRADE or ALLOW_EMERGENCY")] = "DOWNGRADE",
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Set a budget."""
    from schemas import BudgetUpdated
    from streams.topics import BUDGET_UPDATED
    from tools.session import actor as account
    from tools.units import picousd

    given = {
        "tenant": tenant,
        "budget": budget,
        "cap_picousd": picousd(cap_usd, "--cap-usd"),
        "period": period,
        "thresholds": [part.strip() for part in thresholds.split(",")],
        "at_cap": at_cap,
        "actor": actor or account(),
    }
    publish_one(BUDGET_UPDATED, BudgetUpdated, lambda _: given, as_json)


@mode.command("get")
def mode_get(deployment: Deployment = None, as_json: Json = False) -> None:
    """The mode the deployment is in, and since when."""
    from schemas.values import canonical_mode
    from streams import settings
    from tools.published import mode_change
    from tools.session import cluster
    from tools.units import moment

    with cluster(settings.load()) as session:
        wanted = deployment or session.settings.deployment
        found = mode_change(session.settings, wanted)
    if found is None:
        not_found(f"deployment {wanted} has never set a mode", as_json)
    event = found.event
    row = {**event.model_dump(mode="json"), "to_mode": canonical_mode(event.to_mode)}
    if as_json:
        say_json({**row, "offset": found.at.offset})
    else:
        print(f"{row['to_mode']} since {moment(event.occurred_at_ms)}, by {event.actor}")


@mode.command("set")
def mode_set(
    to: Annotated[str, typer.Argument(help="LOCAL, DEVELOPMENT, TEST, TRAINING or PRODUCTION")],
    deployment: Deployment = None,
    actor: Actor = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Switch the deployment to another mode."""
    from schemas import ModeChanged
    from schemas.values import MODE_ALIASES, MODES, canonical_mode
    from streams import settings
    from streams.errors import BadConfiguration
    from streams.topics import MODE_CHANGED
    from tools.session import actor as account

    if canonical_mode(to) not in MODES:
        raise BadConfiguration(
            f"mode is {to!r}; allowed: {', '.join(MODES)}, or {', '.join(sorted(MODE_ALIASES))}"
        )
    given = {
        "deployment": deployment or settings.load().deployment,
        "to_mode": canonical_mode(to),
        "actor": actor or account(),
        "reason": reason,
    }
    publish_one(MODE_CHANGED, ModeChanged, lambda _: given, as_json)


def _kept(policy: Any) -> None:
    """Raises BadConfiguration if facts are not kept for as long as a policy looks back."""
    from streams import settings
    from streams.errors import BadConfiguration

    longest = settings.load().longest_panes
    if policy.window_panes > longest:
        raise BadConfiguration(
            f"window_panes is {policy.window_panes}; allowed: 1 to {longest}, or set"
            " ROSTER_WINDOW_PANES higher for meters and agents first"
        )


def _assignments(pairs: list[str]) -> dict[str, object]:
    from streams.errors import BadConfiguration

    found: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadConfiguration(f"{pair!r} is no change; allowed: FIELD=VALUE")
        found[name] = _value(name, value)
    return found


def _value(name: str, text: str) -> object:
    """A field of a policy as it was typed: a list with commas, benchmarks in JSON, null for none.
    Raises BadConfiguration."""
    from streams.errors import BadConfiguration

    if name in ("evidence_modes", "quality_metrics"):
        return text.split(",") if text else []
    if name.startswith("sla_") and text == "null":
        return None
    if name != "benchmarks":
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadConfiguration(
            f"benchmarks is {text!r}; allowed: a JSON array such as"
            ' [{"name": "rouge", "weight": 1, "floor_e9": 0, "target_e9": 600000000}]'
            f" ({error})"
        ) from None


def time_ms(text: str | None, field: str, now: bool = False) -> int | None:
    """A time as a person writes it, in milliseconds. Raises BadConfiguration."""
    from datetime import UTC, datetime

    from streams.errors import BadConfiguration
    from tools.publish import now_ms

    if text is None:
        return now_ms() if now else None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadConfiguration(
            f"{field} is {text!r}; allowed: an ISO 8601 time such as 2025-01-31T12:00:00Z"
        ) from None
    return int(at.replace(tzinfo=at.tzinfo or UTC).timestamp() * 1000)
