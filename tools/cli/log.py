"""roster publish, topics, schemas, dead-letters, verify"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.cli.output import Json, not_found, say_json, show, show_one

letters = typer.Typer(no_args_is_help=True, help="Records that could not be taken, and why.")


def add(root: typer.Typer) -> None:
    """Registers the commands."""
    root.command()(publish)
    root.command()(topics)
    root.command()(schemas)
    root.add_typer(letters, name="dead-letters")
    root.command()(verify)


def publish(
    topic: Annotated[str, typer.Argument(help="for example llm.invocation")],
    file: Annotated[str, typer.Argument(help="JSON lines or an Avro file; - is standard input")],
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="send the good events and list the others")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish events. All are checked first; if any is bad, none is sent (unless --skip-bad).

    event_id, occurred_at_ms and source are filled in where they are absent.
    """
    from streams import settings
    from streams.registry import Catalogue, Registry
    from tools import publish as verb
    from tools.session import cluster

    into = verb.open_topic(topic)
    batch = verb.read(into, _content(file), verb.now_ms())
    for bad in batch.bad:
        print(f"roster: {file} line {bad.line}: {bad.error}", file=sys.stderr)
    if batch.bad and not skip_bad:
        print(
            f"roster: nothing was sent: {len(batch.bad)} of {len(batch.bad) + len(batch.good)}"
            " events are bad; correct them, or --skip-bad sends the others",
            file=sys.stderr,
        )
        if as_json:
            _outcome(into.name, 0, batch.bad)
        raise typer.Exit(2)
    if batch.good:
        with (
            cluster(settings.load()) as session,
            Registry(session.settings.need_registry()) as registry,
            _progress(len(batch.good), as_json) as advance,
        ):
            bootstrap = session.settings.need_kafka()
            verb.send(bootstrap, Catalogue(registry, [into]), into, batch.good, advance)
    if as_json:
        _outcome(into.name, len(batch.good), batch.bad)
    else:
        left = f", {len(batch.bad)} left out (above)" if batch.bad else ""
        print(f"{len(batch.good)} events acknowledged on {into.name}{left}")
    if batch.bad:
        raise typer.Exit(1)


def _outcome(topic: str, sent: int, bad: Any) -> None:
    say_json(
        {
            "topic": topic,
            "sent": sent,
            "bad": [{"line": item.line, "error": item.error} for item in bad],
        }
    )


def _content(file: str) -> bytes:
    from streams.errors import BadConfiguration

    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise BadConfiguration(f"{file}: {error.strerror}; allowed: a file, or -") from None


def _progress(total: int, as_json: bool) -> Any:
    """Context manager that yields what counts acknowledged events; a bar on a terminal only."""
    import contextlib

    if as_json or not sys.stderr.isatty() or total < 1000:
        return contextlib.nullcontext(lambda n: None)

    @contextlib.contextmanager
    def shown() -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=total)
            yield lambda n: progress.advance(task, n)

    return shown()


def topics(
    create: Annotated[
        bool,
        typer.Option("--create", help="make what is missing, register schemas, publish defaults"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Topics as declared and as found. Exit status 1 if they differ."""
    from streams import kafka, settings
    from streams import topics as declared
    from streams.registry import Registry, register_all
    from tools.session import cluster

    made: dict[str, Any] = {}
    with cluster(settings.load()) as session:
        admin = kafka.admin(session.settings.need_kafka())
        if create:
            from tools.defaults import publish_defaults

            made["topics"] = declared.create(admin, session.settings.replication)
            with Registry(session.settings.need_registry()) as registry:
                register_all(registry)
            made["defaults"] = publish_defaults(session.settings)
        found = admin.list_topics(timeout=10).topics
        differences = declared.drift(admin)
    rows = [
        {
            "topic": topic.name,
            "partitions": topic.partitions,
            "found": len(found[topic.name].partitions) if topic.name in found else None,
            "kept": "newest of each key" if topic.compacted else "forever",
            "events": [kind.NAME for kind in topic.events],
        }
        for topic in (*declared.TOPICS, *declared.changelogs())
    ]
    if as_json:
        say_json({"topics": rows, "differences": differences, "made": made})
    else:
        show(rows, False)
        if create:
            sent = sum(made["defaults"].values())
            print(f"made {len(made['topics'])} topics, published {sent} default events")
    for line in differences:
        print(f"roster: topic {line}", file=sys.stderr)
    if differences:
        raise typer.Exit(1)


def schemas(as_json: Json = False) -> None:
    """Subjects of the registry that Roster needs, with the id it writes. Exit 1 if one lacks."""
    import httpx

    from streams import settings
    from streams.registry import Registry
    from streams.topics import TOPICS
    from tools.session import cluster

    rows = []
    with cluster(settings.load()) as session:
        url = session.settings.need_registry()
        with Registry(url) as registry:
            known = set(registry.subjects())
        for topic in TOPICS:
            for kind in topic.events:
                subject = topic.subject(kind)
                latest: dict[str, Any] = {}
                if subject in known:
                    newest = f"{url}/subjects/{subject}/versions/latest"
                    latest = httpx.get(newest, trust_env=not settings.is_near(url)).json()
                rows.append(
                    {
                        "subject": subject,
                        "event": kind.NAME,
                        "versions": latest.get("version"),
                        "id": latest.get("id"),
                    }
                )
    show(rows, as_json)
    if any(row["id"] is None for row in rows):
        print("roster: `roster topics --create` registers what is missing", file=sys.stderr)
        raise typer.Exit(1)


@letters.command("list")
def letters_list(
    topic: Annotated[str | None, typer.Option(help="only from this topic")] = None,
    reason: Annotated[str | None, typer.Option(help="only with this reason")] = None,
    last: Annotated[int, typer.Option(help="the newest so many", min=1)] = 100,
    as_json: Json = False,
) -> None:
    """Records that could not be taken, newest last."""
    found = [
        letter
        for letter in _letters()
        if topic in (None, letter["origin_topic"]) and reason in (None, letter["reason"])
    ][-last:]
    columns = {
        "event_id": "id",
        "appended": "appended",
        "origin": "origin",
        "reason": "reason",
        "detail": "detail",
    }
    show(found, as_json, columns, empty="no dead letters")


@letters.command("show")
def letters_show(
    event_id: Annotated[str, typer.Argument(metavar="ID", help="as listed, or its beginning")],
    as_json: Json = False,
) -> None:
    """One of them, with its bytes (in hexadecimal, and as text where they are text)."""
    from streams.errors import BadConfiguration

    found = [letter for letter in _letters() if letter["event_id"].startswith(event_id)]
    if not found:
        not_found(f"no dead letter {event_id}", as_json)
    if len({letter["event_id"] for letter in found}) > 1:
        raise BadConfiguration(f"ID is {event_id!r}: {len(found)} ids begin so; give more of it")
    show_one(found[0], as_json)


def _letters() -> list[dict[str, Any]]:
    from schemas import DeadLetter
    from streams import settings
    from streams.topics import DEAD_LETTERS
    from tools.log_reader import events
    from tools.session import cluster
    from tools.units import moment

    with cluster(settings.load()) as session:
        recorded = events(session.settings, DEAD_LETTERS, DeadLetter)
    once = {r.event.event_id: r.event for r in reversed(recorded)}  # made again it is the same
    rows = []
    for event in sorted(once.values(), key=lambda e: (e.origin_append_ms, e.event_id)):
        raw = event.model_dump(exclude={"key", "value", "headers"})
        rows.append(
            {
                **raw,
                "origin": f"{event.origin_topic}[{event.origin_partition}]@{event.origin_offset}",
                "appended": moment(event.origin_append_ms),
                "key": _text(event.key),
                "value_text": _text(event.value),
                "value_hex": None if event.value is None else event.value.hex(),
                "headers": {name: value.hex() for name, value in event.headers.items()},
            }
        )
    return rows


def _text(data: bytes | None) -> str | None:
    if data is None:
        return None
    text = data.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "." for c in text)


def verify(
    duckdb: Annotated[
        Path | None, typer.Option(help="compare this file instead of the projector's")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="every final ranking, not only the last of each key")
    ] = False,
    rankings: Annotated[
        bool, typer.Option("--rankings", help="every final ranking, and nothing else")
    ] = False,
    from_: Annotated[
        str | None, typer.Option("--from", help="only rankings as of this time or later")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="only rankings before this time")] = None,
    as_json: Json = False,
) -> None:
    """Recompute everything from the log and compare it with the live tables, DuckDB and the
    published rankings. Exit status 1 if anything differs."""
    from streams import settings
    from streams.errors import BadConfiguration
    from tools import verify as verb
    from tools.cli.control import time_ms
    from tools.session import cluster

    first, last = time_ms(from_, "--from"), time_ms(to, "--to")
    if first is not None and last is not None and first >= last:
        raise BadConfiguration(f"--to is {to}; allowed: a time after --from, {from_}")
    if (first is not None or last is not None) and not (rankings or every):
        raise BadConfiguration("--from and --to choose final rankings: give --rankings or --all")
    if rankings and duckdb is not None:
        raise BadConfiguration("--rankings reads no DuckDB: leave --duckdb out, or use --all")
    with cluster(settings.load()) as session:
        raise typer.Exit(
            verb.run(
                session.settings,
                duckdb=duckdb,
                rankings_only=rankings,
                stretch=verb.Stretch(rankings or every, first, last),
                json_output=as_json,
            )
        )
