"""The whole system on a broker of its own, hurt while it works; `roster verify` is the judge.

Told in order, on one data folder: processes are killed, a meter sleeps past its session while
another takes over, the parent dies, everything starts again. Each time the log must prove every
number. Then a row and a byte are changed, and verify must notice.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest

from streams import kafka, settings
from streams.topics import METRICS_TABLE, PROFILES_TABLE, changelog
from tests.support import commands, readme
from tools import stack
from tools.supervisor import running

pytestmark = pytest.mark.system
SLEEP_S = float(os.environ.get("ROSTER_SLEEP_S", "60"))  # far past the session of 10 s
RATE = "20"


@dataclass
class System:
    data: Path
    up: subprocess.Popen[bytes] | None = None

    def roster(self, *words: str) -> subprocess.CompletedProcess[str]:
        return commands.roster(self.data, *words, timeout_s=240)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tools", *words]
        with (self.data.parent / f"{words[0]}.out").open("ab") as log:
            return subprocess.Popen(
                command, env=commands.environ(self.data), stdout=log, stderr=log
            )

    def children(self) -> dict[str, int]:
        found = running(self.data)
        return {} if found is None else found.children

    def verified(self) -> None:
        """verify holds, and it compared something."""
        result = self.roster("verify", "--json")
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
        assert sum(line["values"] for line in json.loads(result.stdout)["compared"]) > 10_000


def until(what: str, condition: Callable[[], Any], within_s: float = 90) -> Any:
    begun = time.monotonic()
    while time.monotonic() - begun < within_s:
        if found := condition():
            return found
        time.sleep(0.3)
    pytest.fail(f"{what}: not within {within_s:.0f} s")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    stack.prepare(settings.load().cache)
    system = System(tmp_path_factory.mktemp("system") / "data")
    yield system
    if system.up is not None and system.up.poll() is None:
        system.up.terminate()
        system.up.wait(60)
    system.roster("down")


def applied(system: System) -> int:
    """Invocations that the ledger holds."""
    result = system.roster("sql", "SELECT count(*) AS n FROM invocations", "--json")
    if result.returncode != 0:
        return 0
    rows = json.loads(result.stdout)
    first = rows["rows"][0] if isinstance(rows, dict) else rows[0]
    return int(first["n"] if isinstance(first, dict) else first[0])


def test_it_starts_and_the_first_events_are_applied(system: System) -> None:
    system.up = system.start("up", "--rate", RATE, "--backfill-h", "3")
    until("the ledger fills", lambda: applied(system) > 1_000)


@pytest.mark.parametrize("words", readme.commands("roster"), ids=" ".join)
def test_every_command_of_the_readme_works(system: System, words: list[str]) -> None:
    result = system.roster(*words)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "Traceback" not in result.stderr


def test_the_snippet_of_the_readme_finds_a_profile(system: System) -> None:
    found = running(system.data)
    assert found is not None
    (snippet,) = readme.blocks("python")
    here = snippet.replace("127.0.0.1:9092", found.addresses["kafka"]).replace(
        "http://127.0.0.1:8081/apis/ccompat/v7", found.addresses["registry"]
    )
    done = subprocess.run(
        [sys.executable, "-c", here], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    model, layer, version, offset, staleness = done.stdout.split()
    assert "/" in model and layer == "system"
    assert int(version) >= 1 and int(offset) >= 0 and int(staleness) < 5_000


@pytest.mark.parametrize("name", ["meter", "agents", "projector", "registry", "workload", "kafka"])
def test_a_killed_process_is_started_again_and_work_goes_on(system: System, name: str) -> None:
    before = until(f"{name} runs", lambda: system.children().get(name))
    counted = applied(system)
    os.kill(before, signal.SIGKILL)
    until(f"{name} is back", lambda: system.children().get(name, before) != before)
    if name == "workload":
        return  # it goes on where the log ends; whether it does is for verify to say
    if name == "kafka":
        until("the broker answers", lambda: broker(system, "run"))
        counted = applied(system)
    until("work goes on", lambda: applied(system) > counted)


def test_verify_holds_after_every_process_was_killed(system: System) -> None:
    system.verified()


def test_a_meter_that_slept_past_its_session_changes_nothing(system: System) -> None:
    sleeper = system.children()["meter"]
    os.kill(sleeper, signal.SIGSTOP)
    other = system.start("meter", "--instance", "other")
    try:
        time.sleep(SLEEP_S)
        law = json.loads((system.data / "status" / "meter-other.json").read_text())
        assert law["records_in"] > 0, "the other meter never took over"
        os.kill(sleeper, signal.SIGCONT)
        time.sleep(3)
        system.verified()
    finally:
        os.kill(sleeper, signal.SIGCONT)
        other.terminate()
        assert other.wait(30) == 0
    time.sleep(2)
    system.verified()


def test_killing_the_parent_leaves_no_process_behind(system: System) -> None:
    assert system.up is not None
    children = list(system.children().values())
    system.up.kill()
    system.up.wait()
    until("all have ended", lambda: not [p for p in children if alive(p)], 30)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_second_run_goes_on_with_the_data_and_ends_by_itself(system: System) -> None:
    before = system.roster("up", "--for", "12", "--rate", RATE, "--json")
    assert before.returncode == 0, before.stderr
    system.verified()  # nothing runs now: it starts broker and registry for itself


def test_verify_notices_one_changed_row(system: System, tmp_path: Path) -> None:
    copy = tmp_path / "copy.duckdb"
    shutil.copy(system.data / "roster.duckdb", copy)
    with duckdb.connect(str(copy)) as connection:
        connection.execute(
            "UPDATE invocations SET output_tokens = output_tokens + 1 WHERE rowid ="
            " (SELECT max(rowid) FROM invocations)"
        )
    result = system.roster("verify", "--duckdb", str(copy))
    assert result.returncode == 1, result.stdout
    assert "output_tokens" in result.stdout


@pytest.mark.parametrize("table", [METRICS_TABLE, PROFILES_TABLE])
def test_verify_notices_one_changed_byte_in_a_table(system: System, table: str) -> None:
    server = system.start("kafka")
    try:
        address = until("the broker", lambda: broker(system))
        message = next(
            m for m in kafka.read_to_end(address, changelog(table)) if m.value() is not None
        )
        value = bytearray(message.value() or b"")
        value[-2] ^= 1
        out = kafka.Outbound(kafka.producer(address))
        key = message.key()
        assert isinstance(key, bytes)
        out.send(changelog(table), key, bytes(value), partition=message.partition() or 0)
        out.flush()
    finally:
        server.terminate()
        server.wait(60)
    result = system.roster("verify")
    assert result.returncode == 1, result.stdout


def broker(system: System, record: str = "run-kafka") -> str | None:
    """Address of the broker that this owner has started, once it answers."""
    owner = running(system.data, record)
    address = None if owner is None else owner.addresses.get("kafka")
    if address is None:
        return None
    try:
        kafka.admin(address).list_topics(timeout=2)
    except Exception:
        return None
    return address
