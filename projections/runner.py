"""The projector: log -> rows -> DuckDB, in the foreground until SIGTERM or SIGINT.

    python -m projections.runner

It owns {data}/roster.duckdb and answers questions about it (reader.py). One fetch is one
transaction (filing.py). Whatever fails in between, memory is thrown away and made again from the
file: so a full disk, a lost broker and `kill -9` are the same case.
"""

import contextlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Final

import duckdb

from projections import filing, outbox, store
from projections.filing import State
from projections.intake import Intake, Place
from projections.panes import Cut
from projections.reader import Desk, Routes, Unavailable, serving
from projections.store import Store
from streams import settings as settings_
from streams.errors import BadConfiguration, RosterError, Stopped, Unreachable
from streams.kafka import Outbound, producer
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.status import StatusFile

NAME: Final = "projector"
WAIT_S: Final = 0.05  # for the first record
RATE_OVER_S: Final = 5.0
CHECKPOINT_AFTER_S: Final = 30.0  # without a record, so that a restart has no log to replay
DISK_PAUSE_S: Final = 1.0
SEND_AGAIN_S: Final = 5.0


def run(
    settings: Settings,
    *,
    api_port: int = 0,
    ready: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
    further: Sequence[Routes] = (),
) -> int:
    """Runs the projector until SIGTERM, SIGINT or stop; returns the exit status 0.

    ready: called with the API's address when the file is open and the API answers. further: routes
    of its API beside those of projections/reader.py.
    Raises RosterError where a person has to do something; its text says what.
    """
    done = threading.Event() if stop is None else stop
    path = settings.data / store.FILE
    kafka, registry_url = settings.need_kafka(), settings.need_registry()
    file = store.opened(path)  # first of all: it says who else is at work here
    desk = Desk()
    with (
        contextlib.ExitStack() as opened,
        _stopped_by_signals(done),
        Registry(registry_url) as registry,
    ):
        try:
            catalogue = Catalogue(registry, stopped=done.is_set)
            outbound = Outbound(producer(kafka))
            address = opened.enter_context(
                serving(desk, settings.data, settings.bind, api_port, further)
            )
        except BaseException:
            file.close()
            raise
        shell = Shell(settings, catalogue, outbound, desk, done)
        while True:
            try:
                shell.project(file, None if ready is None else (lambda: ready(address)))
                return 0
            except Stopped:
                return 0
            except duckdb.Error as error:
                if not _of_the_disk(error):
                    raise
                trouble = " ".join(str(error).split())
            finally:
                desk.close("the projector is stopping")
                file.close()
            shell.say(f"the disk refuses {path}, nothing is filed until it takes it: {trouble}")
            reopened = _reopened(settings, done)
            if reopened is None:
                return 0
            file = reopened
            shell.say(f"the disk takes {path} again, going on")


def _of_the_disk(error: duckdb.Error) -> bool:
    """Whether writing failed, at once or as the cause of what fails now."""
    return isinstance(error, duckdb.IOException | duckdb.FatalException) or (
        "No space left" in str(error) or "Could not write" in str(error)
    )


def _reopened(settings: Settings, done: threading.Event) -> Store | None:
    """The file, as soon as it can be opened and written; None if told to stop before."""
    while not done.wait(DISK_PAUSE_S):
        with contextlib.suppress(BadConfiguration, duckdb.Error):
            return store.opened(settings.data / store.FILE)
    return None


@contextlib.contextmanager
def _stopped_by_signals(done: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        done.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Shell:
    """The loop around the pure steps, and what it says of itself."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        outbound: Outbound,
        desk: Desk,
        done: threading.Event,
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._outbound = outbound
        self._desk = desk
        self._done = done
        self._status = StatusFile(settings.data, NAME)
        self._records = 0
        self._filed = 0
        self._note = ""
        self._ticks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._next_send = 0.0

    def say(self, line: str) -> None:
        """One line for a person; the live view shows it too."""
        self._note = line
        print(f"{NAME}: {line}", file=sys.stderr, flush=True)
        self._status.write(records_in=self._records, records_out=self._filed, note=line, force=True)

    def project(self, file: Store, ready: Callable[[], None] | None = None) -> None:
        """Files the log until told to stop. Raises duckdb.Error, RosterError."""
        db = file.db
        s = self._settings
        state = filing.load(db, Cut(s.pane_ms, s.bound_ms, s.grace_ms))
        stored = {place: counters.next_offset for place, counters in state.counters.items()}
        intake = Intake(self._settings.need_kafka(), stored)
        try:
            filing.begin(db, state, intake.next)
            # What was sent before a crash must be read back before anything is sent again.
            read_back = intake.ends(outbox.TOPICS)
            self._desk.status = self._report(state, intake)
            self._desk.open(db)
            self._note = ""
            if ready is not None:
                ready()
            idle_since: float | None = time.monotonic()
            while not self._done.is_set():
                moved = self._step(db, state, intake)
                self._send(state, read_back)
                self._snapshots(file, state)
                self._tell(state, intake)
                now = time.monotonic()
                if moved:
                    idle_since = now
                elif idle_since is not None and now - idle_since > CHECKPOINT_AFTER_S:
                    idle_since = None
                    with contextlib.suppress(duckdb.TransactionException):
                        db.execute("CHECKPOINT")
            self._tell(state, intake, force=True)
        finally:
            intake.close()

    def _step(self, db: duckdb.DuckDBPyConnection, state: State, intake: Intake) -> bool:
        """Files what is there; whether anything was."""
        fetched = intake.fetch(WAIT_S)
        if not fetched.next_offsets:
            return False
        values = filing.decoded(self._catalogue, fetched)
        before = state.law()["applied"]
        with store.transaction(db):
            filing.apply(db, self._catalogue, state, fetched, values)
        self._records += len(fetched.records) + len(fetched.statements)
        self._filed += state.law()["applied"] - before
        return True

    def _send(self, state: State, read_back: dict[Place, int]) -> None:
        """Sends the outbox, once its topics are read to where they ended at the start."""
        now = time.monotonic()
        if not state.outbox.waiting or now < self._next_send:
            return
        if any(state.counters[place].next_offset < end for place, end in read_back.items()):
            return
        try:
            state.outbox.send(self._outbound)
        except Unreachable as error:
            self._next_send = now + SEND_AGAIN_S
            self.say(f"conclusions wait in the outbox: {error}")

    def _snapshots(self, file: Store, state: State) -> None:
        wishes = self._desk.wishes()
        if not wishes:
            return
        try:
            made = {
                "path": str(file.snapshot(self._settings.data / "snapshots")),
                "offsets": _offsets(state),
            }
        except (duckdb.Error, OSError) as error:
            for wish in wishes:
                wish.set_exception(Unavailable(f"no snapshot: {' '.join(str(error).split())}"))
            return
        for wish in wishes:
            wish.set_result(made)

    def _report(self, state: State, intake: Intake) -> dict[str, Any]:
        now = time.monotonic()
        self._ticks.append((now, self._records))
        while len(self._ticks) > 2 and now - self._ticks[0][0] > RATE_OVER_S:
            self._ticks.popleft()
        begun, count = self._ticks[0]
        lags = intake.lags()
        return {
            "offsets": _offsets(state),
            "law": state.law(),
            "records": self._records,
            "rows": self._filed,
            "records_per_s": round((self._records - count) / max(now - begun, 0.001), 1),
            "lag": sum(lags.values()),
            "lags": _nested(lags),
            "outbox": len(state.outbox.waiting),
            "note": self._note or intake.note,
        }

    def _tell(self, state: State, intake: Intake, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._ticks[-1][0] < 0.5:
            return
        report = self._report(state, intake)
        self._desk.status = report
        self._status.write(
            records_in=self._records,
            records_out=self._filed,
            lag=report["lag"],
            note=report["note"],
            law=report["law"],
            force=force,
        )


def _offsets(state: State) -> dict[str, dict[str, int]]:
    """topic -> partition -> next offset."""
    return _nested({place: counters.next_offset for place, counters in state.counters.items()})


def _nested(numbers: Mapping[Place, int]) -> dict[str, dict[str, int]]:
    """topic -> partition -> number."""
    found: dict[str, dict[str, int]] = {}
    for (topic, partition), number in sorted(numbers.items()):
        found.setdefault(topic, {})[str(partition)] = number
    return found


def main() -> int:
    """Entry of `python -m projections.runner`."""
    try:
        return run(settings_.load())
    except RosterError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
