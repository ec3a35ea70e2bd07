"""roster profiles ..."""

import sys
from typing import Annotated, Any

import typer

from tools.cli.output import Json, not_found, show, show_one

app = typer.Typer(no_args_is_help=True, help="Which model plays which role: read and change.")

Scope = Annotated[str, typer.Argument(help="system, mode, tenant:T or user:T/U")]
Role = Annotated[str, typer.Argument(help="role, by its name or an alias")]
Mode = Annotated[str, typer.Argument(help="deployment mode, by its name or an alias")]
Expected = Annotated[
    int | None, typer.Option(help="refuse if the profile has another version; 0: none yet")
]
Actor = Annotated[str | None, typer.Option(help="who decides; default: your account's name")]
Reason = Annotated[str | None, typer.Option(help="why")]


def add(root: typer.Typer) -> None:
    """Registers the commands."""
    root.add_typer(app, name="profiles")


@app.command("list")
def list_(
    role: Annotated[str | None, typer.Option(help="only this role")] = None,
    mode: Annotated[str | None, typer.Option(help="only this mode")] = None,
    as_json: Json = False,
) -> None:
    """All profiles in force."""
    from schemas import ModelProfileActive
    from schemas.values import canonical_mode, canonical_role
    from streams import settings
    from streams.topics import MODEL_PROFILE_ACTIVE
    from tools.log_reader import newest
    from tools.session import cluster

    with cluster(settings.load()) as session:
        found = newest(session.settings, MODEL_PROFILE_ACTIVE, ModelProfileActive)
    rows = [
        _row(recorded)
        for recorded in found.values()
        if role is None or recorded.event.role == canonical_role(role)
        if mode is None or recorded.event.deployment_mode == canonical_mode(mode)
    ]
    columns = ("scope", "role", "deployment_mode", "version", "model", "fallbacks", "actor")
    show(rows, as_json, {name: name.removeprefix("deployment_") for name in columns})


@app.command()
def get(
    role: Role,
    mode: Mode,
    tenant: Annotated[str | None, typer.Option(help="also look into this tenant's layer")] = None,
    user: Annotated[str | None, typer.Option(help="and this user's, within the tenant")] = None,
    as_json: Json = False,
) -> None:
    """The profile in force, with the layer it comes from: user, tenant, mode, system."""
    from streams import settings
    from streams.errors import BadConfiguration, Unreachable
    from streams.profiles_reader import ProfilesReader
    from tools.session import cluster

    if user is not None and tenant is None:
        raise BadConfiguration("--user needs --tenant")
    with (
        cluster(settings.load()) as session,
        ProfilesReader(session.settings.need_kafka(), session.settings.need_registry()) as reader,
    ):
        if not reader.wait_ready(20):
            raise Unreachable(f"the profiles cannot be read: {reader.trouble or 'no answer'}")
        found = reader.get(role, mode, tenant, user)
    if found is None:
        not_found(f"no profile for role {role}, mode {mode}", as_json)
    fields = {"layer": found.layer, "partition": found.partition, "offset": found.offset}
    show_one({**found.profile.model_dump(mode="json"), **fields}, as_json)


@app.command("set")
def set_(
    scope: Scope,
    role: Role,
    mode: Mode,
    model: Annotated[str, typer.Option(help="provider/model")],
    fallback: Annotated[
        list[str] | None, typer.Option(help="provider/model to try after it; repeat in order")
    ] = None,
    base_url: Annotated[str, typer.Option(help="of the endpoint; empty: the provider's own")] = "",
    temperature: Annotated[float, typer.Option(help="0 to 2")] = 0.2,
    max_tokens: Annotated[int | None, typer.Option(help="limit of output tokens")] = None,
    extra: Annotated[str, typer.Option(help="further arguments, a JSON object")] = "{}",
    credential_ref: Annotated[
        str | None, typer.Option(help="env://NAME or vault://PATH; never the key itself")
    ] = None,
    expected_version: Expected = None,
    actor: Actor = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Set a profile and wait for the verdict: active, or rejected with a reason (exit status 1)."""
    _change(
        {
            "scope": scope,
            "role": role,
            "deployment_mode": mode,
            "action": "SET",
            "model": model,
            "fallbacks": fallback or [],
            "base_url": base_url,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "extra": extra,
            "credential_ref": credential_ref,
            "expected_version": expected_version,
            "reason": reason,
        },
        actor,
        as_json,
    )


@app.command()
def delete(
    scope: Scope,
    role: Role,
    mode: Mode,
    expected_version: Expected = None,
    actor: Actor = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Delete a profile: the next layer takes over. Its history stays."""
    _change(
        {
            "scope": scope,
            "role": role,
            "deployment_mode": mode,
            "action": "DELETE",
            "expected_version": expected_version,
            "reason": reason,
        },
        actor,
        as_json,
    )


@app.command()
def history(scope: Scope, role: Role, mode: Mode, as_json: Json = False) -> None:
    """Every change of one profile: when, by whom, and what the fold made of it."""
    from schemas.values import canonical_mode, canonical_role
    from streams import settings
    from tools.profiles import history as changes
    from tools.session import cluster
    from tools.units import moment

    role, mode = canonical_role(role), canonical_mode(mode)
    with cluster(settings.load()) as session:
        found = changes(session.settings, scope, role, mode)
    if not found:
        not_found(f"{scope}/{role}/{mode} was never set", as_json)
    rows = [
        {
            "offset": change.recorded.at.offset,
            "partition": change.recorded.at.partition,
            "appended": moment(change.recorded.at.append_ms),
            "actor": change.recorded.event.actor,
            "action": change.recorded.event.action.value,
            "model": change.recorded.event.model or None,
            "verdict": change.verdict,
            "version": change.version,
            "why": change.why or change.recorded.event.reason,
            "event": change.recorded.event.model_dump(mode="json"),
        }
        for change in found
    ]
    columns = ("offset", "appended", "actor", "action", "model", "verdict", "version", "why")
    show(rows, as_json, {name: name for name in columns})


def _change(fields: dict[str, object], actor: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from streams import settings
    from tools.profiles import change
    from tools.session import actor as account
    from tools.session import cluster

    with cluster(settings.load()) as session:
        # Where nothing runs nobody decides: there is no verdict to wait for.
        wait = {"within_s": 0.0} if session.fresh else {}
        verdict = change(session.settings, {**fields, "actor": actor or account()}, **wait)
    where = f"model.profile.updated[{verdict.partition}] offset {verdict.offset}"
    if as_json:
        from tools.cli.output import say_json

        say_json({**asdict(verdict), "decided_later": session.fresh})
    elif verdict.verdict == "active":
        print(f"active, version {verdict.version} ({where})")
    elif verdict.verdict == "deleted":
        print(f"deleted ({where})")
    elif verdict.verdict == "rejected":
        print(f"rejected, {verdict.why} (event {verdict.verdict_event_id}, {where})")
    elif session.fresh:
        print(f"published ({where}); it is decided when `roster agents` runs")
    else:
        print(f"published ({where}), but no verdict came: do the agents run?", file=sys.stderr)
    if verdict.verdict == "rejected" or (verdict.verdict == "unknown" and not session.fresh):
        raise typer.Exit(1)


def _row(recorded: Any) -> dict[str, Any]:
    at = {"partition": recorded.at.partition, "offset": recorded.at.offset}
    return {**recorded.event.model_dump(mode="json"), **at}
