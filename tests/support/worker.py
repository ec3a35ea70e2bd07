"""Workers of the agents as processes of their own, and what the log says of their work."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from schemas import ModelProfileActive, ModelProfileUpdated, Recorded
from schemas.model_profile import ProfileAction
from streams import codec, kafka, topics
from streams.registry import Catalogue
from streams.status import read_all

SESSION_S = 6.0  # the least that a broker allows
GENERATION = 100 + uuid4().int % 10**6  # of facts made by tests: nobody else takes them in
AGENTS = """
import sys
{before}
from streams.settings import load
from processors.agents import run
sys.exit(run(load(), session_s={session}, stall_s={stall}, generation={generation}))
"""
METER = """
import sys
{before}
from streams.settings import load
from processors.meter import run
sys.exit(run(load(), instance="{instance}"))
"""


class Worker:
    """One process. before: Python that it runs first, for example to break something. main: what
    it is. environ: of it, beside the addresses."""

    def __init__(
        self,
        bootstrap: str,
        registry: str,
        data: Path,
        stall_s: float = 15.0,
        before: str = "",
        *,
        generation: int = GENERATION,
        main: str = AGENTS,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self.env = {
            **os.environ,
            "ROSTER_KAFKA": bootstrap,
            "ROSTER_REGISTRY": registry,
            "ROSTER_DATA": str(data),
            "ROSTER_GENERATION": str(generation),
            **(environ or {}),
        }
        self.code = main.format(
            before=before,
            session=SESSION_S,
            stall=stall_s,
            generation=generation,
            instance=data.name,
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, or starts it again."""
        self.data.mkdir(parents=True, exist_ok=True)
        with (self.data / "worker.log").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.code], env=self.env, stdout=out, stderr=out
            )

    def status(self) -> dict[str, Any]:
        """What it says of itself, if it is this process that says it; {} before."""
        pid = None if self.process is None else self.process.pid
        reports = read_all(self.data).values()
        return next((report for report in reports if report["pid"] == pid), {})

    def ready(self) -> bool:
        """Whether it has applied all that was there when it was given its partitions."""
        return self.status().get("note") in {"ready", "standing by"}

    def end(self, number: signal.Signals = signal.SIGTERM, within_s: float = 15.0) -> int:
        """Sends a signal and waits; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def log(self) -> str:
        """All it has written."""
        return (self.data / "worker.log").read_text(encoding="utf-8")


@contextlib.contextmanager
def running(*workers: Worker) -> Iterator[None]:
    """Starts workers; none is left behind."""
    try:
        for worker in workers:
            worker.start()
        yield
    finally:
        for worker in workers:
            if worker.process is not None and worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait(10)


def until(what: Callable[[], bool], within_s: float, why: Callable[[], object] = str) -> None:
    """Waits until something holds; fails with why() if it does not in time."""
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


def change(number: int, key: tuple[str, str, str], **fields: Any) -> ModelProfileUpdated:
    """A change of a profile; number makes its id and its model."""
    scope, role, mode = key
    return ModelProfileUpdated.model_validate(
        {
            "event_id": f"{scope}-{role}-{number}".replace(":", "-"),
            "occurred_at_ms": 1_700_000_000_000 + number,
            "source": "test",
            "scope": scope,
            "role": role,
            "deployment_mode": mode,
            "action": ProfileAction.SET,
            "model": f"openai/model-{number}",
            "actor": "tester",
            **fields,
        }
    )


def newest(bootstrap: str, topic: str) -> dict[bytes, bytes | None]:
    """Last value of every key of a topic."""
    found: dict[bytes, bytes | None] = {}
    for message in kafka.read_to_end(bootstrap, topic):
        key, value = message.key(), message.value()
        assert isinstance(key, bytes)
        found[key] = value if isinstance(value, bytes) else None
    return found


def table(bootstrap: str, name: str) -> dict[bytes, bytes]:
    """Rows of a table, as its changelog holds them."""
    rows = newest(bootstrap, topics.changelog(name))
    return {key: value for key, value in rows.items() if value is not None}


def actives(bootstrap: str, catalogue: Catalogue) -> Mapping[bytes, ModelProfileActive]:
    """What model.profile.active says."""
    found: dict[bytes, ModelProfileActive] = {}
    for message in kafka.read_to_end(bootstrap, topics.MODEL_PROFILE_ACTIVE.name):
        item = codec.decode(catalogue, message)
        key = message.key()
        assert isinstance(key, bytes)
        found.pop(key, None)
        if isinstance(item, Recorded) and isinstance(item.event, ModelProfileActive):
            found[key] = item.event
    return found
