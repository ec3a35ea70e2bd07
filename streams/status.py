"""What a process says of itself: one small JSON file in {data}/status, for the live view.

Processes that may share a data folder need names of their own: the file is named after them.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from streams.settings import is_alive

MIN_INTERVAL_S: Final = 0.5
FORGOTTEN_S: Final = 3600.0  # files of processes that have said nothing for so long are removed


def this_process() -> str:
    """A name that no other process has now, on whatever machine it shares the data folder."""
    return f"{socket.gethostname()}-{os.getpid()}"


class StatusFile:
    """Counters of one process. Written at most twice a second, atomically; failing to write is
    no reason to stop working, so it never raises."""

    def __init__(self, data: Path, name: str) -> None:
        self._path = data / "status" / f"{name}.json"
        self._name = name
        self._written = 0.0

    def write(
        self,
        *,
        records_in: int,
        records_out: int,
        lag: int | None = None,
        note: str = "",
        law: Mapping[str, int] | None = None,
        force: bool = False,
    ) -> None:
        """records_in, records_out: since the process began. lag: records not yet read.
        law: the conservation counters (consumed, applied, duplicate, ...), where there are any."""
        now = time.monotonic()
        if not force and now - self._written < MIN_INTERVAL_S:
            return
        state = {
            "name": self._name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "at": time.time(),
            "records_in": records_in,
            "records_out": records_out,
            "lag": lag,
            "note": note,
            "law": dict(law or {}),
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._written:
                _forget(self._path.parent)
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text(json.dumps(state), encoding="utf-8")
            fresh.replace(self._path)
        except OSError:
            return
        finally:
            self._written = now


def read_all(data: Path, max_age_s: float = 15.0) -> dict[str, dict[str, Any]]:
    """Newest status of every process that wrote one within max_age_s, by name. Of this machine
    only those that live; whether those of others do, their files cannot tell."""
    found = {}
    for path in sorted((data / "status").glob("*.json")):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        pid = local_pid(state)
        if time.time() - state.get("at", 0) <= max_age_s and (pid is None or is_alive(pid)):
            found[str(state["name"])] = state
    return found


def local_pid(state: Mapping[str, Any]) -> int | None:
    """Number of the process that said this; None if it runs on another machine (or container)."""
    return int(state["pid"]) if state.get("host") == socket.gethostname() else None


def named(
    reports: Mapping[str, dict[str, Any]], children: Mapping[int, str]
) -> dict[str, dict[str, Any]]:
    """The reports by the names that the processes have where they were started, if they were
    started here. children: pid -> name."""
    return {
        name if (pid := local_pid(state)) is None else children.get(pid, name): state
        for name, state in reports.items()
    }


def _forget(folder: Path) -> None:
    for path in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > FORGOTTEN_S:
                path.unlink()
