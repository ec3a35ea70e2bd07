"""The command line. Each command imports what it needs when it runs, so that --help is quick.

Exit status: 0 done; 1 a check or comparison found something; 2 a mistake that the user can mend,
told in one line; 130 interrupted.
"""

import os
import sys
from typing import Annotated

import typer

from tools import cli
from tools.cli.output import Json, say_json

app = typer.Typer(
    name="roster",
    help="Which model plays which role, for whom, in which mode, and why.",
    no_args_is_help=True,
    add_completion=False,
    epilog=cli.EPILOG,
    pretty_exceptions_enable=False,
)


@app.command()
def kafka(
    port: Annotated[int | None, typer.Option(help="default: 9092, a free one if taken")] = None,
    advertise: Annotated[
        str | None, typer.Option(envvar="ROSTER_ADVERTISE", help="host that clients are told")
    ] = None,
) -> None:
    """Run the broker alone, in the foreground."""
    from streams import settings
    from tools import stack

    stack.run_kafka(settings.load(), port, advertise)


@app.command()
def registry(
    port: Annotated[int | None, typer.Option(help="default: 8081, a free one if taken")] = None,
) -> None:
    """Run the schema registry alone, in the foreground; its state is in the broker."""
    from streams import settings
    from tools import stack

    stack.run_registry(settings.load(), port)


@app.command()
def jars(
    relock: Annotated[bool, typer.Option(help="resolve anew and write jars.lock")] = False,
    as_json: Json = False,
) -> None:
    """Fetch what broker and registry need into the cache, and check it."""
    from streams import settings
    from tools import jars as verb
    from tools import stack

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    cache = settings.load().cache
    if relock:
        verb.relock(say)
    stack.prepare(cache, say)
    if as_json:
        say_json({"cache": str(cache), "jars": [jar.coordinate for jar in verb.installed()]})


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine, the packages and the running system; say what to do."""
    from streams import settings
    from tools import doctor as verb

    raise typer.Exit(verb.show(verb.examine(settings.load()), as_json))


@app.command()
def healthy(
    name: Annotated[str, typer.Argument(help="kafka, registry, agents, ...")],
    as_json: Json = False,
) -> None:
    """Exit status 0 if that process works here, else 1: for health checks of containers."""
    from streams import settings
    from tools import doctor as verb

    well = verb.healthy(settings.load(), name)
    if as_json:
        say_json({"process": name, "healthy": well})
    raise typer.Exit(0 if well else 1)


cli.add(app)


def main() -> None:
    """Console script `roster`."""
    from streams.errors import RosterError

    try:
        app()
    except RosterError as error:
        print(f"roster: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `roster ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
