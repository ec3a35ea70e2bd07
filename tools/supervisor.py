"""Starts child processes, keeps them alive, ends them in order, and leaves none behind.

The owner calls `poll()` a few times a second, always from the thread that called `start()`: on
Linux a child dies with the *thread* that made it (PR_SET_PDEATHSIG), and that is what ends the
children when the owner is killed. What slips through is ended by the next start (`sweep`).

    {data}/run.json       addresses, pids and start times of owner and children
    {data}/run.lock       held while the owner lives
    {data}/logs/*.log     one per child, old ones as .log.1
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

import psutil

from streams.errors import BadConfiguration, RosterError

BACKOFF_S: Final = (0.5, 10.0)  # first and longest pause before a dead child is started again
STEADY_S: Final = 60.0  # after a life this long the pause begins at the first value again
LOG_BYTES: Final = 20_000_000  # a longer log is moved to .log.1 when its child starts
SAME_START_S: Final = 2.0  # psutil derives start times from the boot time, which NTP may shift

# exec keeps the death signal and the pid. A preexec_fn would do the same but may deadlock in an
# owner with threads. The owner may have died before prctl: hence the look at the parent's pid.
_EXEC: Final = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(sys.argv[2]), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[3], sys.argv[3:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[3]}: {error.strerror}")
"""

_FRAME: Final = ("\tat ", "\t... ")  # Java's stack traces hide the line that says what is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process to keep alive.

    env:      added to the owner's environment.
    ready:    asked at each poll until it says True; must answer within about a second.
              None: ready when started.
    after:    names of children that must be ready before this one is started.
    grace_s:  time between SIGTERM and SIGKILL when it is stopped.
    orphaned: what the kernel sends it when the owner dies (Linux).
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    ready: Callable[[], bool] | None = None
    after: tuple[str, ...] = ()
    grace_s: float = 10.0
    orphaned: signal.Signals = signal.SIGKILL


State = Literal["waiting", "starting", "ready", "down", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """A child as it is now. up_s: seconds since its last start; rss_bytes: 0 if it is not alive.

    restarts counts starts after the first; last_reason says why it last died, None if it never
    has."""

    name: str
    state: State
    pid: int | None
    restarts: int
    last_reason: str | None
    up_s: float
    rss_bytes: int
    log: Path


@dataclass(frozen=True, slots=True)
class Running:
    """What {data}/run.json says about an owner that is alive."""

    pid: int
    addresses: dict[str, str]
    children: dict[str, int]


@dataclass(slots=True)
class _Slot:
    child: Child
    state: State = "waiting"
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0  # monotonic seconds
    due: float = 0.0  # when it may be started again
    pause_s: float = BACKOFF_S[0]
    starts: int = 0
    last_reason: str | None = None


class Supervisor:
    """Owns the children of one data folder; `record` names its files (run.json, run.lock)."""

    def __init__(self, data: Path, *children: Child, record: str = "run") -> None:
        self.data = data
        self.record = data / f"{record}.json"
        self.addresses: dict[str, str] = {}
        self._slots = {child.name: _Slot(child) for child in children}
        self._lock: IO[str] | None = None

    def start(self) -> None:
        """Claims the data folder, ends what a dead owner left, starts what may start.

        Raises BadConfiguration if the folder is in use or cannot be written.
        """
        with explained(self.data):
            (self.data / "logs").mkdir(parents=True, exist_ok=True)
            lock = self.record.with_suffix(".lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            owner = running(self.data, self.record.stem)
            who = f" (pid {owner.pid})" if owner else ""
            raise BadConfiguration(
                f"already running{who} on {self.data}; `roster down` stops it"
            ) from None
        self._lock = lock
        _end_leftovers(self.record)
        self.poll()

    def add(self, *children: Child) -> None:
        """Further children, started by this and the coming polls."""
        self._slots.update({child.name: _Slot(child) for child in children})
        self.poll()

    def announce(self, **addresses: str) -> None:
        """Adds addresses to the record, where other commands look for them."""
        self.addresses.update(addresses)
        self._write()

    def poll(self) -> None:
        """Starts what is due, notices deaths, asks the starting ones whether they are ready."""
        changed = False
        for slot in self._slots.values():
            process = slot.process
            if process is not None and (status := process.poll()) is not None:
                self._died(slot, status)
                changed = True
            elif process is None and self._may_start(slot):
                self._spawn(slot)
                changed = True
            if slot.state == "starting" and (slot.child.ready is None or slot.child.ready()):
                slot.state = "ready"
        if changed:
            self._write()

    def wait_ready(self, *names: str, within_s: float, deaths: int = 0) -> None:
        """Polls until the named children (default: all) are ready.

        Raises RosterError with the end of its log if one dies more than `deaths` times before,
        or is not ready in time.
        """
        until = time.monotonic() + within_s
        slots = [self._slots[name] for name in names or self._slots]
        while True:
            self.poll()
            waiting = [slot for slot in slots if slot.state != "ready"]
            if not waiting:
                return
            for slot in waiting:
                died = slot.starts - (slot.process is not None)
                if died > deaths:
                    raise RosterError(
                        f"{slot.child.name} ended ({slot.last_reason})"
                        f" before it was ready{self._log_end(slot)}"
                    )
            if time.monotonic() > until:
                late = waiting[0]
                raise RosterError(
                    f"{late.child.name} was not ready within {within_s:g} s{self._log_end(late)}"
                )
            time.sleep(0.03)

    def states(self) -> list[ProcessState]:
        """The children in the order of their start."""
        now = time.monotonic()
        found = []
        for name, slot in self._slots.items():
            pid = slot.process.pid if slot.process else None
            rss = 0
            if pid is not None:
                with contextlib.suppress(psutil.Error):
                    rss = psutil.Process(pid).memory_info().rss
            found.append(
                ProcessState(
                    name=name,
                    state=slot.state,
                    pid=pid,
                    restarts=max(0, slot.starts - 1),
                    last_reason=slot.last_reason,
                    up_s=now - slot.started if pid is not None else 0.0,
                    rss_bytes=rss,
                    log=self._log(slot),
                )
            )
        return found

    def stop(self, *names: str) -> None:
        """Ends the named children (default: all, and gives the data folder back), last one first.

        SIGTERM, then SIGKILL to its group after grace_s. If interrupted, kills at once.
        """
        chosen = [self._slots[name] for name in names or self._slots]
        try:
            for slot in reversed(chosen):
                _end(slot.process, slot.child.grace_s)
                slot.process, slot.state = None, "stopped"
        except BaseException:
            for slot in chosen:
                _end(slot.process, 0.0)
                slot.process, slot.state = None, "stopped"
            raise
        finally:
            if names:
                self._write()
            elif self._lock is not None:
                self.record.unlink(missing_ok=True)
                self._lock.close()
                self._lock = None

    def __enter__(self) -> "Supervisor":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _may_start(self, slot: _Slot) -> bool:
        return (
            slot.state in {"waiting", "down"}
            and time.monotonic() >= slot.due
            and all(self._slots[name].state == "ready" for name in slot.child.after)
        )

    def _spawn(self, slot: _Slot) -> None:
        child = slot.child
        path = self._log(slot)
        with explained(path):
            if path.exists() and path.stat().st_size > LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
            log = path.open("ab")
        wrap = (sys.executable, "-I", "-S", "-c", _EXEC, str(os.getpid()), str(+child.orphaned))
        with log:
            slot.process = subprocess.Popen(
                (*wrap, *child.argv),
                env={**os.environ, **child.env},
                cwd=child.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        slot.state, slot.started = "starting", time.monotonic()
        slot.starts += 1

    def _died(self, slot: _Slot, status: int) -> None:
        assert slot.process is not None
        _signal_group(slot.process.pid, signal.SIGKILL)  # what it may have started itself
        now = time.monotonic()
        if now - slot.started >= STEADY_S:
            slot.pause_s = BACKOFF_S[0]
        slot.due = now + slot.pause_s
        slot.pause_s = min(slot.pause_s * 2, BACKOFF_S[1])
        slot.process, slot.state = None, "down"
        slot.last_reason = (
            f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        )

    def _log(self, slot: _Slot) -> Path:
        return self.data / "logs" / f"{slot.child.name}.log"

    def _log_end(self, slot: _Slot) -> str:
        path = self._log(slot)
        lines = [line for line in tail(path, 60) if not line.startswith(_FRAME)][-8:]
        return f"; the end of {path}:\n  " + "\n  ".join(lines) if lines else f"; see {path}"

    def _write(self) -> None:
        if self._lock is None:
            return
        pids = {n: s.process.pid for n, s in self._slots.items() if s.process is not None}
        text = json.dumps(
            {
                "parent": _identity(os.getpid()),
                "addresses": self.addresses,
                "children": {name: _identity(pid) for name, pid in pids.items()},
            },
            indent=1,
        )
        with explained(self.record):
            write_atomically(self.record, text)


def running(data: Path, record: str = "run") -> Running | None:
    """The owner that is alive on this data folder, None if there is none."""
    found = _read(data / f"{record}.json")
    if found is None or (owner := _alive(found["parent"])) is None:
        return None
    children = {
        name: child.pid for name, who in found["children"].items() if (child := _alive(who))
    }
    return Running(owner.pid, found["addresses"], children)


def down(data: Path, within_s: float = 90.0) -> bool:
    """Asks every owner on this data folder to stop, waits for their end, then sweeps.

    False: nothing ran. Raises RosterError if one does not end in time.
    """
    owners = [running(data, record.stem) for record in sorted(data.glob("run*.json"))]
    alive = [owner.pid for owner in owners if owner is not None]
    for pid in alive:
        who = _identity(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + within_s
        while _alive(who):  # one that has ended and that its parent has not yet noticed counts not
            if time.monotonic() > until:
                raise RosterError(
                    f"pid {pid} did not end within {within_s:g} s; `kill -9 {pid}`,"
                    " then `roster down` again ends what it started"
                )
            time.sleep(0.05)
    return bool(sweep(data)) or bool(alive)


def sweep(data: Path) -> list[str]:
    """Ends what dead owners left on this data folder; returns the names of what was ended.

    Only processes whose pid and start time are those recorded are touched.
    """
    ended = []
    for record in sorted(data.glob("run*.json")):
        found = _read(record)
        if found is not None and _alive(found["parent"]) is None:
            ended += _end_leftovers(record)
    return ended


def _end_leftovers(record: Path) -> list[str]:
    found = _read(record)
    if found is None:
        return []
    left = {name: p for name, who in found["children"].items() if (p := _alive(who))}
    for process in left.values():
        _signal_group(process.pid, signal.SIGTERM)
        _signal_group(process.pid, signal.SIGCONT)
    _, stubborn = psutil.wait_procs(list(left.values()), timeout=5.0)
    for process in stubborn:
        _signal_group(process.pid, signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=5.0)
    record.unlink(missing_ok=True)
    return sorted(left)


def _end(process: subprocess.Popen[bytes] | None, grace_s: float) -> None:
    if process is None:
        return
    if process.poll() is None and grace_s > 0:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)  # a stopped one could not act on it
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Each child leads its own group, so the group's id is its pid."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _identity(pid: int) -> dict[str, float]:
    try:
        return {"pid": pid, "create_time": psutil.Process(pid).create_time()}
    except psutil.Error:
        return {"pid": pid, "create_time": 0.0}


def _alive(who: dict[str, Any]) -> psutil.Process | None:
    try:
        process = psutil.Process(int(who["pid"]))
        same = abs(process.create_time() - who["create_time"]) < SAME_START_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _read(record: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(found, dict) and {"parent", "addresses", "children"} <= found.keys()
    return found if complete else None


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a text file, [] if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what the operating system says about a path into one line for people."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename or path}"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            text = f"the disk is full: {where} cannot be written; make room, or move ROSTER_DATA"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            text = f"no permission to write {where}; correct it, or set ROSTER_DATA (ROSTER_CACHE)"
        elif error.errno in {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}:
            text = f"{where} is in the way: {error.strerror}; move it, or set ROSTER_DATA"
        else:
            text = f"{where}: {error.strerror or error}"
        raise BadConfiguration(text) from None
