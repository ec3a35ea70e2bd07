"""roster rankings, sql"""

from typing import Annotated

import typer

from tools.cli.output import Json, console, not_found, say_json, show


def add(root: typer.Typer) -> None:
    """Registers the commands."""
    root.command()(rankings)
    root.command()(sql)


def rankings(
    role: Annotated[str | None, typer.Option(help="only this role, name or alias")] = None,
    mode: Annotated[str | None, typer.Option(help="only this mode, name or alias")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="go on until Ctrl-C")] = False,
    as_json: Json = False,
) -> None:
    """The newest ranking of every role and mode."""
    from schemas.values import canonical_mode, canonical_role
    from streams import settings
    from tools.log_reader import newest_rankings
    from tools.ranking_table import tables
    from tools.session import cluster

    wanted_role = None if role is None else canonical_role(role)
    wanted_mode = None if mode is None else canonical_mode(mode)
    with cluster(settings.load()) as session:
        if watch:
            from tools.watch import watch_rankings

            watch_rankings(session.settings, wanted_role, wanted_mode, as_json)
            return
        found = [
            ranking
            for ranking in newest_rankings(session.settings)
            if wanted_role in (None, ranking.role)
            if wanted_mode in (None, ranking.deployment_mode)
        ]
    if as_json:
        say_json([ranking.model_dump(mode="json") for ranking in found])
    elif found:
        console().print(tables(found))
    if not found:
        not_found("no ranking yet: one appears when invocations have been measured")


def sql(
    query: Annotated[str, typer.Argument(help="one statement that reads; - takes standard input")],
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="for spreadsheets")] = False,
    rows: Annotated[int, typer.Option(help="at most so many", min=1, max=100_000)] = 1000,
) -> None:
    """Ask the ledger and its history in SQL: from the running projector, else from its file."""
    import csv
    import sys

    from streams import settings
    from streams.errors import BadConfiguration
    from tools.sql import answer

    if as_json and as_csv:
        raise BadConfiguration("--json and --csv exclude each other")
    text = sys.stdin.read() if query == "-" else query
    found = answer(settings.load(), text, rows)
    if as_json:
        say_json(found)
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(found["columns"])
        writer.writerows(found["rows"])
    else:
        names = _distinct(found["columns"])
        show([dict(zip(names, row, strict=True)) for row in found["rows"]], False, empty="no rows")
    if found["more"]:
        print(f"roster: only the first {rows} rows; --rows asks for more", file=sys.stderr)


def _distinct(names: list[str]) -> list[str]:
    """Two columns of an answer may bear the same name."""
    return [n if names.index(n) == i else f"{n}_{i + 1}" for i, n in enumerate(names)]
