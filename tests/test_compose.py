"""Every service of docker-compose.yaml, run as it stands there: its command, its environment and
its health check, each on a data folder of its own. Only addresses and folders are this machine's.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams import settings
from streams.status import read_all
from tools import stack

pytestmark = pytest.mark.system

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@dataclass
class Engine:
    """As much of a container engine as it takes: names of hosts become loopback, ports free ones,
    volumes folders."""

    home: Path
    ports: dict[str, int]  # by the port in the file
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    well: set[str] = field(default_factory=set)

    def local(self, word: str) -> str:
        """A word of the file as it is here."""
        for name in SERVICES:
            word = stack.LOOPBACK if word == name else word.replace(f"{name}:", "127.0.0.1:")
        for given, chosen in self.ports.items():
            word = str(chosen) if word == given else word.replace(f":{given}", f":{chosen}")
        return word

    def data(self, service: str) -> Path:
        return self.home / service

    def environ(self, service: str) -> dict[str, str]:
        given = {k: self.local(v) for k, v in SERVICES[service]["environment"].items()}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ROSTER_")}
        cache = str(settings.load().cache)
        here = {"ROSTER_DATA": str(self.data(service)), "ROSTER_CACHE": cache}
        assert given.keys() > {*here, "ROSTER_BIND"}
        return {**kept, **given, **here, "ROSTER_BIND": stack.LOOPBACK}

    def run(self, service: str, verb: str, *words: str) -> "subprocess.Popen[bytes]":
        """`roster` in the service's container."""
        self.data(service).mkdir(exist_ok=True)
        with (self.home / f"{service}.log").open("ab") as log:
            command = [sys.executable, "-m", "tools", verb, *map(self.local, words)]
            environ = self.environ(service)
            return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)

    def start(self, *services: str) -> None:
        """Starts them together, as soon as what they depend on is healthy or has ended well."""
        for service in services:
            for other, needed in SERVICES[service].get("depends_on", {}).items():
                if needed["condition"] == "service_completed_successfully":
                    assert self.processes[other].wait(60) == 0, self.log(other)
                elif other not in self.well:
                    self.healthy(other)
            self.processes[service] = self.run(service, *SERVICES[service]["command"])

    def healthy(self, service: str) -> None:
        """Returns when its health check says so, in the time that the file gives it."""
        check = SERVICES[service]["healthcheck"]
        kind, entry, *words = check["test"]
        assert (kind, entry) == ("CMD", "roster")
        until = time.monotonic() + 60
        verb, name = words  # the name of a process, not of a host
        while True:
            assert self.processes[service].poll() is None, self.log(service)
            begun = time.monotonic()
            environ = self.environ(service)
            done = subprocess.run(
                [sys.executable, "-m", "tools", verb, name],
                cwd=ROOT,
                env=environ,
                check=False,
                capture_output=True,
                text=True,
            )
            # One that takes longer counts as failed, as an engine has it.
            in_time = time.monotonic() - begun < seconds(check["timeout"])
            if done.returncode == 0 and in_time:
                self.well.add(service)
                return
            assert done.returncode in (0, 1), shlex.join(check["test"])
            assert not done.stderr, shlex.join(check["test"])
            assert time.monotonic() < until, self.log(service)
            time.sleep(seconds(check["start_interval"]))

    def log(self, service: str) -> str:
        return (self.home / f"{service}.log").read_text(encoding="utf-8")[-3_000:]

    def stop(self) -> dict[str, int]:
        """Ends all of them, the last one first; exit statuses."""
        ended = {}
        for service, process in reversed(self.processes.items()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds(SERVICES[service]["stop_grace_period"]))
            if process.poll() is None:
                process.kill()
            ended[service] = process.wait()
        return ended


def seconds(text: str) -> float:
    """A duration of the file, all of which are whole seconds."""
    return float(text.removesuffix("s"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    home = tmp_path_factory.mktemp("compose")
    chosen = stack.choose_ports(home / "ports", usual=None)
    made = Engine(home, {"9092": chosen.kafka, "8081": chosen.registry})
    try:
        yield made
    finally:
        made.stop()


def test_each_service_becomes_healthy_and_all_end_when_they_are_told_to(engine: Engine) -> None:
    engine.start(*SERVICES)
    engine.healthy("workload")
    for service in ("agents", "meter", "projector", "workload"):
        (report,) = read_all(engine.data(service)).values()  # each one's volume is its own
        assert report["pid"] == engine.processes[service].pid
    until = time.monotonic() + 30
    while not any(r["records_in"] for r in read_all(engine.data("meter")).values()):
        assert time.monotonic() < until, engine.log("meter")
        time.sleep(0.1)
    assert engine.stop() == dict.fromkeys(SERVICES, 0), json.dumps(
        {service: engine.log(service) for service in SERVICES}, indent=1
    )
