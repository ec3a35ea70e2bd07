"""`roster up`: everything on one machine, in one command, for as long as it is wanted.

Started in this order, ended in the reverse one: kafka, registry, agents, meter, projector,
workload. Our own processes load their code while broker and registry start, and wait until topics
and schemas are there (tools/session.py).
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any, Final

import psutil

from streams import kafka, topics
from streams.registry import Registry, register_all
from streams.settings import Settings, projector_api
from tools import stack
from tools.defaults import publish_defaults
from tools.poller import LAW, Poller, State
from tools.session import require_broker
from tools.supervisor import Child, ProcessState, Supervisor, sweep
from tools.units import mebibytes, usd

POLL_S: Final = 0.25
DRAW_S: Final = 0.5
PLAIN_S: Final = 5.0
SHUT_S: Final = 12.0  # between SIGTERM and SIGKILL of our own processes


@dataclass(slots=True)
class _Wish:
    """Set by a signal. A second Ctrl-C is taken at its word: what runs is killed."""

    stop: bool = False
    watching: bool = False  # before that there is nothing to end gently


class _Unwanted(BaseException):
    """A signal came before everything was up: what has been started is stopped, and that is all.
    A BaseException, so that no retry on the way takes it for a failure."""


def up(
    settings: Settings,
    *,
    for_s: float | None = None,
    workload: Sequence[str] | None = (),
    as_json: bool = False,
) -> int:
    """Runs until SIGINT, SIGTERM or for_s seconds of view; 0.

    workload: options of `roster workload`; None: without it. Raises BadConfiguration, Unreachable,
    RosterError when something does not start.
    """
    begun = time.monotonic()
    sweep(settings.data)
    with (
        _signals() as wish,
        contextlib.suppress(_Unwanted),
        Supervisor(settings.data) as supervisor,
    ):
        settings = _start_cluster(settings, supervisor)
        supervisor.add(*_processes(settings, workload))
        _prepare(settings, supervisor, defaults=workload is None)
        wish.watching = True
        joined = "" if workload is None else _joined()
        poller = Poller(
            settings, joined, supervisor.states, lambda: supervisor.addresses.get("api")
        )
        try:
            state, memory = _watch(settings, supervisor, poller, wish, for_s, as_json)
        finally:
            poller.close()
        if for_s is not None:
            found = summary(state, memory, supervisor.states(), begun)
            print(json.dumps(found) if as_json else told(found), flush=True)
    return 0


def _start_cluster(settings: Settings, supervisor: Supervisor) -> Settings:
    """The settings with addresses; broker and registry are starting."""
    if settings.own_cluster:
        require_broker(settings.need_kafka())
        supervisor.announce(kafka=settings.need_kafka(), registry=settings.need_registry())
        return settings
    stack.prepare(settings.cache, say=lambda text: print(text, file=sys.stderr))
    addresses, children = stack.local(settings.data, settings.cache)
    supervisor.add(*children)
    return replace(settings, kafka=addresses.kafka, registry=addresses.registry)


def _prepare(settings: Settings, supervisor: Supervisor, *, defaults: bool) -> None:
    """Topics as soon as the broker answers, schemas and defaults as soon as the registry does.
    defaults: nobody else publishes them, as the workload does; two at once would say all twice."""
    own = not settings.own_cluster
    if own:
        supervisor.wait_ready("kafka", within_s=stack.READY_WITHIN_S)
    topics.create(kafka.admin(settings.need_kafka()), settings.replication)
    if own:
        supervisor.wait_ready("registry", within_s=stack.READY_WITHIN_S)
    with Registry(settings.need_registry()) as registry:
        register_all(registry)
    if defaults:
        publish_defaults(settings)
    supervisor.announce(kafka=settings.need_kafka(), registry=settings.need_registry())


def _processes(settings: Settings, workload: Sequence[str] | None) -> list[Child]:
    sample = [] if workload is None else [child("workload", settings, *workload)]
    return [
        child("agents", settings),
        child("meter", settings, "--instance", "0"),
        child("projector", settings),
        *sample,
    ]


def child(verb: str, settings: Settings, *options: str) -> Child:
    """One of our processes, told all that this one knows."""
    return Child(
        name=verb,
        argv=(sys.executable, "-m", "tools", verb, *options),
        env={
            "ROSTER_KAFKA": settings.need_kafka(),
            "ROSTER_REGISTRY": settings.need_registry(),
            "ROSTER_DATA": str(settings.data),
            "ROSTER_CACHE": str(settings.cache),
            "ROSTER_BIND": settings.bind,
            "ROSTER_REPLICATION": str(settings.replication),
            "ROSTER_DEPLOYMENT": settings.deployment,
            "PYTHONUNBUFFERED": "1",
        },
        grace_s=SHUT_S,
    )


def _joined() -> str:
    from tools.workload import JOINED

    return JOINED


@contextlib.contextmanager
def _signals() -> Iterator[_Wish]:
    """SIGINT and SIGTERM end the view; then everything is stopped in order."""
    wish = _Wish()

    def stop(number: int, _frame: FrameType | None) -> None:
        if wish.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        wish.stop = True
        if not wish.watching:
            wish.watching = True  # the next one only hurries what is being stopped
            raise _Unwanted

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(
    settings: Settings,
    supervisor: Supervisor,
    poller: Poller,
    wish: _Wish,
    for_s: float | None,
    as_json: bool,
) -> tuple[State, Mapping[str, int]]:
    """Shows the state until it is time to stop; the last one, and the greatest memory by name."""
    until = None if for_s is None else time.monotonic() + for_s
    memory: dict[str, int] = {}
    announced = False
    with _screen(as_json) as (draw, every_s):
        drawn = 0.0
        state = poller.state()
        while not wish.stop and (until is None or time.monotonic() < until):
            supervisor.poll()
            if not announced and (address := projector_api(settings.data)) is not None:
                supervisor.announce(api=address)
                announced = True
            if time.monotonic() - drawn >= every_s:
                drawn = time.monotonic()
                state = poller.state()
                for process in state.processes:
                    memory[process.name] = max(memory.get(process.name, 0), process.rss_bytes)
                draw(state)
            time.sleep(POLL_S)
        state = poller.state()
        draw(state)
    memory["up"] = psutil.Process(os.getpid()).memory_info().rss
    return state, memory


@contextlib.contextmanager
def _screen(as_json: bool) -> Iterator[tuple[Callable[[State], None], float]]:
    """What draws a state, and how often it should: a live view on a terminal, else lines."""
    from tools import view

    if as_json:
        yield (lambda state: print(view.as_json(state), flush=True)), PLAIN_S
        return
    if not sys.stdout.isatty():
        told = 0

        def line(state: State) -> None:
            nonlocal told
            for notable in state.notable:
                if notable.number > told:
                    print(f"  {notable.kind}: {notable.text}", flush=True)
            told = max((n.number for n in state.notable), default=told)
            print(view.plain(state), flush=True)

        yield line, PLAIN_S
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def draw(state: State) -> None:
            width, height = console.size
            live.update(view.render(state, width, height), refresh=True)

        yield draw, DRAW_S


def summary(
    state: State,
    memory: Mapping[str, int],
    children: list[ProcessState],
    begun: float,
) -> dict[str, Any]:
    """What happened, for the end of a run of limited time."""
    begun_ms = time.time_ns() // 1_000_000 - int((time.monotonic() - begun) * 1000)
    meters = [law.counters for law in state.laws if law.name.startswith("meter")]
    counted = {name: sum(c.get(name, 0) for c in meters) for name in ("consumed", *LAW)}
    first = state.first_ranking_ms
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "events_in": counted["consumed"] if meters else None,
        "verdicts": {name: counted[name] for name in LAW} if meters else {},
        "rankings_published": state.rankings_published,
        "seconds_to_first_ranking": None if first is None else round((first - begun_ms) / 1000, 1),
        "mode": state.mode,
        "budgets": [asdict(budget) for budget in state.budgets],
        "lag": {p.name: p.lag for p in state.processes if p.lag is not None},
        "restarts": {child.name: child.restarts for child in children},
        "memory_bytes": dict(memory),
        "laws_hold": {law.name: law.holds for law in state.laws},
    }


def told(found: Mapping[str, Any]) -> str:
    """The summary for people."""
    verdicts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in found["verdicts"].items())
    first = found["seconds_to_first_ranking"]
    spent = (
        f"  {b['tenant']}/{b['budget']}: {usd(b['spent_picousd'], 4)} of {usd(b['cap_picousd'])}"
        f" in its newest {b['period'].lower()}"
        for b in found["budgets"]
    )
    restarts = [f"{name} {n}" for name, n in found["restarts"].items() if n]
    memory = ", ".join(f"{name} {mebibytes(n)}" for name, n in found["memory_bytes"].items() if n)
    law = [name for name, holds in found["laws_hold"].items() if not holds]
    lines = [
        f"ran {found['seconds']:g} s in mode {found['mode']}",
        f"events in: {found['events_in'] or 0:,} ({verdicts})",
        f"rankings published: {found['rankings_published']}, the first"
        + (f" {first:g} s after the start" if first is not None else ": none"),
        "spend:",
        *spent,
        "lag: " + (", ".join(f"{name} {n}" for name, n in found["lag"].items()) or "unknown"),
        "restarts: " + (", ".join(restarts) or "none"),
        f"memory at most: {memory}",
        "conservation: " + (f"BROKEN in {', '.join(law)}" if law else "holds in all projections"),
    ]
    return "\n".join(lines)
