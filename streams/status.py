"""What a process says of itself: one small JSON file in {data}/status, for the live view."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

MIN_INTERVAL_S: Final = 0.5


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
        self._written = now
        state = {
            "name": self._name,
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
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text(json.dumps(state), encoding="utf-8")
            fresh.replace(self._path)
        except OSError:
            return


def read_all(data: Path, max_age_s: float = 15.0) -> dict[str, dict[str, Any]]:
    """Newest status of every process that wrote one within max_age_s, by name."""
    found = {}
    for path in sorted((data / "status").glob("*.json")):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if time.time() - state.get("at", 0) <= max_age_s:
            found[str(state["name"])] = state
    return found
