"""What processes say of themselves, several of them on one data folder."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from streams import status
from streams.status import StatusFile, local_pid, named, read_all, this_process


def say(data: Path, name: str, **changes: Any) -> None:
    """A report, as another process (or machine) would have written it."""
    StatusFile(data, name).write(records_in=1, records_out=2, law={"consumed": 3})
    path = data / "status" / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_processes_with_names_of_their_own_are_all_there(tmp_path: Path) -> None:
    for name in ("agents-a", "agents-b", "meter-0", "meter-1"):
        say(tmp_path, name)
    found = read_all(tmp_path)
    assert list(found) == ["agents-a", "agents-b", "meter-0", "meter-1"]
    assert found["meter-1"]["law"] == {"consumed": 3}


def test_no_other_process_has_the_name_of_this_one() -> None:
    code = "from streams.status import this_process; print(this_process())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() not in ("", this_process())


def test_the_dead_and_the_silent_say_nothing(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    say(tmp_path, "dead", pid=ended.pid)
    say(tmp_path, "elsewhere", pid=ended.pid, host="another")  # its pid says nothing here
    say(tmp_path, "silent", at=time.time() - 60)
    say(tmp_path, "here")
    (tmp_path / "status" / "torn.json").write_text("{")
    found = read_all(tmp_path)
    assert list(found) == ["elsewhere", "here"]
    assert (local_pid(found["here"]), local_pid(found["elsewhere"])) == (os.getpid(), None)
    assert found["here"]["host"] == socket.gethostname()


def test_a_child_is_named_as_its_parent_named_it_and_nobody_else_is(tmp_path: Path) -> None:
    say(tmp_path, "meter-0")
    say(tmp_path, "meter-x", host="another")
    assert set(named(read_all(tmp_path), {os.getpid(): "meter"})) == {"meter", "meter-x"}
    assert set(named(read_all(tmp_path), {})) == {"meter-0", "meter-x"}


def test_files_of_the_long_gone_are_removed(tmp_path: Path) -> None:
    for name in ("old", "new"):
        say(tmp_path, name)
    long_ago = time.time() - status.FORGOTTEN_S - 1
    os.utime(tmp_path / "status" / "old.json", (long_ago, long_ago))
    say(tmp_path, "next")
    assert {p.name for p in (tmp_path / "status").iterdir()} == {"new.json", "next.json"}


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("in the way")
    StatusFile(tmp_path, "x").write(records_in=0, records_out=0)
    assert read_all(tmp_path) == {}
