"""roster up, down, status, init, agents, meter, projector, workload"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.cli.output import Json, say_json, show

if TYPE_CHECKING:
    from streams.settings import Settings


OURS = ("kafka", "registry", "logs", "status", "faust", "snapshots", "ports.json")
OURS_BEGIN = ("roster.duckdb", "run.", "run-", "projector.json")
"""What {data} holds of ours: names, and how others begin."""


def add(root: typer.Typer) -> None:
    """Registers the commands."""
    for command in (up, down, clean, status, init, agents, meter, projector, workload):
        root.command()(command)


def up(
    for_s: Annotated[
        float | None,
        typer.Option("--for", help="end after so many seconds, with a summary", min=1),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="pace of the workload, 1: the recorded one", min=0.001)
    ] = None,
    workload: Annotated[
        bool, typer.Option("--workload/--no-workload", help="with the sample workload")
    ] = True,
    backfill_h: Annotated[
        float | None, typer.Option("--backfill-h", help="hours of the past filled in first", min=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Start everything on this machine and show it; Ctrl-C stops it in order."""
    from streams import settings
    from tools import up as verb

    loaded = settings.load()
    wanted = {"--rate": rate, "--backfill-h": backfill_h}
    pace = [word for name, n in wanted.items() if n is not None for word in (name, f"{n:g}")]
    raise typer.Exit(
        verb.up(loaded, for_s=for_s, workload=pace if workload else None, as_json=as_json)
    )


def down(
    quiet: Annotated[bool, typer.Option("--quiet", help="say nothing if nothing runs")] = False,
    as_json: Json = False,
) -> None:
    """Stop what runs on this data folder, and what a killed `roster up` left behind."""
    from streams import settings
    from tools import supervisor

    data = settings.load().data
    stopped = supervisor.down(data)
    if as_json:
        say_json({"data": str(data), "stopped": stopped})
    elif stopped:
        print("stopped")
    elif not quiet:
        print("nothing runs here")


def clean(as_json: Json = False) -> None:
    """Stop what runs on this data folder and remove what Roster keeps there, and nothing else."""
    import shutil

    from streams import settings
    from tools import supervisor

    data = settings.load().data
    stopped = supervisor.down(data)
    with supervisor.explained(data):
        found = sorted(data.iterdir()) if data.is_dir() else []
        ours = [p for p in found if p.name in OURS or p.name.startswith(OURS_BEGIN)]
        for path in ours:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if data.is_dir() and ours == found:
            data.rmdir()
    if as_json:
        removed = [path.name for path in ours]
        say_json({"data": str(data), "stopped": stopped, "removed": removed})


def status(as_json: Json = False) -> None:
    """What runs here, where, and how it is doing. Exit status 1 if nothing runs."""
    import psutil

    from streams import settings
    from streams.status import local_pid, named, read_all
    from tools.supervisor import running
    from tools.units import count, mebibytes

    loaded = settings.load()
    owners = [o for r in ("run", "run-kafka", "run-registry") if (o := running(loaded.data, r))]
    pids = {name: pid for owner in owners for name, pid in owner.children.items()}
    addresses = {name: at for owner in owners for name, at in owner.addresses.items()}
    reports = named(read_all(loaded.data), {pid: name for name, pid in pids.items()})
    rows: list[dict[str, Any]] = []
    for name in sorted(pids.keys() | reports.keys()):
        report = reports.get(name, {})
        pid = pids.get(name) or local_pid(report)
        try:
            rss = 0 if pid is None else psutil.Process(pid).memory_info().rss
        except psutil.Error:
            rss = 0
        rows.append(
            {
                "process": name,
                "pid": pid,
                "address": addresses.get({"projector": "api"}.get(name, name)),
                "in": count(report.get("records_in")),
                "out": count(report.get("records_out")),
                "lag": report.get("lag"),
                "memory": mebibytes(rss),
                "note": report.get("note") or None,
                "law": report.get("law") or None,
            }
        )
    columns = ("process", "pid", "address", "in", "out", "lag", "memory", "note")
    if as_json:
        say_json({"addresses": addresses, "data": str(loaded.data), "processes": rows})
    else:
        show(rows, False, {name: name for name in columns}, empty="nothing runs here")
    if not rows:
        raise typer.Exit(1)


def init(
    force: Annotated[bool, typer.Option("--force", help="overwrite an existing one")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented configuration, roster.env, into this directory."""
    from streams.errors import BadConfiguration
    from streams.settings import FILE
    from tools.init import TEMPLATE
    from tools.supervisor import explained

    if FILE.exists() and not force:
        raise BadConfiguration(f"{FILE} exists; --force overwrites it")
    with explained(Path.cwd()):
        FILE.write_text(TEMPLATE, encoding="utf-8")
    if as_json:
        say_json({"written": str(FILE.absolute())})
    else:
        print(f"wrote {FILE}; every line is a comment that shows the default")


def agents() -> None:
    """Run the Faust agents (profiles, metrics, rankings) in the foreground."""
    from processors.agents import run

    raise typer.Exit(run(_ready()))


def meter(
    instance: Annotated[
        str | None,
        typer.Option(help="stable name of this one: back at once after a kill; default: a new one"),
    ] = None,
) -> None:
    """Run a meter (invocations into facts of panes) in the foreground."""
    from processors.meter import run
    from streams.status import this_process

    raise typer.Exit(run(_ready(), instance=instance or this_process()))


def projector() -> None:
    """Run the projector (ledger and history in DuckDB, read path) in the foreground."""
    from projections.runner import run
    from tools.api import metrics, rankings

    settings = _ready()
    raise typer.Exit(run(settings, further=[rankings.mounted(settings), metrics.mounted]))


def workload(
    rate: Annotated[float, typer.Option(help="1: the recorded pace", min=0.001)] = 1.0,
    seed: Annotated[int, typer.Option(help="same seed, same events")] = 7,
    backfill_h: Annotated[
        float, typer.Option("--backfill-h", help="hours of the past filled in first", min=0)
    ] = 24,
) -> None:
    """Run the sample workload in the foreground."""
    from tools.workload import run

    raise typer.Exit(run(_ready(), seed=seed, rate=rate, backfill_h=backfill_h))


def _ready() -> "Settings":
    """Settings of a system whose topics and schemas are there; waits for them."""

    from streams import settings
    from tools.session import await_ready, found_here

    loaded = found_here(settings.load())
    await_ready(loaded)
    return loaded
