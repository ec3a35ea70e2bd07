"""A log with topics and schemas on the shared broker, and projectors that read it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from projections import runner
from schemas import Event
from streams import settings, topics
from streams.codec import FOLDED, encode, tenant_key
from streams.kafka import Outbound, admin, consumer, end_offsets, producer
from streams.registry import Catalogue, Registry, register_all
from streams.settings import Settings
from streams.topics import Topic

ROOT = Path(runner.__file__).parent.parent
Wait = Callable[[Callable[[], Any]], Any]


@dataclass
class Log:
    """The broker's topics, to be written by a test."""

    bootstrap: str
    registry: str
    catalogue: Catalogue
    out: Outbound
    client: Consumer

    def send(self, topic: Topic, event: Event, key: bytes = b"key") -> None:
        if isinstance(event, FOLDED):
            key = tenant_key(event)
        self.out.send(topic.name, key, encode(self.catalogue, topic, event))

    def raw(self, topic: str, key: bytes | None, value: bytes | None, partition: int = -1) -> None:
        self.out.send(topic, key, value, partition=partition)

    def flush(self) -> None:
        self.out.flush()

    def ends(self) -> dict[str, dict[str, int]]:
        return {
            t.name: {str(p): e for p, e in end_offsets(self.client, t.name).items()}
            for t in topics.TOPICS
            if t.events and not t.internal
        }

    def settings(self, data: Path) -> Settings:
        found = settings.load({"ROSTER_DATA": str(data)})
        return replace(found, kafka=self.bootstrap, registry=self.registry)


@dataclass
class Projector:
    """A projector, in this process or as one of its own, asked over HTTP."""

    data: Path
    api: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    failed: list[BaseException] = field(default_factory=list)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.api + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: object = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.api + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def sql(self, sql: str) -> list[list[Any]]:
        status, answer = self.post("/v1/sql", {"sql": sql, "max_rows": 100_000})
        assert status == 200, answer
        rows: list[list[Any]] = answer["rows"]
        return rows

    def caught_up(self, log: Log, within_s: float = 60.0) -> None:
        """Waits until everything is filed and every conclusion is back from the log."""
        until = time.monotonic() + within_s
        while True:
            assert not self.failed, self.failed
            status = self.get("/v1/status")
            if status["outbox"] == 0 and status["offsets"] == log.ends():
                return
            assert time.monotonic() < until, (status, log.ends())
            time.sleep(0.1)

    def said(self) -> str:
        """What the process wrote to its standard error."""
        text = (self.data / "stderr.txt").read_text(encoding="utf-8")
        return text

    def end(self) -> None:
        self.stop.set()
        if self.thread is not None:
            self.thread.join(30)
            assert not self.thread.is_alive()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) == 0


@pytest.fixture(scope="session")
def log(kafka: str, registry: str) -> Iterator[Log]:
    """Topics and schemas are there."""
    topics.create(admin(kafka), 1)
    with Registry(registry) as client:
        reader = consumer(kafka, "test-ends")
        yield Log(kafka, registry, register_all(client), Outbound(producer(kafka)), reader)
        reader.close()


@pytest.fixture(scope="session")
def project(log: Log) -> Callable[[Path], Projector]:
    """Starts a projector in a thread of this process."""

    def start(data: Path) -> Projector:
        made = Projector(data)
        ready = threading.Event()

        def say(api: str) -> None:
            made.api = api
            ready.set()

        def work() -> None:
            try:
                runner.run(log.settings(data), ready=say, stop=made.stop)
            except BaseException as error:
                made.failed.append(error)
                traceback.print_exc()
                ready.set()

        made.thread = threading.Thread(target=work, daemon=True)
        made.thread.start()
        assert ready.wait(60)
        assert not made.failed, made.failed
        return made

    return start


@pytest.fixture(scope="session")
def spawn(log: Log) -> Callable[..., Projector]:
    """Starts a projector as a process of its own."""

    def start(data: Path) -> Projector:
        address = data / "projector.json"
        address.unlink(missing_ok=True)
        environ = {
            **os.environ,
            "ROSTER_DATA": str(data),
            "ROSTER_KAFKA": log.bootstrap,
            "ROSTER_REGISTRY": log.registry,
        }
        with (data / "stderr.txt").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "projections.runner"], cwd=ROOT, env=environ, stderr=said
            )
        made = Projector(data, process=process)
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            if address.exists():
                made.api = json.loads(address.read_text(encoding="utf-8"))["api"]
                try:
                    made.get("/health")
                    return made
                except OSError:  # not yet open
                    pass
            time.sleep(0.02)
        raise AssertionError(made.said() if process.poll() is not None else "not ready in time")

    return start


@pytest.fixture(scope="module")
def projector(
    tmp_path_factory: pytest.TempPathFactory, project: Callable[[Path], Projector]
) -> Iterator[Projector]:
    """One projector for the tests of a module."""
    made = project(tmp_path_factory.mktemp("projector"))
    yield made
    made.end()
