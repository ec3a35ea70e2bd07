"""roster quality, benchmarks, recommendations"""

from typing import Annotated, Any

import typer

from tools.cli.output import Json, show
from tools.cli.statement import publish_one

quality = typer.Typer(no_args_is_help=True, help="What was seen of models' quality.")
benchmarks = typer.Typer(no_args_is_help=True, help="Results of benchmarks of models.")
recommendations = typer.Typer(no_args_is_help=True, help="Models that lead, but are not in force.")

Provider = Annotated[str, typer.Argument()]
Model = Annotated[str, typer.Argument(help="as invocations name it")]
OnlyRole = Annotated[str | None, typer.Option("--role", help="only this role")]


def add(root: typer.Typer) -> None:
    """Registers the commands."""
    root.add_typer(quality, name="quality")
    root.add_typer(benchmarks, name="benchmarks")
    root.add_typer(recommendations, name="recommendations")


@quality.command("add")
def quality_add(
    provider: Provider,
    model: Model,
    role: Annotated[str, typer.Option(help="what it was used for, name or alias")],
    tenant: Annotated[str, typer.Option(help="whose answers they were")],
    good: Annotated[bool | None, typer.Option("--good/--bad", help="of one answer")] = None,
    hits: Annotated[int | None, typer.Option(help="good ones among --n answers")] = None,
    n: Annotated[int | None, typer.Option("--n", help="answers that were looked at")] = None,
    metric: Annotated[
        str, typer.Option(help="for example quality, policy_compliance, refusal_accuracy")
    ] = "quality",
    invocation: Annotated[str | None, typer.Option(help="event_id of the invocation")] = None,
    judge: Annotated[str | None, typer.Option(help="who or what judged")] = None,
    mode: Annotated[str | None, typer.Option(help="deployment mode it happened in")] = None,
    as_json: Json = False,
) -> None:
    """Say whether answers of a model were good."""
    from schemas import ModelQualityObserved
    from streams.errors import BadConfiguration
    from streams.topics import MODEL_QUALITY_OBSERVED

    one, several = good is not None, (hits is not None, n is not None)
    if (one and any(several)) or not (one or all(several)):
        raise BadConfiguration("allowed: --good or --bad of one answer, or both --hits and --n")
    given = {
        "tenant": tenant,
        "role": role,
        "provider": provider,
        "model": model,
        "metric": metric,
        "n": 1 if one else n,
        "hits": int(bool(good)) if one else hits,
        "invocation_id": invocation,
        "judge": judge,
        "mode": mode,
    }
    publish_one(MODEL_QUALITY_OBSERVED, ModelQualityObserved, given, as_json, hinted=True)


@benchmarks.command("list")
def benchmarks_list(
    role: OnlyRole = None,
    provider: Annotated[str | None, typer.Option(help="only this provider")] = None,
    model: Annotated[str | None, typer.Option(help="only this model")] = None,
    name: Annotated[str | None, typer.Option(help="only this metric")] = None,
    as_json: Json = False,
) -> None:
    """All results, in the order of their times. The newest of a model and metric counts."""
    from schemas import SlmBenchmarkResults
    from schemas.values import canonical_role
    from streams import settings
    from streams.topics import SLM_BENCHMARK_RESULTS
    from tools.log_reader import events
    from tools.session import cluster
    from tools.units import moment

    with cluster(settings.load()) as session:
        found = events(session.settings, SLM_BENCHMARK_RESULTS, SlmBenchmarkResults)
    rows = [
        {
            **event.model_dump(mode="json"),
            "role": None if event.role is None else canonical_role(event.role),
            "partition": at.partition,
            "offset": at.offset,
            "at": moment(event.occurred_at_ms),
            "interval": None if event.ci_low is None else f"{event.ci_low:g} to {event.ci_high:g}",
        }
        for event, at in sorted(
            ((recorded.event, recorded.at) for recorded in found),
            key=lambda one: (one[0].occurred_at_ms, one[1].partition, one[1].offset),
        )
        if provider in (None, event.provider)
        if model in (None, event.model)
        if name in (None, event.name)
        if role is None or event.role is None or canonical_role(event.role) == canonical_role(role)
    ]
    names = ("at", "provider", "model", "name", "value", "scale", "direction", "interval")
    show(rows, as_json, {name: name for name in (*names, "n", "role", "tool")})


@benchmarks.command("add")
def benchmarks_add(
    provider: Provider,
    model: Model,
    name: Annotated[str, typer.Argument(help="of the metric: rouge, wer, factual_accuracy, ...")],
    value: Annotated[float, typer.Argument()],
    scale: Annotated[
        str, typer.Option(help="UNIT (0 to 1), PERCENT (0 to 100) or RAW (its own unit)")
    ] = "UNIT",
    direction: Annotated[
        str | None, typer.Option(help="HIGHER or LOWER is better; default: as known of the name")
    ] = None,
    role: Annotated[str | None, typer.Option(help="it counts for; default: for all")] = None,
    n: Annotated[int | None, typer.Option("--n", help="cases")] = None,
    ci_low: Annotated[float | None, typer.Option(help="lower end of its 95 % interval")] = None,
    ci_high: Annotated[float | None, typer.Option(help="upper end of it")] = None,
    tool: Annotated[str | None, typer.Option(help="that computed it")] = None,
    tool_version: Annotated[str | None, typer.Option()] = None,
    signature: Annotated[str | None, typer.Option(help="of the tool's settings")] = None,
    dataset: Annotated[str | None, typer.Option(help="its name")] = None,
    dataset_hash: Annotated[str | None, typer.Option()] = None,
    split: Annotated[str | None, typer.Option(help="of the dataset")] = None,
    prompts: Annotated[str | None, typer.Option(help="version of the prompts")] = None,
    seed: Annotated[int | None, typer.Option(help="of the run")] = None,
    judge_model: Annotated[str | None, typer.Option(help="that judged")] = None,
    at: Annotated[str | None, typer.Option(help="ISO 8601 time of the run; default: now")] = None,
    as_json: Json = False,
) -> None:
    """Add a result of a benchmark run."""
    from schemas import SlmBenchmarkResults
    from schemas.quality import DIRECTIONS
    from streams.errors import BadConfiguration
    from streams.topics import SLM_BENCHMARK_RESULTS
    from tools.cli.control import time_ms

    if direction is None and name not in DIRECTIONS:
        raise BadConfiguration(
            f"--direction is missing: {name} has none of its own; allowed: HIGHER, LOWER"
        )
    if ci_low is not None and ci_high is not None and not ci_low <= value <= ci_high:
        raise BadConfiguration(
            f"--ci-low {ci_low:g} and --ci-high {ci_high:g}; allowed: an interval around {value:g}"
        )
    given: dict[str, Any] = {
        "occurred_at_ms": time_ms(at, "--at", now=True),
        "role": role,
        "provider": provider,
        "model": model,
        "name": name,
        "value": value,
        "scale": scale,
        "direction": direction or DIRECTIONS[name].value,
        "n": n,
        "ci_low": ci_low,
        "ci_high": ci_high,
        "tool": tool,
        "tool_version": tool_version,
        "signature": signature,
        "dataset_id": dataset,
        "dataset_hash": dataset_hash,
        "split": split,
        "prompt_set_version": prompts,
        "seed": seed,
        "judge_model": judge_model,
    }
    publish_one(SLM_BENCHMARK_RESULTS, SlmBenchmarkResults, given, as_json, hinted=True)


@recommendations.command("list")
def recommendations_list(
    role: OnlyRole = None,
    mode: Annotated[str | None, typer.Option(help="only this mode")] = None,
    every: Annotated[bool, typer.Option("--all", help="not only the newest of each")] = False,
    as_json: Json = False,
) -> None:
    """What was recommended last for each role and mode, and what was in force then."""
    from schemas import ModelProfileRecommended
    from schemas.values import canonical_mode, canonical_role
    from streams import settings
    from streams.topics import MODEL_PROFILE_RECOMMENDED
    from tools.log_reader import events
    from tools.session import cluster
    from tools.units import clock

    with cluster(settings.load()) as session:
        found = events(session.settings, MODEL_PROFILE_RECOMMENDED, ModelProfileRecommended)
    chosen: dict[tuple[str, ...], Any] = {}
    for event in sorted((r.event for r in found), key=lambda event: event.ranking_as_of_ms):
        key = (event.role, event.deployment_mode)
        chosen[(*key, event.event_id) if every else key] = event
    rows = [
        {
            **event.model_dump(mode="json"),
            "recommended": f"{event.provider}/{event.model}",
            "score_at": f"{event.score:.3f}",
            "current_at": _current(event),
            "leads_since": clock(event.leads_since_ms, day=True),
            "as_of": clock(event.ranking_as_of_ms, day=True),
        }
        for _, event in sorted(chosen.items(), key=lambda item: item[0][:2])
        if role is None or event.role == canonical_role(role)
        if mode is None or event.deployment_mode == canonical_mode(mode)
    ]
    columns = {
        "role": "role",
        "deployment_mode": "mode",
        "recommended": "recommended",
        "score_at": "score",
        "leads_since": "leads since",
        "current_model": "in force then",
        "current_at": "score",
        "as_of": "as of (UTC)",
    }
    show(rows, as_json, columns, empty="nothing is recommended: no leader, or it is in force")


def _current(event: Any) -> str | None:
    """Score of the model in force, and why it is no rival if it is not ranked."""
    score = None if event.current_score is None else f"{event.current_score:.3f}"
    status = None if event.current_status == "ranked" else event.current_status
    return " ".join(part for part in (score, status) if part is not None) or None
