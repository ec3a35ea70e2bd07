"""Commands about processes as a person, or a script, types them; nothing has to run for most."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from tests.support import commands
from tools.__main__ import app
from tools.supervisor import running

FOREGROUND = {"kafka", "registry", "agents", "meter", "projector", "workload"}
"""They run until they are stopped: there is no answer."""
OWNER = """
import signal, sys, time
from pathlib import Path
from tools.supervisor import Child, Supervisor

def leave(*_):
    raise SystemExit(0)

signal.signal(signal.SIGTERM, leave)
with Supervisor(Path(sys.argv[1]), Child(name="sleeper", argv=("sleep", "60"))) as owner:
    while True:
        owner.poll()
        time.sleep(0.05)
"""


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def answer(data: Path, *words: str) -> Any:
    """What a command says in JSON: one document, and nothing else."""
    done = commands.roster(data, *words, "--json")
    assert (done.returncode, done.stderr) == (0, ""), words
    return json.loads(done.stdout)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that keeps another one alive on the data folder, as `roster up` does."""
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)]) as process:
        try:
            until = time.monotonic() + 20
            while not ((found := running(tmp_path)) and found.children):
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            process.wait(20)


def test_every_command_that_answers_takes_json() -> None:
    found = dict(leaves(typer.main.get_group(app)))
    assert found.keys() > FOREGROUND
    without = {
        name
        for name, command in found.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == FOREGROUND


def test_down_says_whether_anything_was_stopped(
    tmp_path: Path, owner: subprocess.Popen[bytes]
) -> None:
    assert answer(tmp_path, "down") == {"data": str(tmp_path), "stopped": True}
    assert owner.wait(20) == 0
    assert answer(tmp_path, "down", "--quiet") == {"data": str(tmp_path), "stopped": False}


def test_clean_names_what_it_removed_and_leaves_what_is_not_ours(
    tmp_path: Path, owner: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "status").mkdir()
    for name in ("roster.duckdb", "status/agents.json", "notes.txt"):
        (tmp_path / name).write_text("x")
    said = answer(tmp_path, "clean")
    assert owner.wait(20) == 0
    ours = ["logs", "roster.duckdb", "run.lock", "status"]
    assert said == {"data": str(tmp_path), "stopped": True, "removed": ours}
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "notes.txt").unlink()
    assert answer(tmp_path, "clean") == {"data": str(tmp_path), "stopped": False, "removed": []}


def test_clean_removes_a_folder_that_held_nothing_else(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "logs").mkdir(parents=True)
    assert answer(data, "clean")["removed"] == ["logs"]
    assert not data.exists()
    assert answer(data, "clean")["removed"] == []


def test_init_says_where_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    assert answer(tmp_path, "init") == {"written": str(tmp_path / "roster.env")}
    assert (tmp_path / "roster.env").read_text().startswith("# Settings of Roster.")


def test_jars_are_named_when_they_are_there(tmp_path: Path) -> None:
    said = answer(tmp_path, "jars")
    assert any(jar.startswith("org.apache.kafka:") for jar in said["jars"])
    assert Path(said["cache"]).is_dir()


def test_health_is_an_exit_status_and_an_answer(tmp_path: Path) -> None:
    done = commands.roster(tmp_path, "healthy", "meter", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout) == {"process": "meter", "healthy": False}
    assert (commands.roster(tmp_path, "healthy", "meter").stdout) == ""
