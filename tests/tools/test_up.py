"""The whole system, started and stopped as a person does it, on a data folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tools import stack
from tools.supervisor import running
from tools.up import told

pytestmark = pytest.mark.system
ROSTER = (sys.executable, "-m", "tools")
STARTS_WITHIN_S = 120.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("up")
    stack.choose_ports(folder, usual=None)  # as if it had run before, on ports of its own
    return folder


def environment(data: Path) -> dict[str, str]:
    given = {k: v for k, v in os.environ.items() if not k.startswith("ROSTER_")}
    if cache := os.environ.get("ROSTER_CACHE"):
        given["ROSTER_CACHE"] = cache
    return {**given, "ROSTER_DATA": str(data)}


def roster(data: Path, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [*ROSTER, *arguments],
        env=environment(data),
        input=stdin,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def eventually(check: Callable[[], Any], within_s: float) -> Any:
    until = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < until, "not in time"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def up(data: Path) -> Iterator[subprocess.Popen[str]]:
    """A system without the sample workload, all of it ready."""
    with subprocess.Popen(
        [*ROSTER, "up", "--no-workload", "--json"],
        env=environment(data),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:

            def ready() -> bool:
                assert process.poll() is None, process.communicate()
                found = running(data)
                return found is not None and "api" in found.addresses

            eventually(ready, STARTS_WITHIN_S)
            yield process
        finally:
            process.terminate()
            process.wait(60)


def test_all_commands_answer_while_it_runs(up: subprocess.Popen[str], data: Path) -> None:
    code, out, _ = roster(data, "status", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"kafka", "registry", "agents", "meter", "projector"} <= {
        row["process"] for row in found["processes"]
    }
    assert found["addresses"].keys() >= {"kafka", "registry", "api"}

    key = ("tenant:acme", "chat", "prod")
    code, out, error = roster(data, "profiles", "set", *key, "--model", "p/one", "--json")
    verdict = json.loads(out)
    assert (code, verdict["verdict"], verdict["version"]) == (0, "active", 1), error
    code, out, _ = roster(
        data, "profiles", "set", *key, "--model", "p/two", "--expected-version", "0"
    )
    assert code == 1
    assert out.startswith("rejected, CONFLICT: expected_version=0; allowed: 1 (event ")
    code, out, _ = roster(data, "profiles", "get", "chat", "prod", "--tenant", "acme", "--json")
    assert (code, json.loads(out)["model"], json.loads(out)["layer"]) == (0, "p/one", "tenant")
    assert roster(data, "profiles", "delete", *key)[1].startswith("deleted (")
    code, out, _ = roster(data, "profiles", "history", *key, "--json")
    assert [(row["verdict"], row["version"]) for row in json.loads(out)] == [
        ("accepted", 1),
        ("rejected", 1),
        ("accepted", 2),
    ]

    invocation = {
        "tenant": "acme",
        "role": "code",
        "provider": "p",
        "model": "m",
        "outcome": "SUCCESS",
        "input_tokens": 1,
        "output_tokens": 2,
        "latency_us": 3,
    }
    lines = "\n".join(json.dumps({**invocation, "event_id": f"e{n}"}) for n in range(50))
    code, out, error = roster(data, "publish", "llm.invocation", "-", stdin=lines)
    assert (code, out) == (0, "50 events acknowledged on llm.invocation\n"), error

    def counted() -> bool:
        code, out, _ = roster(data, "sql", "SELECT count(*) FROM invocations", "--json")
        return code == 0 and json.loads(out)["rows"] == [[50]]

    eventually(counted, 20)


def test_a_process_that_dies_is_started_again(up: subprocess.Popen[str], data: Path) -> None:
    def meter() -> int | None:
        found = running(data)
        return None if found is None else found.children.get("meter")

    before = eventually(meter, 5)
    os.kill(before, signal.SIGKILL)
    after = eventually(lambda: (pid := meter()) is not None and pid != before and pid, 30)
    assert psutil.pid_exists(after)


def test_ctrl_c_ends_everything_in_order_and_quietly(up: subprocess.Popen[str], data: Path) -> None:
    found = running(data)
    assert found is not None
    # A second system cannot be started on the same folder.
    code, _, error = roster(data, "up", "--for", "1")
    assert code == 2
    assert error.startswith(f"roster: already running (pid {up.pid}) on {data}")

    up.send_signal(signal.SIGINT)
    out, error = up.communicate(timeout=60)
    assert (up.returncode, error) == (0, "")
    states = [json.loads(line) for line in out.splitlines()]
    assert states[-1]["deployment"] == "main"
    ended = [n for s in states for n in s["notable"] if n["kind"] == "process"]
    assert any("meter ended (killed by SIGKILL)" in n["text"] for n in ended)
    assert not [pid for pid in found.children.values() if psutil.pid_exists(pid)]
    assert running(data) is None
    assert not (data / "run.json").exists()


def test_the_log_answers_when_nothing_runs(up: subprocess.Popen[str], data: Path) -> None:
    assert up.poll() is not None
    code, out, error = roster(data, "profiles", "list", "--role", "code", "--json")
    assert code == 0, error
    assert {row["deployment_mode"] for row in json.loads(out)} >= {"PRODUCTION", "TEST"}
    assert running(data) is None
    code, out, error = roster(data, "sql", "SELECT count(*) FROM invocations", "--csv")
    assert (code, out.split()[-1]) == (0, "50"), error


def test_a_summary_tells_what_happened() -> None:
    text = told(
        {
            "seconds": 60.5,
            "mode": "TEST",
            "events_in": 1_234,
            "verdicts": {"applied": 1_230, "dead_lettered": 4},
            "rankings_published": 7,
            "seconds_to_first_ranking": 12.3,
            "budgets": [
                {
                    "tenant": "acme",
                    "budget": "daily",
                    "spent_picousd": 1_500_000_000_000,
                    "cap_picousd": 200 * 10**12,
                    "period": "DAY",
                }
            ],
            "lag": {"meter": 3},
            "restarts": {"meter": 1, "agents": 0},
            "memory_bytes": {"meter": 2**28},
            "laws_hold": {"meter-0": True},
        }
    )
    for part in (
        "events in: 1,234 (1,230 applied, 4 dead lettered)",
        "rankings published: 7, the first 12.3 s after the start",
        "acme/daily: $1.5000 of $200.00 in its newest day",
        "restarts: meter 1",
        "meter 256 MiB",
        "conservation: holds",
    ):
        assert part in text
