"""Children are tiny Python programs; the owner that is killed is a process of its own."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from streams.errors import BadConfiguration, RosterError
from tools import supervisor as sup
from tools.supervisor import Child, Supervisor

SLEEP = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True);"
ROOT = Path(__file__).parent.parent.parent


def python(name: str, program: str, **further: object) -> Child:
    return Child(name=name, argv=(sys.executable, "-S", "-c", program), **further)  # type: ignore[arg-type]  # passed on as they are


def until(holds: Callable[[], object], supervisor: Supervisor | None = None) -> None:
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline, "did not happen within 15 s"
        if supervisor is not None:
            supervisor.poll()
        time.sleep(0.02)


def pids(supervisor: Supervisor) -> dict[str, int | None]:
    return {state.name: state.pid for state in supervisor.states()}


def alive(pid: int) -> bool:
    """An orphan that has ended stays a zombie where no init process collects it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def owner(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Starts another process that owns the folder, and waits until its children are recorded."""

    def start(children: str) -> subprocess.Popen[str]:
        program = f"""
            import sys, time
            from pathlib import Path
            from tools.supervisor import Child, Supervisor
            def python(name, program):
                return Child(name=name, argv=(sys.executable, "-S", "-c", program))
            with Supervisor(Path({str(tmp_path)!r}), {children}) as supervisor:
                supervisor.wait_ready(within_s=10)
                print("ready", flush=True)
                while True:
                    time.sleep(0.05)
                    supervisor.poll()
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        return process

    return start


def test_a_child_that_dies_is_started_again_and_says_why(tmp_path: Path) -> None:
    with Supervisor(tmp_path, python("one", SLEEP)) as supervisor:
        first = pids(supervisor)["one"]
        assert first is not None
        os.kill(first, signal.SIGKILL)

        until(lambda: supervisor.states()[0].restarts == 1, supervisor)

        state = supervisor.states()[0]
        assert state.pid not in {None, first}
        assert state.last_reason == "killed by SIGKILL"
        assert state.rss_bytes > 0


def test_restarts_back_off_and_the_pause_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sup, "BACKOFF_S", (0.05, 0.2))
    starts = "import sys, time; print(time.monotonic(), flush=True); sys.exit(3)"
    with Supervisor(tmp_path, python("mortal", starts)) as supervisor:
        supervisor._slots["mortal"].pause_s = 0.05
        until(lambda: supervisor.states()[0].restarts >= 5, supervisor)
        assert supervisor.states()[0].last_reason == "exit status 3"

    times = [float(t) for t in (tmp_path / "logs" / "mortal.log").read_text().split()][:5]
    pauses = [b - a for a, b in pairwise(times)]
    assert all(p >= least for p, least in zip(pauses, (0.05, 0.1, 0.2, 0.2), strict=False))


def test_a_child_waits_for_those_it_comes_after(tmp_path: Path) -> None:
    open_ = tmp_path / "open"
    first = python("first", SLEEP, ready=open_.exists)
    second = python("second", SLEEP, after=("first",))
    with Supervisor(tmp_path, first, second) as supervisor:
        for _ in range(3):
            supervisor.poll()
        assert [s.state for s in supervisor.states()] == ["starting", "waiting"]

        open_.touch()

        supervisor.wait_ready(within_s=5)
        assert [s.state for s in supervisor.states()] == ["ready", "ready"]


def test_children_end_in_reverse_order(tmp_path: Path) -> None:
    last_words = (
        "import signal, sys, time\n"
        "def leave(*_): open({path!r}, 'a').write({name!r}); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave); open({path!r} + {name!r}, 'w'); time.sleep(600)"
    )
    path = str(tmp_path / "order")
    children = [
        python(n, last_words.format(path=path, name=n), ready=Path(path + n).exists) for n in "abc"
    ]
    with Supervisor(tmp_path, *children) as supervisor:
        supervisor.wait_ready(within_s=10)
    assert Path(path).read_text() == "cba"


def test_a_deaf_child_and_its_own_children_are_killed_after_the_grace(tmp_path: Path) -> None:
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); "
    program += DEAF + SLEEP
    log = tmp_path / "logs" / "deaf.log"
    child = python("deaf", program, grace_s=0.2, ready=lambda: log.read_text() != "")
    with Supervisor(tmp_path, child) as supervisor:
        supervisor.wait_ready(within_s=10)
        pid = pids(supervisor)["deaf"]
        assert pid is not None
        grandchild = psutil.Process(pid).children()[0]
    assert not psutil.pid_exists(pid)
    until(lambda: not alive(grandchild.pid))


def test_a_stopped_child_can_be_ended(tmp_path: Path) -> None:
    with Supervisor(tmp_path, python("still", SLEEP)) as supervisor:
        pid = pids(supervisor)["still"]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 5


def test_a_child_that_dies_before_it_is_ready_shows_the_end_of_its_log(tmp_path: Path) -> None:
    child = python("bad", "import sys; sys.exit('port 1 is taken')", ready=lambda: False)
    with (
        Supervisor(tmp_path, child) as supervisor,
        pytest.raises(RosterError, match=r"bad ended \(exit status 1\).*\n.*port 1 is taken"),
    ):
        supervisor.wait_ready(within_s=10)


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    child = Child(name="none", argv=("/no/such/program",), ready=lambda: False)
    with (
        Supervisor(tmp_path, child) as supervisor,
        pytest.raises(RosterError, match="cannot run /no/such/program"),
    ):
        supervisor.wait_ready(within_s=10)


def test_a_child_that_is_never_ready_is_an_error_in_time(tmp_path: Path) -> None:
    with (
        Supervisor(tmp_path, python("slow", SLEEP, ready=lambda: False)) as supervisor,
        pytest.raises(RosterError, match=r"slow was not ready within 0\.2 s"),
    ):
        supervisor.wait_ready(within_s=0.2)


def test_the_record_tells_addresses_and_processes(tmp_path: Path) -> None:
    with Supervisor(tmp_path, python("one", SLEEP)) as supervisor:
        supervisor.announce(kafka="127.0.0.1:9092")
        found = sup.running(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()
        assert found.addresses == {"kafka": "127.0.0.1:9092"}
        assert found.children == pids(supervisor)
    assert sup.running(tmp_path) is None


def test_a_second_owner_is_refused_while_the_first_lives(
    tmp_path: Path, owner: Callable[[str], subprocess.Popen[str]]
) -> None:
    first = owner(f"python('one', {SLEEP!r})")
    with pytest.raises(BadConfiguration, match=rf"already running \(pid {first.pid}\).*down"):
        Supervisor(tmp_path).start()

    assert sup.down(tmp_path, within_s=10)

    first.wait(5)  # only for subprocess: it has ended and was waited for
    assert not psutil.pid_exists(first.pid)
    assert not sup.down(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have the next start only")
def test_nothing_outlives_a_killed_owner(
    tmp_path: Path, owner: Callable[[str], subprocess.Popen[str]]
) -> None:
    first = owner(f"python('one', {SLEEP!r}), python('deaf', {DEAF + SLEEP!r})")
    found = sup.running(tmp_path)
    assert found is not None

    first.kill()
    first.wait()

    until(lambda: not any(alive(pid) for pid in found.children.values()))


def test_the_next_start_ends_what_a_dead_owner_left_and_nothing_else(tmp_path: Path) -> None:
    left, stranger = (
        subprocess.Popen([sys.executable, "-S", "-c", SLEEP], start_new_session=True)
        for _ in range(2)
    )
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    started = psutil.Process(left.pid).create_time()
    record = {
        "parent": {"pid": dead.pid, "create_time": started},
        "addresses": {},
        "children": {
            "left": {"pid": left.pid, "create_time": started},
            # The pid is in use, but by a process that started at another time.
            "recycled": {"pid": stranger.pid, "create_time": started - 1000},
        },
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    try:
        with Supervisor(tmp_path):
            assert left.wait(5) is not None
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadConfiguration, match="file"):
        Supervisor(tmp_path / "file" / "data").start()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_clear_line() -> None:
    with (
        pytest.raises(BadConfiguration, match="the disk is full"),
        sup.explained(Path("/dev/full")),
    ):
        Path("/dev/full").write_text("x")
