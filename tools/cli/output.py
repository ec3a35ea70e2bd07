"""How commands answer: tables for people, JSON for machines."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="for machines")]
NOT_FOUND: Final = 1
WIDE: Final = 10_000  # columns, where nobody looks at a terminal: nothing is folded


def console() -> "Console":
    """Standard output; as wide as needed when it is a file or a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def say_json(value: object) -> None:
    """One JSON document on a line."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def show(
    rows: Sequence[Mapping[str, Any]],
    as_json: bool,
    columns: Mapping[str, str] | None = None,
    empty: str = "nothing found",
) -> None:
    """Rows as a table or as one JSON array. columns: field -> heading (default: all fields);
    JSON always holds all fields."""
    if as_json:
        say_json(list(rows))
        return
    if not rows:
        print(empty)
        return
    from rich.table import Table
    from rich.text import Text

    chosen = columns or {name: name for name in rows[0]}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, heading in chosen.items():
        right = all(isinstance(row[name], (int, float)) for row in rows)
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in chosen))
    console().print(table)


def show_one(row: Mapping[str, Any], as_json: bool) -> None:
    """One thing, a field a line."""
    if as_json:
        say_json(row)
        return
    width = max(len(name) for name in row)
    for name, value in row.items():
        print(f"{name:<{width}}  {_cell(value)}")


def not_found(text: str, as_json: bool = False) -> NoReturn:
    """Says that there is no such thing; exit status 1."""
    if as_json:
        say_json(None)
    print(f"roster: {text}", file=sys.stderr)
    raise typer.Exit(NOT_FOUND)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return str(value)
