"""roster sql"""

from typing import Annotated

import typer

from tools.cli.output import Json, say_json, show


def add(root: typer.Typer) -> None:
    """Registers the commands."""
    root.command()(sql)


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
