"""roster models ..."""

from typing import Annotated, Any

import typer

from tools.cli.output import Json, not_found, show, show_one
from tools.cli.statement import Actor, Reason, publish_one

app = typer.Typer(no_args_is_help=True, help="The catalogue of models: read and change.")

Provider = Annotated[str, typer.Argument()]
Model = Annotated[str, typer.Argument(help="its name at the provider")]
Role = Annotated[list[str] | None, typer.Option(help="what it is meant for; repeat")]
Capability = Annotated[list[str] | None, typer.Option(help="for example tools or vision; repeat")]
Persona = Annotated[list[str] | None, typer.Option(help="only these may use it; repeat")]
Note = Annotated[str | None, typer.Option(help="what those who operate it should know")]


def add(root: typer.Typer) -> None:
    """Registers the commands."""
    root.add_typer(app, name="models")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All models that are registered, have a price or are ranked; prices are today's, in USD per
    million tokens."""
    columns = {
        "provider": "provider",
        "model": "model",
        "tier": "tier",
        "context_tokens": "context",
        "input": "input",
        "cached": "cached",
        "output": "output",
        "ranked_in": "ranked in",
        "registered": "registered",
    }
    show(_table(), as_json, columns, empty="no model is registered, has a price or was used yet")


@app.command("show")
def show_(provider: Provider, model: Model, as_json: Json = False) -> None:
    """All that is known of one model."""
    found = [row for row in _table() if (row["provider"], row["model"]) == (provider, model)]
    if not found:
        not_found(f"{provider}/{model} is not registered, has no price and is not ranked", as_json)
    show_one(found[0], as_json)


@app.command("set")
def set_(
    provider: Provider,
    model: Model,
    tier: Annotated[str | None, typer.Option(help="for example small or large")] = None,
    context_tokens: Annotated[str | None, typer.Option(help="most tokens it takes in")] = None,
    max_output_tokens: Annotated[str | None, typer.Option(help="most tokens of an answer")] = None,
    quantization: Annotated[str | None, typer.Option(help="for example q4_k_m")] = None,
    licence: Annotated[str | None, typer.Option(help="of its weights, or terms of use")] = None,
    parameters_millions: Annotated[str | None, typer.Option(help="its size")] = None,
    role: Role = None,
    capability: Capability = None,
    persona: Persona = None,
    revision: Annotated[str | None, typer.Option(help="for example a commit or a date")] = None,
    strengths: Annotated[str | None, typer.Option(help="what it is good at")] = None,
    notes: Note = None,
    actor: Actor = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Register a model, or change the facts that are named: the others stay as they are. An empty
    text takes a fact back."""
    from schemas import ModelRegistered
    from schemas.values import canonical_role
    from streams.topics import MODEL_REGISTERED
    from tools.models import facts, registered
    from tools.session import actor as account

    one = {
        "tier": tier,
        "context_tokens": context_tokens,
        "max_output_tokens": max_output_tokens,
        "quantization": quantization,
        "licence": licence,
        "parameters_millions": parameters_millions,
        "revision": revision,
        "strengths": strengths,
        "notes": notes,
    }
    many = {
        "roles": role and [canonical_role(name) for name in role],
        "capabilities": capability,
        "allowed_personas": persona,
    }
    changes = {
        **{name: value or None for name, value in one.items() if value is not None},
        **{name: _distinct(values) for name, values in many.items() if values},
    }

    def fields(recorded: list[Any]) -> dict[str, object]:
        before = registered(recorded).get((provider, model))
        return {
            "provider": provider,
            "model": model,
            "action": "SET",
            **({} if before is None else facts(before.event)),
            **changes,
            "actor": actor or account(),
            "reason": reason,
        }

    publish_one(MODEL_REGISTERED, ModelRegistered, fields, as_json)


@app.command()
def delete(
    provider: Provider,
    model: Model,
    actor: Actor = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Take a model out of the catalogue. Its history, prices and rankings stay."""
    from schemas import ModelRegistered
    from streams.topics import MODEL_REGISTERED
    from tools.models import registered
    from tools.session import actor as account

    def fields(recorded: list[Any]) -> dict[str, object]:
        if (provider, model) not in registered(recorded):
            not_found(f"{provider}/{model} is not registered", as_json)
        return {
            "provider": provider,
            "model": model,
            "action": "DELETE",
            "actor": actor or account(),
            "reason": reason,
        }

    publish_one(MODEL_REGISTERED, ModelRegistered, fields, as_json)


def _table() -> list[dict[str, Any]]:
    from schemas import ModelRegistered, RateCardUpdated
    from streams import settings
    from streams.topics import MODEL_REGISTERED, RATE_CARD_UPDATED
    from tools.log_reader import events, newest_rankings
    from tools.models import table
    from tools.publish import now_ms
    from tools.session import cluster

    with cluster(settings.load()) as session:
        return table(
            events(session.settings, MODEL_REGISTERED, ModelRegistered),
            events(session.settings, RATE_CARD_UPDATED, RateCardUpdated),
            newest_rankings(session.settings),
            now_ms(),
        )


def _distinct(values: list[str]) -> list[str]:
    """Each once, in the order given; [""] is none."""
    return [] if values == [""] else list(dict.fromkeys(values))
